"""A worker that ends as a kill would, right after a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from larmor.cluster.worker.worker import RunWorker


class Interrupted(Exception):
    pass


def interrupted_after(last: int) -> type[RunWorker]:
    """Stops right after the checkpoint of step `last`."""

    class InterruptedWorker(RunWorker):
        def save(self, step: int, metrics: Mapping[str, float], write: Callable[[Path], None]) -> None:
            super().save(step, metrics, write)
            if step == last:
                raise Interrupted

    return InterruptedWorker
