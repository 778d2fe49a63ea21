"""ASHA's memory: which trials reached which rung, and which of them may continue. No Ray in here."""

from __future__ import annotations

import math
from collections.abc import Mapping


class Ladder:
    """Rungs at `first`, `first` × `factor`, … steps, below `num_steps` (Li et al., MLSys 2020, algorithm 2).

    A trial that reaches a rung trains on if it is among the best 1 / `factor` of those that have. If not, it waits
    there: it may be among them later, when more have reached the rung, for a share of more trials is more trials.
    """

    def __init__(self, first: int, factor: float, num_steps: int, higher_is_better: bool) -> None:
        self.rungs: list[int] = []
        step = float(first)
        while math.ceil(step) < num_steps:
            self.rungs.append(math.ceil(step))
            step *= factor
        self._factor, self._sign = factor, 1 if higher_is_better else -1
        self._reached: dict[int, dict[str, float]] = {rung: {} for rung in self.rungs}
        self._waiting: dict[str, int] = {}

    def arrive(self, trial: str, step: int, value: float) -> int | None:
        """`trial` was validated at `step`: the rung at which it waits from now on, or None if it trains on."""
        rung = self._reach(trial, step, value)
        if rung is None or trial in self._best(rung):
            return None
        self._waiting[trial] = rung
        return rung

    def remember(self, trial: str, curve: Mapping[int, float], waits: bool) -> None:
        """What an earlier call saw of a trial: values by step. One that `waits` does so at its highest rung."""
        rungs = [rung for step in sorted(curve) if (rung := self._reach(trial, step, curve[step])) is not None]
        if waits and rungs:
            self._waiting[trial] = rungs[-1]

    def waits(self, trial: str) -> bool:
        return trial in self._waiting

    def waiting(self) -> list[str]:
        return list(self._waiting)

    def ready(self) -> str | None:
        """A trial that need not wait any more, from the highest rung that has one."""
        for rung in reversed(self.rungs):
            for trial in self._best(rung):
                if self._waiting.get(trial) == rung:
                    return trial
        return None

    def best_waiting(self) -> str | None:
        """The best on the highest rung where trials wait, for a search that would end without a whole trial."""
        if not self._waiting:
            return None
        rung = max(self._waiting.values())
        there = [trial for trial, at in self._waiting.items() if at == rung]
        return max(there, key=lambda trial: self._reached[rung][trial])

    def go_on(self, trial: str) -> None:
        """`trial` does not wait any more."""
        del self._waiting[trial]

    def _reach(self, trial: str, step: int, value: float) -> int | None:
        """The highest rung that `trial` had not reached before; its value counts there and at those below."""
        new = [rung for rung in self.rungs if rung <= step and trial not in self._reached[rung]]
        for rung in new:
            # NaN would leave the others in any order
            self._reached[rung][trial] = self._sign * value if math.isfinite(value) else -math.inf
        return new[-1] if new else None

    def _best(self, rung: int) -> list[str]:
        reached = self._reached[rung]
        return sorted(reached, key=lambda trial: -reached[trial])[: int(len(reached) / self._factor)]
