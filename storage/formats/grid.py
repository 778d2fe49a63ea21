"""The voxel grid of a file: what a result needs to be written in the very place of its source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from larmor.storage.formats.dicom_frames import Frame


@dataclass(frozen=True)
class Grid:
    """The array of a file: `shape` (i, j, k), as the file has it also (i, j) or (i, j, k, 1), and the `affine` (4, 4)
    of (i, j, k) to RAS+ mm.

    `header` is nibabel's header of a NIfTI file; `frames` are those of a DICOM series, one for each k. They name
    persons, and go nowhere but into a result of the same scan.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    header: Any = field(default=None, repr=False)
    frames: Sequence[Frame] = field(default=(), repr=False)

    def from_canonical(self, data: np.ndarray) -> np.ndarray:
        """An array in canonical orientation (see `canonical_volume`) as a view in the file's order and shape."""
        from nibabel.orientations import apply_orientation, io_orientation, ornt_transform

        canonical = np.array([[0, 1], [1, 1], [2, 1]])
        return apply_orientation(data, ornt_transform(canonical, io_orientation(self.affine))).reshape(self.shape)
