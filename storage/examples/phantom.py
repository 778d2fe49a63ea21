"""Synthetic heads, only when asked for by name: where no package index can be reached, and for tests."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from larmor.storage.formats.provenance import made_whole
from larmor.storage.objects.errors import InputError

# centre and half axes in units of 108 mm (x right, y anterior, z superior), turn about z in degrees, added intensity:
# the 3-D Shepp-Logan head (Kak & Slaney 1988, table 3.2), contrasts raised as by Toft (1996), the brain brighter
_ELLIPSOIDS = (
    ((0.0, 0.0, 0.0), (0.69, 0.92, 0.81), 0.0, 1.0),
    ((0.0, -0.0184, 0.0), (0.6624, 0.874, 0.78), 0.0, -0.6),
    ((0.22, 0.0, 0.0), (0.11, 0.31, 0.22), -18.0, -0.2),
    ((-0.22, 0.0, 0.0), (0.16, 0.41, 0.28), 18.0, -0.2),
    ((0.0, 0.35, -0.15), (0.21, 0.25, 0.41), 0.0, 0.1),
    ((0.0, 0.1, 0.25), (0.046, 0.046, 0.05), 0.0, 0.1),
    ((0.0, -0.1, 0.25), (0.046, 0.046, 0.05), 0.0, 0.1),
    ((-0.08, -0.605, 0.0), (0.046, 0.023, 0.05), 0.0, 0.1),
    ((0.0, -0.605, 0.0), (0.023, 0.023, 0.02), 0.0, 0.1),
    ((0.06, -0.605, 0.0), (0.023, 0.046, 0.02), 0.0, 0.1),
)
_PHANTOM_SHAPE, _PHANTOM_VOXEL = (176, 128, 192), (1.0, 1.6, 1.0)


def write_phantom(folder: Path, num_subjects: int, seed: int) -> list[Path]:
    """Synthetic heads `phantom01.nii.gz`, … for trying things out: varied 3-D Shepp-Logan phantoms with texture.

    Each is a float32 NIfTI (176, 128, 192) of 1.0×1.6×1.0 mm voxels in RAS+ order, about 96 of its coronal slices
    hold more than a tenth of foreground, and `phantomNN.json` beside it says `synthetic`. Subject NN depends on
    `seed` and NN alone.

    Raises `InputError` if `num_subjects` is not within 1 and 99.
    """
    import nibabel

    if not 1 <= num_subjects <= 99:
        raise InputError(f"{num_subjects} phantoms requested; choose 1 to 99")
    folder.mkdir(parents=True, exist_ok=True)
    affine = np.diag([*_PHANTOM_VOXEL, 1.0])
    affine[:3, 3] = [-voxel * size / 2 for voxel, size in zip(_PHANTOM_VOXEL, _PHANTOM_SHAPE, strict=True)]
    paths = []
    for number in range(1, num_subjects + 1):
        subject = f"phantom{number:02d}"
        volume = phantom_volume(np.random.default_rng([seed, number]))
        image: Any = nibabel.Nifti1Image(volume, affine)
        image.header.set_xyzt_units("mm")
        about = {"subject": subject, "synthetic": True, "source": f"3-D Shepp-Logan phantom, seed {seed}"}
        paths.append(folder / f"{subject}.nii.gz")
        with made_whole(paths[-1], subject, {**about, "licence": "Apache-2.0"}) as made:
            nibabel.save(image, made)
    return paths


def phantom_volume(generator: np.random.Generator) -> np.ndarray:
    """One phantom (176, 128, 192), float32, whole numbers from 0 to about 1,600: air is low noise, never all zero."""
    from scipy import ndimage

    axes = [
        (np.arange(size, dtype=np.float32) - size / 2) * (voxel / 108.0)
        for size, voxel in zip(_PHANTOM_SHAPE, _PHANTOM_VOXEL, strict=True)
    ]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    stretch = generator.uniform(0.92, 1.03, 3)
    volume = np.zeros(_PHANTOM_SHAPE, np.float32)
    for index, (centre, half_axes, degrees, intensity) in enumerate(_ELLIPSOIDS):
        vary = 0.01 if index < 2 else 0.15  # the skull keeps its thickness and the brain its brightness
        jitter, shift = generator.uniform(1.0 - vary, 1.0 + vary, 3), generator.uniform(-vary, vary, 3) / 8.0
        a, b, c = (np.array(half_axes) * stretch * jitter).tolist()
        cx, cy, cz = ((np.array(centre) + shift) * stretch).tolist()
        turn = math.radians(degrees + 30.0 * generator.uniform(-vary, vary))
        u = (x - cx) * math.cos(turn) + (y - cy) * math.sin(turn)
        v = (y - cy) * math.cos(turn) - (x - cx) * math.sin(turn)
        inside = (u / a) ** 2 + (v / b) ** 2 + ((z - cz) / c) ** 2 <= 1.0
        volume[inside] += intensity * generator.uniform(1.0 - vary, 1.0 + vary)
    volume = np.clip(volume, 0.0, None)
    # smooth texture and a coil-like shading, so that a piecewise-constant guess is not the answer
    shading = generator.uniform(-0.25, 0.25, 3).tolist()
    volume *= 1.0 + shading[0] * x + shading[1] * y + shading[2] * z
    for sigma in (2.0, 6.0):
        field = ndimage.gaussian_filter(generator.standard_normal(_PHANTOM_SHAPE, dtype=np.float32), sigma)
        volume *= 1.0 + 0.07 * field / field.std()
    noise = generator.standard_normal((2, *_PHANTOM_SHAPE), dtype=np.float32) * 4.0
    return np.rint(np.hypot(volume * 1000.0 + noise[0], noise[1])).astype(np.float32)
