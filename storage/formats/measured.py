"""One scan of measured k-space as a `Source`: reads a slice when asked, checks it, holds nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from storage.errors import InputError


@dataclass
class MeasuredKspace:
    """The `Source` of every format that holds k-space.

    `read` gives slice `index` as (coil, height, width), centred and orthonormal, of any complex type;
    `positions` are those of the slices in mm where the file states them; `release` closes the file.
    """

    file: Path
    read: Callable[[int], np.ndarray]
    num_slices: int
    slice_shape: tuple[int, int, int]
    voxel_size: tuple[float, float, float] | None = None
    about: dict[str, Any] = field(default_factory=dict)
    positions: Sequence[float] = ()
    release: Callable[[], None] = lambda: None
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

    def close(self) -> None:
        self.release()

    def check_lines(self, index: int, kspace: np.ndarray) -> None:
        """Refuse k-space with empty lines between measured ones; empty margins are mere zero-filling."""
        for axis, lines in ((1, "rows"), (2, "columns")):
            filled = np.asarray(kspace.any(axis=(0, 3 - axis)))
            inside = filled[filled.argmax() : filled.size - filled[::-1].argmax()]
            missing = int(inside.size - inside.sum())
            if missing:
                raise InputError(
                    f"{self.file}: slice {index} is undersampled: {missing} of {inside.size} k-space {lines} are "
                    "empty; no fully sampled target can be made from it, use fully sampled data"
                )


def only_file(files: Sequence[Path]) -> Path:
    """The one file of a scan. Raises `InputError` for any other number."""
    if len(files) != 1:
        named = ", ".join(str(path) for path in files) or "none"
        raise InputError(f"{len(files)} files are given ({named}); this format has one file per scan, give just one")
    return files[0]
