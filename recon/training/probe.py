"""A few steps of a training for the sake of their time and memory: nothing is written, and nothing stays trained."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from larmor.recon.networks.networks import build_critic, build_generator
from larmor.recon.recipe.recipe import Recipe
from larmor.recon.training.worker import Worker

_STEPS = 4  # the first one warms up and does not count
_SECONDS = 60.0  # a longer probe ends after its step
_NEVER = 10**9


@dataclass(frozen=True)
class Probe:
    """Of one worker: seconds of a step, and the largest memory of the process (on a GPU: of PyTorch on it) in bytes."""

    step_seconds: float
    memory_bytes: int


class ProbeWorker:
    """A rank alone that stops after a few steps, and keeps their times."""

    rank, world_size = 0, 1

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.times: list[float] = []

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def begin(self, step: int) -> None:
        self.times.append(time.perf_counter())

    def progress(self, step: int, phase: str) -> None: ...

    def should_stop(self) -> bool:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.times.append(time.perf_counter())
        return len(self.times) > _STEPS or self.times[-1] - self.times[0] > _SECONDS

    def show(self, picture: np.ndarray) -> None: ...

    def report(self, step: int, metrics: Mapping[str, float], history: Sequence[Mapping[str, float]]) -> bool:
        return False

    def save(self, step: int, metrics: Mapping[str, float], write: Callable[[Path], None]) -> None: ...

    def restore(self, read: Callable[[Path], None]) -> bool:
        return False

    def initial(self, read: Callable[[Path], None]) -> None: ...

    @property
    def step_seconds(self) -> float:
        """The median step, without the first where there are others."""
        steps = [after - before for before, after in zip(self.times, self.times[1:], strict=False)]
        return statistics.median(steps[1:] or steps)


def probe(recipe: Recipe, device: torch.device, num_workers: int, loop: Callable[[Recipe, Worker], bool]) -> Probe:
    """What a step of one of `num_workers` costs here, without what workers tell each other, validation and checkpoints.

    Raises what `loop` raises, which trains.
    """
    worker = ProbeWorker(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    loop(_share_of_a_worker(recipe, num_workers), worker)
    return Probe(worker.step_seconds, _peak_bytes(device))


def _share_of_a_worker(recipe: Recipe, num_workers: int) -> Recipe:
    """One worker's part of each batch; no validation, no checkpoint, and no disk cache that would be written to."""
    training = recipe.training.model_copy(
        update={
            "global_batch_size": recipe.training.global_batch_size // num_workers,
            "num_steps": _NEVER,
            "validate_every": _NEVER,
            "checkpoint_every": _NEVER,
            "log_every": _NEVER,
        }
    )
    data = recipe.data.model_copy(update={"disk_cache_bytes": 0})
    return recipe.model_copy(update={"training": training, "data": data})


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def count_parameters(recipe: Recipe) -> dict[str, int]:
    """Network → number of its weights; empty for a decoding, whose networks depend on its data."""
    if recipe.decoding is not None:
        return {}
    generator = build_generator(recipe.generator, recipe.signal.channels, recipe.data.stack, recipe.signal.guide)
    critics = {role.engine: build_critic(recipe.critic, recipe.critic_channels) for role in recipe.loss.critics}
    return {
        name: sum(weight.numel() for weight in network.parameters())
        for name, network in {"generator": generator, **critics}.items()
    }
