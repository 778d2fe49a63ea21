"""What the driver tells a group of Ray Train's workers, and what rank 0 tells it at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class WorkConfig:
    """What to train, as dumped for JSON, and where: the run's folder, with the number of its lease."""

    experiment: Mapping[str, Any]
    run_url: str
    lease: int | None


@dataclass(frozen=True)
class AttemptEnd:
    """`stopped`: the workers were asked to stop, after `step`, for `reason`. `failed`: the run's folder says why."""

    state: Literal["finished", "stopped", "failed"]
    step: int = 0
    reason: str = ""
