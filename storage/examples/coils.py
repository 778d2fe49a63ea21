"""Simulated coils: images as several coils would measure them, for systems that need the k-space of all coils."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from larmor.storage.formats.arrays import MagnitudeImages
from larmor.storage.formats.centred_fft import to_image, to_kspace
from larmor.storage.formats.measured import MeasuredKspace
from larmor.storage.formats.provenance import made_whole, provenance
from larmor.storage.formats.recognise import open_source
from larmor.storage.formats.source import Source, SourceOptions, SourceRef
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.progress import Progress, silent

_RADIUS = 1.25  # of the circle of coils; the image reaches from -1 to 1
_REACH = 0.9  # of a coil: its sensitivity falls with distance as a Gaussian of this width
_KEPT = ("package", "version", "member", "licence")  # of what stands beside an image, besides its source


@dataclass(frozen=True)
class CoilOptions:
    """How coils see the images: how many, and the standard deviation of the `noise` in real and imaginary part of each
    point of k-space, as a part of the scan's largest magnitude. `matrix` and `min_foreground` cut volumes into slices,
    of which one in `every` is measured. Another `seed` gives another array, other positions and phases."""

    num_coils: int = 8
    noise: float = 0.0
    matrix: int = 256
    min_foreground: float = 0.15
    every: int = 1
    seed: int = 0


def simulate_coils(
    refs: Sequence[SourceRef],
    folder: Path,
    options: CoilOptions,
    overwrite: bool = False,
    progress: Progress = silent,
) -> list[Path]:
    """For each scan of images `NAME.npy` in `folder`, fully sampled k-space (slice, coil, height, width) complex64, and
    `NAME.json` beside it, which says that it is simulated. `larmor convert` reads both.

    All scans are measured by one array of coils (`smooth_maps`), which the seed decides. How the head lies in it and
    its smooth phase depend on the seed and the scan's name. Memory: the slices as images, and one slice of all coils.

    Raises `InputError` for scans that are not images, for options that are impossible, and for a file that exists,
    unless `overwrite`.
    """
    _check(options)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{ref.name}.npy" for ref in refs]
    for path in paths:
        if path.exists() and not overwrite:
            raise InputError(f"{path}: already exists; pass --overwrite or choose another folder")
    for number, (ref, path) in enumerate(zip(refs, paths, strict=True), start=1):
        with open_source(ref, SourceOptions((options.matrix, options.matrix), options.min_foreground)) as source:
            if isinstance(source, MeasuredKspace) and not isinstance(source, MagnitudeImages):
                raise InputError(f"{ref.files[0]}: is k-space already; give images (NIfTI, DICOM or real .npy)")
            _measure(ref, source, path, options)
        progress("scans", number, len(refs))
    return paths


def _check(options: CoilOptions) -> None:
    if not 1 <= options.num_coils <= 128:
        raise InputError(f"{options.num_coils} coils requested; choose 1 to 128")
    if not 0 <= options.noise < np.inf:
        raise InputError(f"noise of {options.noise} requested; it is a standard deviation, use 0 or more, such as 0.01")
    if options.every < 1:
        raise InputError(f"one slice in {options.every} requested; use 1 or more")


def _measure(ref: SourceRef, source: Source, path: Path, options: CoilOptions) -> None:
    kept = source.kept_slices()[:: options.every]
    if not len(kept):
        raise InputError(
            f"{ref.files[0]}: no slice has {options.min_foreground:.0%} foreground; lower --min-foreground"
        )
    size = source.slice_shape[1:]
    rng = np.random.default_rng([options.seed, zlib.crc32(ref.name.encode())])
    maps = smooth_maps(options.num_coils, size, np.random.default_rng(options.seed), Lie.drawn(rng))
    phase = _ObjectPhase(size, rng)
    images = [to_image(source.kspace(int(index))[0]).real for index in kept]
    noise = options.noise * max(float(np.abs(image).max()) for image in images)
    with made_whole(path, path.stem, _about(ref, source, options)) as made:
        shape = (len(kept), options.num_coils, *size)
        stored = np.lib.format.open_memmap(made, mode="w+", dtype=np.complex64, shape=shape)
        for place, image in enumerate(images):
            kspace = to_kspace(maps * (image * phase.of(place / max(1, len(kept) - 1))))
            drawn = rng.standard_normal((2, *kspace.shape)) * noise if noise else np.zeros((2, 1))
            stored[place] = kspace + drawn[0] + 1j * drawn[1]
        stored.flush()
        del stored


def _about(ref: SourceRef, source: Source, options: CoilOptions) -> dict[str, object]:
    stated = provenance(ref, source, ())
    known = stated.get("source", ref.name)
    return {
        "subject": ref.subject,
        "synthetic": True,
        **{key: stated[key] for key in _KEPT if key in stated},
        "source": f"{known}; {options.num_coils} simulated coils, noise {options.noise:g}, seed {options.seed}",
    }


@dataclass(frozen=True)
class Lie:
    """How a head lies among the coils: their circle is moved by `shift` (rows, columns), of half the image, and turned
    by `turn` radians."""

    shift: tuple[float, float] = (0.0, 0.0)
    turn: float = 0.0

    @staticmethod
    def drawn(rng: np.random.Generator) -> Lie:
        """A few per cent off the middle, a few degrees turned."""
        rows, columns, turn = rng.uniform(-0.05, 0.05, 3).tolist()
        return Lie((rows, columns), turn)


def smooth_maps(
    num_coils: int, size: tuple[int, int], array: np.random.Generator, lie: Lie | None = None
) -> np.ndarray:
    """Sensitivity maps (coil, height, width) complex64 of coils on a circle around the image, Σ|map|² = 1.

    A coil's sensitivity falls with distance and turns its phase along the way. `array` draws where the first coil
    stands, how strong each is and its phase: what is the same for all heads in it.
    """
    lie = lie or Lie()
    rows, columns = np.meshgrid(*(np.linspace(-1, 1, length) for length in size), indexing="ij")
    first = array.random()
    each = (num_coils, 1, 1)
    strength, slope, offset = array.uniform(0.8, 1.2, each), array.uniform(0.5, 1, each), array.uniform(-3, 3, each)
    angles = 2 * np.pi * (np.arange(num_coils) / num_coils + first)[:, None, None] + lie.turn
    y, x = _RADIUS * np.sin(angles) + lie.shift[0], _RADIUS * np.cos(angles) + lie.shift[1]
    distance = (rows - y) ** 2 + (columns - x) ** 2
    phase = slope * (rows * np.sin(angles) + columns * np.cos(angles)) + offset
    maps = strength * np.exp(-distance / (2 * _REACH**2) + 1j * phase)
    return (maps / np.linalg.norm(maps, axis=0)).astype(np.complex64)


class _ObjectPhase:
    """A smooth phase of the object, a polynomial of second degree, which drifts from the first slice to the last."""

    def __init__(self, size: tuple[int, int], rng: np.random.Generator) -> None:
        rows, columns = np.meshgrid(*(np.linspace(-1, 1, length) for length in size), indexing="ij")
        self._terms = np.stack([np.ones(size), rows, columns, rows * columns, rows**2, columns**2])
        self._ends = rng.uniform(-1, 1, (2, len(self._terms)))

    def of(self, place: float) -> np.ndarray:
        """exp(i · phase) (height, width), `place` from 0 to 1 through the slices."""
        weights = self._ends[0] + 0.3 * place * self._ends[1]
        return np.exp(1j * np.tensordot(weights, self._terms, axes=1))
