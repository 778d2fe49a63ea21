"""Where the time of a training goes: the phases of its loop, and communication."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

Phase = Literal["validation", "report", "checkpoint", "data", "critic", "generator"]
PHASES: tuple[Phase, ...] = get_args(Phase)
"""In the order of the loop from the end of one step to the end of the next; `data` and `critic` alternate."""
STEP_PHASES = PHASES[3:]  # what makes a step; the rest happens between steps


@dataclass(frozen=True)
class Timeline:
    """`mark()` is a point of time, `seconds(a, b)` what lies between two of them."""

    mark: Callable[[], Any]
    seconds: Callable[[Any, Any], float]


HOST = Timeline(time.perf_counter, lambda began, ended: ended - began)


def timeline(device: torch.device) -> Timeline:
    """The host's clock for the CPU, events in the queue of a GPU.

    A GPU works behind the host. Events tell when it got to each point, without making the host wait for it: `data` is
    then the time in which the GPU prepared a batch or had none.
    """
    if device.type != "cuda":
        return HOST

    def mark() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(device))
        return event

    def seconds(began: torch.cuda.Event, ended: torch.cuda.Event) -> float:
        ended.synchronize()
        return began.elapsed_time(ended) / 1000

    return Timeline(mark, seconds)


class StepClock:
    """Splits time without gaps: each phase lasts until the next one is entered.

    `progress(step, phase)` is told of every change. Marks are only collected; `lap` turns them into seconds.
    """

    def __init__(self, timeline: Timeline, progress: Callable[[int, str], None]) -> None:
        self.mark = timeline.mark
        self._seconds, self._progress = timeline.seconds, progress
        self._marks: list[tuple[Phase, Any]] = []
        self._calls: list[tuple[Any, Any]] = []

    def enter(self, phase: Phase, step: int) -> None:
        """From now on it is `phase`; `step` generator steps are done."""
        self._marks.append((phase, self.mark()))
        self._progress(step, phase)

    def communicated(self, began: Any, ended: Any) -> None:
        """A collective call between two marks; it counts if it belongs to a step."""
        if self._marks and self._marks[-1][0] in STEP_PHASES:
            self._calls.append((began, ended))

    def lap(self) -> dict[str, float]:
        """Seconds since the last lap in each phase, and in `communication`, which is a part of the step's phases."""
        now = self.mark()
        phases = [phase for phase, _ in self._marks]
        times = [mark for _, mark in self._marks] + [now]
        lap: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        for phase, began, ended in zip(phases, times, times[1:], strict=False):
            lap[phase] += self._seconds(began, ended)
        lap["communication"] = sum(self._seconds(began, ended) for began, ended in self._calls)
        self._marks = [(phases[-1], now)] if phases else []
        self._calls.clear()
        return lap
