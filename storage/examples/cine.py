"""Synthetic beating hearts: a short-axis slice through the chest in 24 frames, where no real cine can be had."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from larmor.storage.formats.provenance import made_whole
from larmor.storage.objects.errors import InputError

NUM_FRAMES, MATRIX, _PIXEL = 24, 128, 2.5  # pixels across; mm
_FINE = 2  # times the matrix, averaged for partial volume
_FLIP, _TR = math.radians(50), 3.0  # balanced SSFP; ms
# T1 and T2 in ms and proton density at 1.5 T (textbook values)
_TISSUES = {
    "lung": (1200.0, 40.0, 0.15),
    "fat": (290.0, 85.0, 0.95),
    "muscle": (1000.0, 45.0, 0.80),
    "blood": (1450.0, 240.0, 0.95),
    "liver": (590.0, 46.0, 0.75),
}


def write_cine(folder: Path, num_subjects: int, seed: int) -> list[Path]:
    """Synthetic hearts `cine01.nii.gz`, …: 4-D NIfTI (128, 128, 1, 24) int16, 2.5 mm, one heartbeat.

    `cineNN.json` beside each says `synthetic`. Subject NN depends on `seed` and NN alone.

    Raises `InputError` if `num_subjects` is not within 1 and 99.
    """
    import nibabel

    if not 1 <= num_subjects <= 99:
        raise InputError(f"{num_subjects} phantoms requested; choose 1 to 99")
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(1, num_subjects + 1):
        subject, rng = f"cine{number:02d}", np.random.default_rng([seed, number])
        heart = draw_heart(rng)
        frames = cine_frames(heart)
        # rows run anterior → posterior and columns right → left, as they are shown
        image: Any = nibabel.Nifti1Image(frames[:, ::-1, ::-1].transpose(2, 1, 0)[:, :, None], _affine())
        image.header.set_zooms((_PIXEL, _PIXEL, 8.0, heart.beat / NUM_FRAMES))
        image.header.set_xyzt_units("mm", "sec")
        about = {"subject": subject, "synthetic": True, "source": f"cine phantom of a short-axis slice, seed {seed}"}
        paths.append(folder / f"{subject}.nii.gz")
        with made_whole(paths[-1], subject, {**about, "licence": "Apache-2.0"}) as made:
            nibabel.save(image, made)
    return paths


def _affine() -> np.ndarray:
    affine = np.diag([_PIXEL, _PIXEL, 8.0, 1.0])
    affine[:2, 3] = -_PIXEL * MATRIX / 2
    return affine


@dataclass(frozen=True)
class Heart:
    """What differs between subjects. Lengths are in mm, places (down, right) from the centre of the image.

    `ejection` is the part of the left ventricle's radius that a contraction takes; `beat` is in seconds, `breath` the
    way of the liver during the beat, `fat` the thickness of the layer under the skin.
    """

    centre: tuple[float, float]
    radius: float
    wall: float
    ejection: float
    beat: float
    breath: float
    breath_phase: float
    chest: tuple[float, float]
    fat: float
    papillary_angle: float
    shading: tuple[float, float]
    texture: np.ndarray


def draw_heart(rng: np.random.Generator) -> Heart:
    """A subject at random."""
    uniform = rng.uniform
    return Heart(
        centre=(float(uniform(-18, -4)), float(uniform(14, 30))),
        radius=float(uniform(22, 28)),
        wall=float(uniform(8, 11)),
        ejection=float(uniform(0.35, 0.5)),
        beat=float(uniform(0.7, 1.1)),
        breath=float(uniform(2, 6)),
        breath_phase=float(uniform(0, 2 * math.pi)),
        chest=(float(uniform(92, 106)), float(uniform(128, 144))),
        fat=float(uniform(8, 16)),
        papillary_angle=float(uniform(0, 2 * math.pi)),
        shading=(float(uniform(-0.2, 0.2)), float(uniform(-0.2, 0.2))),
        texture=rng.standard_normal((_FINE * MATRIX, _FINE * MATRIX)),
    )


def contraction(phase: float) -> float:
    """How far the ventricle is contracted, 0 to 1, at a phase of the beat: fast in, slow out.

    Contraction takes the first third of the beat, filling the next half, and then the heart rests.
    """
    if phase < 0.35:
        return 0.5 - 0.5 * math.cos(math.pi * phase / 0.35)
    if phase < 0.85:
        return 0.5 + 0.5 * math.cos(math.pi * (phase - 0.35) / 0.5)
    return 0.0


def signal(tissue: str) -> float:
    """The steady state of balanced SSFP on resonance, at an echo time of TR / 2."""
    t1, t2, density = _TISSUES[tissue]
    e1, e2 = math.exp(-_TR / t1), math.exp(-_TR / t2)
    steady = math.sin(_FLIP) * (1 - e1) / (1 - (e1 - e2) * math.cos(_FLIP) - e1 * e2)
    return density * steady * math.exp(-_TR / 2 / t2)


def cine_frames(heart: Heart) -> np.ndarray:
    """(24, 128, 128) int16: anterior at the top, the subject's right at the left; 0 outside the body."""
    from scipy import ndimage

    texture = ndimage.gaussian_filter(heart.texture, 4.0)
    axis = (np.arange(_FINE * MATRIX) + 0.5) * _PIXEL / _FINE - _PIXEL * MATRIX / 2
    down, right = axis[:, None], axis[None, :]
    half = axis[-1]
    shade = 1 + heart.shading[0] * down / half + heart.shading[1] * right / half
    shade = shade * (1 + 0.05 * texture / texture.std())
    frames = []
    for number in range(NUM_FRAMES):
        image = np.zeros((_FINE * MATRIX, _FINE * MATRIX))
        for tissue, inside in _shapes(heart, number / NUM_FRAMES, down, right):
            image[np.broadcast_to(inside, image.shape)] = signal(tissue)
        coarse = (image * shade).reshape(MATRIX, _FINE, MATRIX, _FINE).mean(axis=(1, 3))
        frames.append(coarse)
    return np.rint(np.stack(frames) * 6000).astype(np.int16)


def _shapes(heart: Heart, phase: float, down: np.ndarray, right: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Tissue and where it is, each over those before it."""
    height, width = heart.chest
    yield "fat", _ellipse(down, right, (0, 0), (height, width))
    inner = (height - heart.fat, width - heart.fat)
    yield "muscle", _ellipse(down, right, (0, 0), inner)
    cavity = _ellipse(down, right, (0, 0), (inner[0] - 12, inner[1] - 12))
    for side in (-1, 1):
        yield "lung", cavity & _ellipse(down, right, (0, side * 0.52 * width), (0.8 * height, 0.42 * width))
    moved = heart.breath * math.sin(2 * math.pi * phase + heart.breath_phase)
    yield "liver", cavity & _ellipse(down, right, (0.66 * height + moved, -0.38 * width), (0.42 * height, 0.5 * width))
    yield "muscle", _ellipse(down, right, (0.78 * height, 0), (18, 20))  # around the spine
    yield "blood", _ellipse(down, right, (0.5 * height, 14), (10, 10))  # descending aorta
    yield from _heart_shapes(heart, phase, down, right, 0.4 * moved)


def _heart_shapes(
    heart: Heart, phase: float, down: np.ndarray, right: np.ndarray, moved: float
) -> Iterator[tuple[str, np.ndarray]]:
    contracted = contraction(phase)
    row, column = heart.centre[0] + moved, heart.centre[1]
    cavity = heart.radius * (1 - heart.ejection * contracted)
    # the area of the muscle stays: a wall thickens as the cavity shrinks
    area = (heart.radius + heart.wall) ** 2 - heart.radius**2
    outer = math.sqrt(cavity**2 + area)
    right_size = 1 - 0.6 * heart.ejection * contracted
    beside = column - 0.75 * outer
    yield (
        "muscle",
        _ellipse(down, right, (row, beside), (0.95 * heart.radius + 3, (1.15 * heart.radius + 3) * right_size)),
    )
    yield (
        "blood",
        _ellipse(down, right, (row, beside), (0.95 * heart.radius * right_size, 1.15 * heart.radius * right_size)),
    )
    yield "muscle", _ellipse(down, right, (row, column), (outer, outer))
    yield "blood", _ellipse(down, right, (row, column), (cavity, cavity))
    for turn in (0.0, 2.4):
        angle = heart.papillary_angle + turn
        place = (row + 0.62 * cavity * math.sin(angle), column + 0.62 * cavity * math.cos(angle))
        yield "muscle", _ellipse(down, right, place, (0.17 * heart.radius, 0.17 * heart.radius))


def _ellipse(
    down: np.ndarray, right: np.ndarray, centre: tuple[float, float], half_axes: tuple[float, float]
) -> np.ndarray:
    inside = ((down - centre[0]) / half_axes[0]) ** 2 + ((right - centre[1]) / half_axes[1]) ** 2 <= 1
    return np.asarray(inside)
