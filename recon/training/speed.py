"""How fast a training is and what holds it up: the figures of a report."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from larmor.recon.recipe.recipe import Recipe
from larmor.recon.training.peak_flops import peak_of
from larmor.recon.training.step_clock import STEP_PHASES, StepClock
from larmor.recon.training.worker import Worker
from larmor.storage.loading.loader import Loader

_LOG = logging.getLogger(__name__)
_COUNT_AFTER = 60.0  # seconds of training: counting takes one or two, which a short training would notice


@dataclass(frozen=True)
class Lap:
    """What one rank did since its last lap: seconds by phase (`StepClock.lap`), seconds in which it waited for the
    loader, bytes that it read, and the most memory that its GPU held so far (0 without one)."""

    seconds: Mapping[str, float]
    waited: float
    bytes_read: int
    gpu_memory_bytes: int


class Speed:
    """Takes the laps of one rank and makes figures of the laps of all.

    `training_seconds` are the seconds in the steps up to now, each counted once however often it was trained: they
    are part of a checkpoint. `loader` is None where all data are in memory; operations are not counted then.
    """

    def __init__(
        self,
        recipe: Recipe,
        worker: Worker,
        loader: Loader | None,
        clock: StepClock,
        num_slices: int,
        training_seconds: float,
    ) -> None:
        self.training_seconds = training_seconds
        self._recipe, self._worker, self._loader, self._clock = recipe, worker, loader, clock
        self._num_slices, self._began_at = num_slices, training_seconds
        self._waited, self._bytes = 0.0, 0
        self._flops: int | None = None
        self._peak = peak_of(worker.device, recipe.training.dtype)

    def enter_report(self, step: int) -> None:
        self._clock.enter("report", step)

    def lap(self) -> Lap:
        """Of this rank. On a GPU it waits for what was begun."""
        loader = self._loader
        waited, read = (loader.seconds_waiting, loader.counts.bytes_read) if loader else (0.0, 0)
        on_gpu = self._worker.device.type == "cuda"
        memory = torch.cuda.max_memory_allocated(self._worker.device) if on_gpu else 0
        lap = Lap(self._clock.lap(), waited - self._waited, read - self._bytes, memory)
        self._waited, self._bytes = waited, read
        return lap

    def figures(self, laps: Sequence[Lap], num_steps: int) -> dict[str, float]:
        """The figures of `num_steps` steps from the laps of all ranks."""
        figures = figures_of(laps, num_steps, self._num_slices)
        self.training_seconds += figures["step_seconds"] * num_steps
        figures["training_seconds"] = self.training_seconds
        counted = self._loader is not None  # what trains on data in memory is so small that its share says nothing
        if counted and self._worker.rank == 0 and self.training_seconds - self._began_at > _COUNT_AFTER:
            if self._flops is None:
                self._flops = _flops_of(self._recipe)
            if self._flops:
                figures["flops_per_second"] = self._flops / figures["step_seconds"]
                if self._peak:
                    figures["mfu"] = figures["flops_per_second"] / (self._peak * len(laps))
        return figures


def _flops_of(recipe: Recipe) -> int:
    """Operations of a step; 0 where they cannot be counted, as of a network that computes with tensors of its own."""
    from larmor.recon.training.flops import flops_per_step  # not before: a start is waited for

    try:
        return flops_per_step(recipe)
    except Exception as error:  # whatever a network of the user's own does on tensors without content
        _LOG.info("operations are not counted: %s: %s", type(error).__name__, error)
        return 0


def figures_of(laps: Sequence[Lap], num_steps: int, num_slices: int) -> dict[str, float]:
    """Means over the ranks; bytes are summed, of memory it is the fullest GPU.

    Speed is that of the steps alone: seconds in `data`, `critic` and `generator`. Shares are of all the time between
    two reports, `seconds`, and add up to 1. Communication is the time in collective calls: the waiting for slower
    ranks is in it. `num_slices` of one step, over all ranks.
    """
    seconds = {phase: fmean(lap.seconds[phase] for lap in laps) for phase in laps[0].seconds}
    communication = seconds.pop("communication")
    steps = max(sum(seconds[phase] for phase in STEP_PHASES), 1e-9)
    whole = max(sum(seconds.values()), 1e-9)
    figures = {
        "world_size": len(laps),
        "seconds": whole,
        "slices_per_second": num_steps * num_slices / steps,
        "step_seconds": steps / num_steps,
        "data_share": seconds["data"] / whole,
        "compute_share": (seconds["critic"] + seconds["generator"] - communication) / whole,
        "communication_share": communication / whole,
        "validation_share": seconds["validation"] / whole,
        "checkpoint_share": seconds["checkpoint"] / whole,
        "report_share": seconds["report"] / whole,
        "waiting_share": fmean(lap.waited for lap in laps) / steps,
        "bytes_per_second": sum(lap.bytes_read for lap in laps) / steps,
    }
    memory = max(lap.gpu_memory_bytes for lap in laps)
    return {**figures, **({"gpu_memory_bytes": memory} if memory else {})}
