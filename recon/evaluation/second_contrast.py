"""A T2-weighted image of a T1 head: simulated from the tissues that the T1 image is segmented into.

What it is not: a second scan. Its edges are those that the segmentation of the T1 image finds, so the two contrasts
agree more than a person's real ones do: nothing moves between them, and there is no lesion that only one of them shows.
Within a tissue it says nothing of the T1 image: its texture, its bias field and its noise are drawn. Outside the brain
there are three classes by brightness, which stand for bone, muscle and fat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_multiotsu
from skimage.transform import resize

from larmor.recon.evaluation.head_tissues import head_of, resampled, stated_beside, tissues_of, without_neck
from larmor.recon.evaluation.segmentation import TISSUES
from larmor.recon.evaluation.simulated_heads import SimulatedHead, is_whole, simulate_heads
from larmor.storage.formats.nifti import read_volume
from larmor.storage.formats.nifti_writer import write_on_grid
from larmor.storage.formats.provenance import made_whole
from larmor.storage.formats.volumes import Volume
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.progress import Progress, silent

# proton density, T1 and T2 in ms at 3 T, about those of Stanisz et al., Magn. Reson. Med. 54:507-512 (2005); of fat the
# T2 that a train of fast echoes shows, of bone what its marrow leaves
RELAXATION: Mapping[str, tuple[float, float, float]] = {
    "csf": (1.0, 4000.0, 2000.0),
    "grey_matter": (0.82, 1820.0, 99.0),
    "white_matter": (0.70, 1080.0, 69.0),
    "bone": (0.10, 500.0, 40.0),
    "muscle": (0.80, 1410.0, 50.0),
    "fat": (0.90, 370.0, 130.0),
}
_OUTSIDE = ("bone", "muscle", "fat")  # of the brain, in the order of their brightness in T1
_FINE = 1.0  # mm, at which tissues are found
_PARTIAL_VOLUME = 0.6  # mm: standard deviation over which tissues mix
_TEXTURE, _TEXTURE_MM = 0.04, 3.0
_BIAS, _BIAS_MM = 0.15, 50.0
_BRIGHTEST = 1000.0  # a signal of 1, in the units of the file
_ABOUT = "simulated T2-weighted image from the tissues of a T1 image, with drawn texture, bias field and noise; no scan"


@dataclass(frozen=True)
class ContrastOptions:
    """A spin echo's `repetition_ms` and `echo_ms`; `noise` is the standard deviation in each of two channels, as a
    part of the signal of all protons."""

    repetition_ms: float = 4000.0
    echo_ms: float = 100.0
    noise: float = 0.01
    seed: int = 0


def simulate_contrast(
    heads: Sequence[Path], folder: Path, options: ContrastOptions, overwrite: bool = False, progress: Progress = silent
) -> list[SimulatedHead]:
    """Write `<head>.nii.gz` for each head, on its grid, with `<head>.json` beside: guides for `larmor convert`.

    A head whose brain is not found whole is left out, with a problem. Raises `InputError` for a file that is no NIfTI
    head, for a folder that is theirs, for a file that already exists (unless `overwrite`), and if no head is left.
    """
    for head in heads:
        if head.parent.resolve() == folder.resolve():
            raise InputError(f"--to {folder}: is where {head.name} lies, whose name is needed; choose another folder")

    def simulate(head: Path, name: str, path: Path, random: np.random.Generator) -> float:
        volume = read_volume(head)
        image, brain = t2_image(volume, options, random)
        if is_whole(brain):
            path.parent.mkdir(parents=True, exist_ok=True)
            assert volume.grid is not None, "of a file"
            about = {"subject": name, "synthetic": _ABOUT, **stated_beside(head, name)}
            with made_whole(path, name, about) as made:
                write_on_grid(volume.on_grid(image), volume.grid, made, "simulation")
        return brain

    return simulate_heads(simulate, heads, folder, ".nii.gz", options.seed, overwrite, progress)


def t2_image(head: Volume, options: ContrastOptions, random: np.random.Generator) -> tuple[np.ndarray, float]:
    """(x, y, z) float32 on the voxels of `head`; and the volume of its brain in litres."""
    even = resampled(head.data, head.voxel_size, _FINE)
    upper = tissues_of(without_neck(even, _FINE), _FINE)
    classes = np.zeros(even.shape, np.uint8)
    classes[..., even.shape[2] - upper.shape[2] :] = upper
    signal = tissue_signal(classes, even, options)
    fields = _field(signal.shape, _TEXTURE, _TEXTURE_MM, random) * _field(signal.shape, _BIAS, _BIAS_MM, random)
    image = resize(signal * fields, head.data.shape, order=1, mode="edge", anti_aliasing=False)
    real, imaginary = options.noise * random.standard_normal((2, *image.shape), dtype=np.float32)
    return _BRIGHTEST * np.hypot(image + real, imaginary), float((classes > 0).sum()) * _FINE**3 / 1e6


def tissue_signal(classes: np.ndarray, t1: np.ndarray, options: ContrastOptions) -> np.ndarray:
    """(x, y, z) float32: the signal of `classes` (0, then `TISSUES`), and of the three classes of the head around them,
    by the brightness of `t1`."""
    signal = np.zeros(classes.shape, np.float32)
    outside = head_of(t1) & (classes == 0)
    if outside.any() and np.ptp(t1[outside]) > 0:
        kinds = np.digitize(t1, threshold_multiotsu(t1[outside], classes=len(_OUTSIDE)))
        for kind, name in enumerate(_OUTSIDE):
            signal[outside & (kinds == kind)] = spin_echo(name, options)
    for tissue, name in enumerate(TISSUES, start=1):
        signal[classes == tissue] = spin_echo(name, options)
    return np.asarray(ndimage.gaussian_filter(signal, _PARTIAL_VOLUME / _FINE))


def spin_echo(tissue: str, options: ContrastOptions) -> float:
    """Density · (1 − exp(−TR / T1)) · exp(−TE / T2)."""
    density, t1, t2 = RELAXATION[tissue]
    return float(density * (1 - np.exp(-options.repetition_ms / t1)) * np.exp(-options.echo_ms / t2))


def _field(shape: tuple[int, ...], strength: float, width: float, random: np.random.Generator) -> np.ndarray:
    """Smooth factors about 1, `strength` more or less, over `width` mm."""
    noise = random.standard_normal(tuple(-(-size // 4) for size in shape), dtype=np.float32)
    field = ndimage.gaussian_filter(noise, width / _FINE / 4)
    whole = np.asarray(resize(field / field.std(), shape, order=1, mode="edge", anti_aliasing=False), np.float32)
    return 1 + strength * whole
