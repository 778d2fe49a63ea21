"""Whether a search compares more than noise: the spread over its points beside that over seeds at one point."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from larmor.tuning.report.trial_records import Sweep


@dataclass(frozen=True)
class Spread:
    """Sample standard deviations of one metric; None where there are not two values.

    `over_points`: of the means of `num_points` points. `over_seeds`: of trainings that differ in nothing but the seed,
    pooled over all points that have several; `num_trainings` of them.
    """

    name: str
    over_points: float | None
    num_points: int
    over_seeds: float | None
    num_trainings: int

    @property
    def ratio(self) -> float | None:
        return self.over_points / self.over_seeds if self.over_points is not None and self.over_seeds else None


@dataclass(frozen=True)
class Gain:
    """What the best trial is above the starting point by one metric, against what, and the noise between seeds."""

    name: str
    value: float
    against: str
    noise: float | None
    is_start: bool
    higher_is_better: bool

    @property
    def text(self) -> str:
        """The figure, or `none` where the best is the starting point or no further away than another seed."""
        if self.is_start:
            return "none (the starting point is the best)"
        if self.noise is not None and abs(self.value) <= self.noise:
            return f"none (within the noise between seeds: ±{self.noise:.2g})"
        better = (self.value > 0) == self.higher_is_better
        worse = "" if better or not self.value else ", worse"
        known = "" if self.noise is None else f", noise between seeds ±{self.noise:.2g}"
        return f"{self.value:+.4f}" + (f" ({(known + worse).removeprefix(', ')})" if known or worse else "")


def spreads(sweep: Sweep) -> list[Spread]:
    """Of every metric that finished trials have, the sweep's own first."""
    groups = list(_trainings(sweep).values())
    own = sweep.objectives.names
    found = [_spread(name, groups) for name in [*own, *(name for name in sweep.described if name not in own)]]
    return [spread for spread in found if spread.num_points]


def gains(sweep: Sweep) -> list[Gain]:
    """By each of the sweep's metrics; empty without a best trial or a starting point with figures."""
    noise = {spread.name: spread.over_seeds for spread in spreads(sweep)}
    found = []
    for name in sweep.objectives.names:
        if difference := gain_of(sweep, name):
            higher = sweep.objectives.higher_is_better(name)
            found.append(Gain(name, *difference, noise.get(name), sweep.best is sweep.start, higher))
    return found


def gain_of(sweep: Sweep, name: str | None = None) -> tuple[float, str] | None:
    """What the best trial is above the starting point, and against what: the same number of steps of both."""
    key = f"val/{name}" if name else sweep.metric
    best, start = sweep.best, sweep.start
    if best is None or start is None:
        return None
    ours, theirs = sweep.figure(best, key), sweep.figure(start, key)
    if ours is None or theirs is None:
        return None
    if start.state == "finished":
        return ours - theirs, f"against the starting point ({theirs:.4f})"
    until = f"against the starting point until step {start.step}, which that reached ({theirs:.4f})"
    early = sweep.value_until(best, start.step, key)
    return None if early is None else (early - theirs, until)


def _trainings(sweep: Sweep) -> dict[str, list[Mapping[str, float]]]:
    """Metrics of every training of the finished trials, by point: the searched values without the seed."""
    found: dict[str, list[Mapping[str, float]]] = {}
    for trial in sweep.trials:
        if trial.state == "finished" and trial.metrics:
            point = {key: value for key, value in trial.parameters.items() if key != "seed"}
            found.setdefault(json.dumps(point, sort_keys=True), []).extend(trial.seeds or [trial.metrics])
    return found


def _spread(name: str, groups: Sequence[Sequence[Mapping[str, float]]]) -> Spread:
    key = f"val/{name}"
    rated = [[metrics[key] for metrics in group if math.isfinite(metrics.get(key, math.nan))] for group in groups]
    points = [statistics.fmean(values) for values in rated if values]
    several = [values for values in rated if len(values) > 1]
    freedom = sum(len(values) - 1 for values in several)
    squares = sum(statistics.variance(values) * (len(values) - 1) for values in several)
    return Spread(
        name,
        statistics.stdev(points) if len(points) > 1 else None,
        len(points),
        math.sqrt(squares / freedom) if freedom else None,
        sum(map(len, several)),
    )
