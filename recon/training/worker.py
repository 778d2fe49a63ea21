"""What the training loop knows of the process it runs in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch


class Worker(Protocol):
    """One rank. Every method but `progress` is called by all ranks, at the same step."""

    rank: int
    world_size: int
    device: torch.device

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in rank order, on every rank."""
        ...

    def begin(self, step: int) -> None:
        """Training resumes from `step`; called once, after `restore`."""
        ...

    def progress(self, step: int, phase: str) -> None:
        """The rank is in `phase` (one of `step_clock.PHASES`) after `step`. Cheap; whoever waits long without a
        call hangs."""
        ...

    def should_stop(self) -> bool:
        """Whether to save a checkpoint and end now; the same answer on all ranks. Called once in every step."""
        ...

    def show(self, picture: np.ndarray) -> None:
        """What the validation that is reported next looks like: (height, width) uint8. Cheap; the same on all ranks."""
        ...

    def report(self, step: int, metrics: Mapping[str, float], history: Sequence[Mapping[str, float]]) -> bool:
        """Publish the newest figures and the rows (one per step) since the last report.

        Returns whether these figures are a reason to save a checkpoint and end now; the same on all ranks.
        """
        ...

    def save(self, step: int, metrics: Mapping[str, float], write: Callable[[Path], None]) -> None:
        """Let `write` fill an empty local folder with this rank's files; they become one checkpoint meanwhile."""
        ...

    def restore(self, read: Callable[[Path], None]) -> bool:
        """Let `read` load the latest whole checkpoint, all ranks' files in one folder; False if there is none."""
        ...

    def initial(self, read: Callable[[Path], None]) -> None:
        """Let `read` load the weights that the run starts from, the same files on all ranks; after `restore` was False,
        where the recipe has `init_from`."""
        ...
