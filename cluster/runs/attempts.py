"""How often a run was begun, and what share of the time since then has counted: its goodput.

    attempts/NUMBER.json   when, where and by how many workers the run was started or resumed, and at which step

Goodput = seconds in the steps up to the newest, each step counted once, over the seconds since the first attempt began.
What does not count: starting the workers, validation, checkpoints, reports, steps that were trained again after a
restart, and the time in which nothing ran.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from larmor.storage.objects.object_store import ObjectStore

_FOLDER = "attempts"


@dataclass(frozen=True)
class Attempt:
    """`began`: seconds since 1970 by the clock of `host`, where rank 0 is; `step`: the last one of the checkpoint that
    it resumes from, 0 for none."""

    number: int
    began: float
    host: str
    world_size: int
    step: int

    @staticmethod
    def begin(store: ObjectStore, world_size: int, step: int, began: float) -> Attempt:
        """Record a new attempt on the run in `store`."""
        number = len(store.list(_FOLDER)) + 1
        while True:
            attempt = Attempt(number, began, socket.gethostname(), world_size, step)
            if store.create(f"{_FOLDER}/{number:04d}.json", json.dumps(asdict(attempt)).encode()):
                return attempt
            number += 1


def first_and_last(store: ObjectStore) -> tuple[Attempt, Attempt] | None:
    """The first and the newest attempt on the run in `store`; None before the first."""
    paths = list(store.list(_FOLDER))
    if not paths:
        return None
    first, last = (Attempt(**json.loads(store.read(path))) for path in (paths[0], paths[-1]))
    return first, last


def goodput(metrics: Mapping[str, float], first_began: float, now: float | None = None) -> float:
    """Of a run whose newest report is `metrics`; times in seconds since 1970, `now` if not given."""
    total = (time.time() if now is None else now) - first_began
    return metrics["training_seconds"] / max(total, 1e-9)
