"""The clock's arithmetic, on a clock of our own."""

from __future__ import annotations

import pytest

from larmor.recon.training.step_clock import HOST, StepClock, Timeline, timeline


class Seconds:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timeline = Timeline(lambda: self.now, lambda began, ended: ended - began)

    def go(self, seconds: float) -> None:
        self.now += seconds


def walk(clock: StepClock, time: Seconds, *phases: tuple[str, float], step: int = 1) -> None:
    for phase, seconds in phases:
        clock.enter(phase, step)  # type: ignore[arg-type]
        time.go(seconds)


def test_phases_share_all_the_time_without_gaps() -> None:
    time, told = Seconds(), []
    clock = StepClock(time.timeline, lambda step, phase: told.append((step, phase)))
    time.go(50)  # the start, before the first phase, belongs to none
    walk(clock, time, ("data", 1), ("critic", 2), ("data", 3), ("critic", 4), ("generator", 8))
    walk(clock, time, ("validation", 16), ("report", 32))
    assert clock.lap() == {
        "data": 4,
        "critic": 6,
        "generator": 8,
        "validation": 16,
        "report": 32,
        "checkpoint": 0,
        "communication": 0,
    }
    assert told == [(1, phase) for phase in ("data", "critic", "data", "critic", "generator", "validation", "report")]


def test_a_phase_goes_on_over_a_lap() -> None:
    time = Seconds()
    clock = StepClock(time.timeline, lambda step, phase: None)
    walk(clock, time, ("data", 1), ("report", 2))
    clock.lap()
    time.go(5)  # still reporting
    walk(clock, time, ("checkpoint", 7), ("data", 11), ("report", 0))
    lap = clock.lap()
    assert (lap["report"], lap["checkpoint"], lap["data"]) == (5, 7, 11)
    assert sum(lap.values()) == time.now - 103


def test_collective_calls_count_where_they_belong_to_a_step() -> None:
    time = Seconds()
    clock = StepClock(time.timeline, lambda step, phase: None)
    for phase in ("critic", "generator", "validation", "report", "checkpoint"):
        clock.enter(phase, 1)
        began = clock.mark()
        time.go(2)
        clock.communicated(began, clock.mark())
    assert clock.lap()["communication"] == 4
    assert clock.lap()["communication"] == 0


def test_a_lap_before_anything_began_is_empty() -> None:
    clock = StepClock(Seconds().timeline, lambda step, phase: None)
    assert set(clock.lap().values()) == {0}


def test_the_cpu_has_the_hosts_clock() -> None:
    import torch

    assert timeline(torch.device("cpu")) is HOST
    began = HOST.mark()
    assert HOST.seconds(began, began + 1.5) == pytest.approx(1.5)
