"""Simulated FDG of a real head: activity and attenuation maps from the tissues that its T1 image is segmented into.

What it is not: real PET. The activity is constant within a tissue but for a texture and lesions that are drawn, bone
(dark in T1) attenuates as soft tissue does, and the segmentation takes some muscle for brain in low slices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from larmor.recon.evaluation.head_tissues import head_of, resampled, stated_beside, tissues_of, without_neck
from larmor.recon.evaluation.segmentation import TISSUES
from larmor.recon.evaluation.simulated_heads import SimulatedHead, is_whole, simulate_heads
from larmor.storage.formats.nifti import read_volume
from larmor.storage.formats.provenance import made_whole
from larmor.storage.formats.volumes import Volume, centre_fit, image_to_kspace
from larmor.storage.objects.progress import Progress, silent

# relative to white matter; what is of the head and not of the brain counts as scalp
ACTIVITY: Mapping[str, float] = {"csf": 0.2, "grey_matter": 4.0, "white_matter": 1.0, "scalp": 0.6}
ATTENUATION = 0.096  # per cm, of water at 511 keV
_LEAST_BRAIN = 2000.0  # mm² of a slice that is kept
_TEXTURE = 0.1
_ABOUT = (
    "simulated FDG PET: activity (grey : white : scalp : CSF = 4 : 1 : 0.6 : 0.2) and attenuation from the tissues of "
    "a T1 image, with drawn texture and lesions; no real PET"
)


@dataclass(frozen=True)
class FdgOptions:
    """`pixel_mm` of the maps in all three axes, `matrix` height and width of a slice; one in `every` slices is kept.
    Tissues are found at `fine_mm`, for which `SegmentationConfig` is made."""

    pixel_mm: float = 2.0
    matrix: int = 128
    every: int = 1
    seed: int = 0
    fine_mm: float = 1.0


def simulate_pet(
    heads: Sequence[Path], folder: Path, options: FdgOptions, overwrite: bool = False, progress: Progress = silent
) -> list[SimulatedHead]:
    """Write `<head>.npy` for each head, which `larmor convert` reads, with `<head>.json` beside.

    An array is (slice, 2, matrix, matrix) complex64: the centred transforms of activity and attenuation (per cm) of
    axial slices, anterior at the top. A head whose brain is not found whole is left out, with a problem. Raises
    `InputError` for a file that is no NIfTI head, for one that already exists (unless `overwrite`), and if no head is
    left.
    """

    def simulate(head: Path, name: str, path: Path, random: np.random.Generator) -> float:
        maps, brain = fdg_maps(read_volume(head), options, random)
        if is_whole(brain):
            fitted = centre_fit(maps[:: options.every], (options.matrix, options.matrix))
            path.parent.mkdir(parents=True, exist_ok=True)
            about = {"subject": name, "modality": "pet", "synthetic": _ABOUT, **stated_beside(head, name)}
            with made_whole(path, name, about) as made:
                np.save(made, image_to_kspace(fitted))
        return brain

    return simulate_heads(simulate, heads, folder, ".npy", options.seed, overwrite, progress)


def fdg_maps(head: Volume, options: FdgOptions, random: np.random.Generator) -> tuple[np.ndarray, float]:
    """(slice, 2, height, width) float32, activity and attenuation of the axial slices with brain, inferior first; and
    the brain's volume in litres."""
    fine = options.fine_mm
    even = without_neck(resampled(head.data, head.voxel_size, fine), fine)
    classes = tissues_of(even, fine)
    maps = maps_of_tissues(classes, head_of(even), fine, random)
    coarse = np.stack([resampled(part, (fine,) * 3, options.pixel_mm) for part in maps])[:, ::-1, ::-1]
    area = (classes > 0).sum(axis=(0, 1)) * fine**2
    middles = ((np.arange(coarse.shape[-1]) + 0.5) * options.pixel_mm / fine).astype(int)
    brain = area[np.minimum(middles, len(area) - 1)] >= _LEAST_BRAIN
    return np.ascontiguousarray(coarse[..., brain].transpose(3, 0, 2, 1)), float(area.sum()) * fine / 1e6


def maps_of_tissues(classes: np.ndarray, head: np.ndarray, pixel: float, random: np.random.Generator) -> np.ndarray:
    """(2, x, y, z) float32: activity and attenuation of `classes` (0, then `TISSUES`) in the bool mask `head`."""
    inside = head | (classes > 0)
    activity = np.where(inside, ACTIVITY["scalp"], 0).astype(np.float32)
    for tissue, name in enumerate(TISSUES, start=1):
        activity[classes == tissue] = ACTIVITY[name]
    activity *= _texture(activity.shape, pixel, random)
    _add_lesions(activity, np.argwhere(classes > 1), pixel, random)
    return np.stack([activity, np.where(inside, ATTENUATION, 0).astype(np.float32)])


def _texture(shape: tuple[int, ...], pixel: float, random: np.random.Generator) -> np.ndarray:
    """Smooth factors about 1, 10 % more or less."""
    field = ndimage.gaussian_filter(random.standard_normal(shape, dtype=np.float32), 8 / pixel)
    return 1 + _TEXTURE * field / field.std()


def _add_lesions(activity: np.ndarray, brain: np.ndarray, pixel: float, random: np.random.Generator) -> None:
    """Up to three balls of 4 to 10 mm radius within the brain, hot or cold, in place."""
    for _ in range(random.integers(0, 4) if len(brain) else 0):
        centre, radius = brain[random.integers(len(brain))], random.uniform(4, 10) / pixel
        factor = random.uniform(1.5, 2) if random.random() < 0.5 else random.uniform(0.3, 0.7)
        axes = np.ogrid[tuple(slice(size) for size in activity.shape)]
        distance = sum((axis - place) ** 2 for axis, place in zip(axes, centre, strict=True))
        activity[distance <= radius**2] *= factor
