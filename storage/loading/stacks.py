"""Stacks: images of one volume that belong together, the frames of a series or neighbouring slices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from larmor.storage.dataset.dataset import SplitInfo
from larmor.storage.objects.errors import InputError


def check_stack(info: SplitInfo, size: int) -> None:
    """Raises `InputError` if a volume of the split has fewer slices than a stack."""
    lengths = np.bincount(info.volume, minlength=len(info.volumes))
    shortest = int(lengths.argmin())
    if lengths[shortest] < size:
        raise InputError(
            f"data.stack={size} is more than the {lengths[shortest]} slices or frames of {info.volumes[shortest]} "
            f"(split '{info.name}'); set data.stack to at most {lengths[shortest]}, or leave short series out"
        )


def stack_starts(info: SplitInfo, size: int) -> np.ndarray:
    """(num_stacks,) int64: the first slice of every stack of `size` consecutive slices of one volume, ascending.

    Stacks overlap: a volume of n slices has n − size + 1 of them. With size 1 each slice is one. Raises as
    `check_stack`.
    """
    check_stack(info, size)
    first = np.arange(info.num_slices - size + 1, dtype=np.int64)
    return first[info.volume[first] == info.volume[first + size - 1]]


def in_stacks(indices: Sequence[int] | np.ndarray, size: int, every: int = 1) -> np.ndarray:
    """(num_stacks, size): the slices of one volume in stacks of neighbours, every `every`-th of these.

    The last stack reaches back where the number of slices is no multiple of `size`, so that some slices are in two.
    """
    slices = np.asarray(indices, np.int64)
    assert len(slices) >= size, "check_stack has not been asked"
    starts = np.minimum(np.arange(0, len(slices), size), len(slices) - size)[::every]
    return slices[starts[:, None] + np.arange(size)]


def members(samples: np.ndarray, size: int) -> np.ndarray:
    """(n · size, 2): epoch and slice index of the images of stacks that begin at `samples` (n, 2)."""
    whole = samples.repeat(size, axis=0)
    whole[:, 1] += np.tile(np.arange(size), len(samples))
    return whole
