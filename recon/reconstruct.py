"""Reconstruct a file: a volume (undersampled on the fly) or measured k-space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recon.figures import contact_sheet
from recon.fourier import fft2c, ifft2c
from recon.inference import ZERO_FILLED, Reconstructed, network_method, reconstruct_sample
from recon.model import Model
from recon.samples import Sample, centre_crop, denormalize, magnitude, normalize, prepare
from recon.sense import complex_to_channels
from storage.errors import InputError
from storage.formats import nifti
from storage.loader import Batch
from storage.volumes import Volume, coronal_slices, image_to_kspace, slice_affine

_MODEL = "model"


@dataclass(frozen=True)
class Reconstruction:
    """`images` and `zero_filled` (slice, height, width) float32 in the intensities of the source; `target`
    where it is known; `seconds_per_slice` of the generator alone."""

    images: np.ndarray
    zero_filled: np.ndarray
    target: np.ndarray | None
    seconds_per_slice: float


def reconstruct_volume(
    model: Model, volume: Volume, batch_size: int, progress: Callable[[int, int], None]
) -> tuple[Reconstruction, np.ndarray]:
    """Every coronal slice of a volume, undersampled with the model's mask and reconstructed.

    Returns also the affine (4, 4) of the result as written by `write_nifti`.
    """
    matrix = _fitting_matrix(model.physics.crop)
    slices = coronal_slices(volume, matrix, min_foreground=0.0)
    device = next(model.generator.parameters()).device
    methods = {_MODEL: network_method(model.generator)}
    results: list[Reconstructed] = []
    for first in range(0, len(slices), batch_size):
        part = slices[first : first + batch_size]
        kspace = np.stack([image_to_kspace(item.image)[None] for item in part])
        samples = np.array([(0, item.index) for item in part])
        sample = prepare(
            Batch.of(kspace, samples), model.physics.crop, model.physics.mask, device, signal=model.physics.signal
        )
        results.append(reconstruct_sample(methods, sample, tuple(item.index for item in part)))
        progress(first + len(part), len(slices))
    return _collect(results, with_target=True), slice_affine(volume, model.physics.crop)


def reconstruct_kspace(
    model: Model, kspace: np.ndarray, batch_size: int, progress: Callable[[int, int], None]
) -> Reconstruction:
    """Measured k-space (slice, [coil,] height, width) complex, zero where nothing was measured, centre at [n // 2].

    The input is brought to [0, 1] by the minimum and maximum of its own zero-filled image, since those of
    the target are not known. Raises `InputError` if shape, type or values do not fit.
    """
    if not np.iscomplexobj(kspace) or kspace.ndim not in (3, 4):
        raise InputError(
            f"k-space of shape {kspace.shape} and type {kspace.dtype}: expected complex (slice, [coil,] height, width)"
        )
    if kspace.size == 0:
        raise InputError(f"k-space of shape {kspace.shape} holds nothing to reconstruct")
    if not np.isfinite(kspace).all():
        raise InputError("the k-space holds values that are not finite (NaN or infinite)")
    kspace = kspace[:, None] if kspace.ndim == 3 else kspace
    device = next(model.generator.parameters()).device
    methods = {_MODEL: network_method(model.generator)}
    results = []
    for first in range(0, len(kspace), batch_size):
        measured = torch.from_numpy(np.ascontiguousarray(kspace[first : first + batch_size], np.complex64)).to(device)
        sample = _measured_sample(measured, model, np.arange(first, first + len(measured)))
        results.append(reconstruct_sample(methods, sample, tuple(range(first, first + len(measured)))))
        progress(first + len(measured), len(kspace))
    return _collect(results, with_target=False)


def _measured_sample(measured: Tensor, model: Model, indices: np.ndarray) -> Sample:
    """k-space (batch, coil, height, width) complex64 as a sample without a target.

    A model with data consistency, or for complex images, works on the measured points themselves: there the matrix
    stays as it is and there can be but one coil. Others see the magnitude, cropped to what they were trained on.
    """
    samples = np.stack([np.zeros_like(indices), indices], axis=1)
    mask = (measured != 0).any(dim=1, keepdim=True)
    signal, size = model.physics.signal, model.physics.crop
    exact = model.recipe.generator.data_consistency != "none" or signal.channels == 2
    if exact and measured.shape[1] > 1:
        raise InputError(
            f"k-space of {measured.shape[1]} coils: this model puts measured points back and takes one coil; combine "
            "the coils first, or use a model with generator.data_consistency=none"
        )
    if signal.channels == 2:
        high = ifft2c(measured).abs().amax(dim=(1, 2, 3))
        scale = torch.stack([torch.zeros_like(high), high], dim=1)
        kspace = measured / high.clamp_min(torch.finfo(high.dtype).tiny).view(-1, 1, 1, 1)
        zero_filled = complex_to_channels(ifft2c(kspace))
        return Sample(zero_filled, zero_filled, kspace, mask, scale, samples)
    image = magnitude(measured)
    zero_filled, scale = normalize(image if exact else centre_crop(image, size))
    low, high = (scale[:, side].view(-1, 1, 1, 1) for side in (0, 1))
    span = torch.where(high > low, high - low, 1)
    kspace = (measured - low * fft2c(torch.ones_like(image))) / span * mask
    return Sample(zero_filled, zero_filled, kspace, mask, scale, samples)


def _collect(results: Sequence[Reconstructed], with_target: bool) -> Reconstruction:
    def intensities(images: Callable[[Reconstructed], np.ndarray]) -> np.ndarray:
        parts = [denormalize(torch.from_numpy(images(r))[:, None], torch.from_numpy(r.scale))[:, 0] for r in results]
        return torch.cat(parts).numpy()

    return Reconstruction(
        images=intensities(lambda r: r.images[_MODEL]),
        zero_filled=intensities(lambda r: r.images[ZERO_FILLED]),
        target=intensities(lambda r: r.target) if with_target else None,
        seconds_per_slice=sum(r.seconds[_MODEL] for r in results) / sum(len(r.indices) for r in results),
    )


def _fitting_matrix(crop: tuple[int, int]) -> tuple[int, int]:
    """The matrix that training data had (256×256), or the crop where that is larger."""
    return max(256, crop[0]), max(256, crop[1])


def write_nifti(images: np.ndarray, affine: np.ndarray, path: Path) -> None:
    """Coronal images (slice, height, width) as a NIfTI volume (left→right, posterior→anterior, inferior→superior)."""
    import nibabel

    volume = np.ascontiguousarray(images[:, ::-1, ::-1].transpose(2, 0, 1))
    nibabel.save(nibabel.Nifti1Image(volume.astype(np.float32), affine), path)


def reconstruct_file(
    model: Model, source: Path, folder: Path, batch_size: int, progress: Callable[[int, int], None]
) -> tuple[list[Path], float]:
    """Reconstruct a NIfTI volume or `.npy` k-space into `folder`; return the files and seconds per slice.

    Raises `InputError` for a source that is missing or of another kind; nothing is written then.
    """
    if not source.is_file():
        raise InputError(f"{source}: no such file")
    if source.name.endswith(nifti.SUFFIXES):
        result, affine = reconstruct_volume(model, nifti.read_volume(source), batch_size, progress)
        stem = nifti.subject_of(source)
    elif source.suffix == ".npy":
        try:
            kspace = np.load(source, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise InputError(f"{source}: is not a .npy array ({error})") from error
        if not isinstance(kspace, np.ndarray):
            raise InputError(f"{source}: is an .npz archive; save the k-space alone with numpy.save")
        result, affine, stem = reconstruct_kspace(model, kspace, batch_size, progress), None, source.stem
    else:
        raise InputError(f"{source}: expected a NIfTI volume ({', '.join(nifti.SUFFIXES)}) or k-space as .npy")
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / f"{stem}-reconstruction.npy" if affine is None else folder / f"{stem}-reconstruction.nii.gz"]
    if affine is None:
        np.save(written[0], result.images)
    else:
        write_nifti(result.images, affine, written[0])
    places = np.linspace(0.15, 0.85, 8) * (len(result.images) - 1)
    shown = sorted(set(places.round().astype(int).tolist()))
    images = [images[place] for images in (result.zero_filled, result.images) for place in shown]
    titles = [f"{kind}, slice {place}" for kind in ("zero-filled", "reconstruction") for place in shown]
    written.append(folder / f"{stem}-reconstruction.png")
    contact_sheet(images, titles, columns=len(shown), path=written[1])
    return written, result.seconds_per_slice
