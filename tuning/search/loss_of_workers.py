"""Told by Ray Train's controller that a slot's workers died. Imports little: the controller has no need of the rest."""

from __future__ import annotations

from typing import Any

import ray
from ray.train import UserCallback


class TellDesk(UserCallback):
    """Hands the slot's trial back to the desk, so that any free slot resumes it."""

    def __init__(self, desk_name: str, slot: str) -> None:
        self._desk_name, self._slot = desk_name, slot

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        reason = "; ".join(str(error) for error in worker_exceptions.values())
        ray.get(ray.get_actor(self._desk_name).lost.remote(self._slot, reason[-2000:]))
