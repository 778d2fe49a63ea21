"""One scan of measured k-space as a `Source`: reads a slice when asked, checks it, holds nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from larmor.storage.formats.source import Facts
from larmor.storage.objects.errors import InputError

RESIDUE = 1e-6
"""Of a slice's largest value: less is what single-precision transforms leave of zeros, and no measurement."""


@dataclass
class MeasuredKspace:
    """The `Source` of every format that holds k-space.

    `read` gives slice `index` as (coil, height, width), centred and orthonormal, of any complex type;
    `positions` are those of the slices in mm where the file states them; `mask` (slice, height, width) bool
    is what the file says was measured, None if it does not say; `release` closes the file;
    `notes` are those of `Source`.
    """

    file: Path
    read: Callable[[int], np.ndarray]
    num_slices: int
    slice_shape: tuple[int, int, int]
    voxel_size: tuple[float, float, float] | None = None
    about: Facts = field(default_factory=dict)
    positions: Sequence[float] = ()
    release: Callable[[], None] = lambda: None
    mask: np.ndarray | None = field(default=None, kw_only=True)
    notes: Sequence[str] = field(default=(), kw_only=True)
    plane: str = field(default="acquired", init=False)
    offset: float = 0.0

    def kept_slices(self) -> Sequence[int]:
        """The slices with any non-zero value; reads them one by one.

        Raises `InputError` for a slice that cannot be read, is not finite or misses lines.
        """
        kept = []
        for index in range(self.num_slices):
            kspace = self.kspace(index)
            if kspace.any():
                self.check_lines(index, kspace)
                kept.append(index)
        return kept

    def position(self, index: int) -> float:
        """In mm; without stated positions a multiple of the slice size, and without that the index."""
        if len(self.positions):
            return float(self.positions[index])
        return index * self.voxel_size[2] if self.voxel_size else float(index)

    def kspace(self, index: int) -> np.ndarray:
        """(coil, height, width) complex64, a copy of its own.

        Raises `InputError` if the slice cannot be read or holds a value that is not finite.
        """
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # what does not fit complex64 is reported below
                kspace = np.array(self.read(index), dtype=np.complex64, order="C")
        except InputError:
            raise
        except (OSError, ValueError) as error:
            raise InputError(f"{self.file}: slice {index} cannot be read ({error}); fetch the file again") from error
        bad = int(kspace.size - np.isfinite(kspace).sum())
        if bad:
            raise InputError(
                f"{self.file}: slice {index} has {bad} of {kspace.size} values that are not finite complex64 "
                "numbers (NaN, infinite or too large); repair or leave out the file"
            )
        assert kspace.shape == self.slice_shape
        return kspace

    def measured(self, index: int, kspace: np.ndarray) -> np.ndarray:
        """(height, width) bool: where slice `index` was measured, as the file says, else where there is more than
        a residue."""
        return _filled(kspace) if self.mask is None else self.mask[index]

    def close(self) -> None:
        self.release()

    def check_lines(self, index: int, kspace: np.ndarray) -> None:
        """Refuse k-space with empty lines between measured ones; empty margins are mere zero-filling."""
        points = _filled(kspace)
        for axis, lines in ((0, "rows"), (1, "columns")):
            filled = np.asarray(points.any(axis=1 - axis))
            inside = filled[filled.argmax() : filled.size - filled[::-1].argmax()]
            missing = int(inside.size - inside.sum())
            if missing:
                raise InputError(
                    f"{self.file}: slice {index} is undersampled: {missing} of {inside.size} k-space {lines} are "
                    "empty; no fully sampled target can be made from it, use fully sampled data"
                )


def _filled(kspace: np.ndarray) -> np.ndarray:
    """(height, width) bool: where any coil has more than a residue of the largest value of all."""
    largest = np.zeros(kspace.shape[1:], np.float32)
    for coil in kspace:  # one at a time, to hold no second slice
        np.maximum(largest, np.abs(coil), out=largest)
    return np.asarray(largest > RESIDUE * largest.max())


def num_gaps(measured: np.ndarray) -> int:
    """How many points (…, height, width) were left out between measured ones of their row or column."""
    between = np.zeros(measured.shape, bool)
    for axis in (-2, -1):
        before = np.logical_or.accumulate(measured, axis)
        after = np.flip(np.logical_or.accumulate(np.flip(measured, axis), axis), axis)
        between |= before & after
    return int((between & ~measured).sum())


def only_file(files: Sequence[Path]) -> Path:
    """The one file of a scan. Raises `InputError` for any other number."""
    if len(files) != 1:
        named = ", ".join(str(path) for path in files) or "none"
        raise InputError(f"{len(files)} files are given ({named}); this format has one file per scan, give just one")
    return files[0]
