"""What a validation looks like: a few slices, each zero-filled, reconstructed, as it should be, and its error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from larmor.recon.inference.inference import ZERO_FILLED, Rated
from larmor.recon.training.worker import Worker

ERROR_GAIN = 5
_BORDER = 2  # pixels between two images, white


class Shown:
    """The slices of one rank's share that are shown: `wanted` of all stacks of `size`, the middle slice of each.

    They are evenly spaced, the same for any number of ranks, and off the ends, where there is little to see.
    """

    def __init__(self, num_stacks: int, wanted: int, size: int, worker: Worker) -> None:
        self.strips: dict[int, np.ndarray] = {}  # by the stack's number
        numbers = {(2 * number + 1) * num_stacks // (2 * wanted) for number in range(wanted)}
        ranks = worker.world_size
        self._places = {n // ranks * size + size // 2: n for n in numbers if n % ranks == worker.rank}

    def add(self, first: int, rated: Rated, method: str) -> None:
        """A batch of the rank's share, which begins at its slice `first`."""
        for place in range(len(rated.target)):
            if (number := self._places.get(first + place)) is not None:
                self.strips[number] = strip(rated, place, method)


def strip(rated: Rated, place: int, method: str) -> np.ndarray:
    """(height, 4 · width) uint8 of the slice at `place` of a batch: zero-filled, reconstruction, target, and the
    absolute error times `ERROR_GAIN`; black and white are the target's minimum and maximum."""
    target, found = rated.target[place], rated.images[method][place]
    error = ERROR_GAIN * (found - target).abs()
    row = torch.cat([rated.images[ZERO_FILLED][place], found, target, error], dim=1)
    return (255 * row.nan_to_num(0, 0, 0).clamp(0, 1)).round().to(torch.uint8).cpu().numpy()


def joined(strips: Sequence[Mapping[int, np.ndarray]]) -> np.ndarray | None:
    """The strips of all ranks below each other, in the order of their numbers; None without any."""
    merged = {number: row for part in strips for number, row in part.items()}
    rows = [_with_borders(merged[number]) for number in sorted(merged)]
    return np.concatenate(rows)[:-_BORDER] if rows else None


def _with_borders(row: np.ndarray) -> np.ndarray:
    """A white line below, and between the four images."""
    images = [np.pad(image, ((0, _BORDER), (0, _BORDER)), constant_values=255) for image in np.split(row, 4, axis=1)]
    return np.concatenate(images, axis=1)[:, :-_BORDER]
