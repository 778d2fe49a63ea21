"""The tissues of a T1 head on a grid of cubes: what simulations of other images begin with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu

from larmor.recon.evaluation.segmentation import SegmentationConfig, segment
from larmor.storage.formats.nifti import SUFFIXES
from larmor.storage.objects.errors import InputError

BRAIN = (0.8, 2.2)  # litres: with less the segmentation has lost a part, with more it holds muscle
_LEAST_HEAD = 500.0  # mm² of the highest slice of a head
_HEIGHT = 150.0  # mm from the top of a head to below its brain


def without_neck(image: np.ndarray, pixel: float) -> np.ndarray:
    """The part of (x, y, z) that is at most `_HEIGHT` mm below the top of the head: no brain reaches further, and the
    segmentation would take muscles of the neck for brain."""
    bright = np.sqrt(np.maximum(image - image.min(), 0))
    area = (bright > threshold_otsu(bright)).sum(axis=(0, 1)) * pixel**2
    top = int(np.flatnonzero(area > _LEAST_HEAD).max(initial=0))
    return image[..., max(0, top - round(_HEIGHT / pixel)) :]


def resampled(image: np.ndarray, sizes: Sequence[float], pixel: float) -> np.ndarray:
    """(x, y, z) of voxels of these `sizes`, at cubes of `pixel` mm; smoothed before where the voxels are finer."""
    ratios = [size / pixel for size in sizes]
    smooth = ndimage.gaussian_filter(image, [max(0.0, 0.5 * (1 / ratio - 1)) for ratio in ratios])
    return np.asarray(ndimage.zoom(smooth, ratios, order=1, mode="nearest", grid_mode=True))


def tissues_of(image: np.ndarray, pixel: float) -> np.ndarray:
    """(x, y, z) uint8: 0, then `TISSUES`; segmented as a volume of coronal slices, which `segment` expects."""
    stack = image[::-1, :, ::-1].transpose(1, 2, 0)
    low, high = float(stack.min()), float(stack.max())
    scale = np.tile([low, high], (len(stack), 1))
    found = segment((stack - low) / (high - low), SegmentationConfig(spacing=(pixel, pixel, pixel)), scale)
    return found.classes.transpose(2, 0, 1)[::-1, :, ::-1]


def head_of(image: np.ndarray) -> np.ndarray:
    """(x, y, z) bool: what is no air, its largest piece, without holes in an axial slice."""
    bright = np.sqrt(np.maximum(image - image.min(), 0))
    solid = np.pad(bright > threshold_otsu(bright), 2, mode="edge")  # else the closing would take the outermost slices
    solid = ndimage.binary_closing(solid, iterations=2)[2:-2, 2:-2, 2:-2]
    pieces, count = ndimage.label(solid)
    largest = pieces == 1 + int(np.argmax(ndimage.sum_labels(solid, pieces, np.arange(1, count + 1))))
    return np.stack([ndimage.binary_fill_holes(largest[..., z]) for z in range(image.shape[2])], axis=-1)


def find_heads(places: Sequence[Path]) -> list[Path]:
    """NIfTI files, and those in folders, by name. Raises `InputError` where there is none."""
    found: list[Path] = []
    for place in places:
        inside = sorted(path for path in place.iterdir() if path.name.endswith(SUFFIXES)) if place.is_dir() else [place]
        if not inside:
            raise InputError(f"{place}: holds no NIfTI file; `larmor fetch heads` brings some")
        found += inside
    return found


def stated_beside(head: Path, name: str) -> dict[str, Any]:
    """Licence and origin of a head, as they stand beside it."""
    beside = head.with_name(f"{name}.json")
    found = json.loads(beside.read_text()) if beside.is_file() else {}
    return {key: found[key] for key in ("package", "version", "member", "licence", "source") if key in found}
