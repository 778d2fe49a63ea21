"""ASHA for Ray Tune: trials wait at a rung with their checkpoint, and resume when they are among its best.

Tune's own ASHA ends a trial at a rung for good, so it lets the first ones pass, of which it knows nothing yet. Here a
trial of Tune is one *leg* of a trial of the sweep: from its begin, or from the rung at which it waited, to the next
rung at which it waits, or to its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from larmor.tuning.search.ladder import Ladder
from larmor.tuning.search.points import PointSearch, TuneResult
from larmor.tuning.search.records import TrialRecord


class WaitAtRungs(FIFOScheduler):
    """Ends a leg at a rung unless the trial is among the best there, and tells the trial's slot at once."""

    def __init__(self, ladder: Ladder, desk: Any, metric: str, factor: float) -> None:
        super().__init__()
        self._ladder, self._desk, self._name, self._factor = ladder, desk, metric, factor

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: TuneResult) -> str:
        if self._name not in result:
            return self.CONTINUE
        rung = self._ladder.arrive(result["trial"], result["step"], result[self._name])
        if rung is None:
            return self.CONTINUE
        reason = f"ASHA: not among the best 1/{self._factor:g} of the trials that reached step {rung}"
        self._desk.stop.remote(trial.trial_id, reason)
        return self.STOP


class LegSearch(Searcher):
    """Suggests the next leg of a trial that need not wait any more; if there is none, what `points` suggests.

    `points` gives `num_new` points. It is told that a waiting trial was pruned, and is told
    again if that trial resumes and finishes. `ended` are records of trials that an earlier call ended, or left at a
    rung.
    """

    def __init__(
        self, points: PointSearch, ladder: Ladder, desk: Any, num_new: int, ended: Sequence[TrialRecord]
    ) -> None:
        super().__init__(metric=points.metric, mode=points.mode)
        self._points, self._ladder, self._desk, self._left = points, ladder, desk, num_new
        self._parameters = {trial.id: dict(trial.parameters) for trial in ended if ladder.waits(trial.id)}
        self._running: dict[str, dict[str, Any]] = {}  # parameters by Tune's id
        self._new: set[str] = set()  # Tune's ids of first legs, by which `points` knows their trials
        self._one_is_whole = any(trial.state == "finished" for trial in ended)

    def suggest(self, trial_id: str) -> Any:
        """Parameters; None while it depends on running trials; `Searcher.FINISHED` when there is nothing more."""
        trial = self._ladder.ready()
        if trial is None and self._left:
            suggested = self._points.suggest(trial_id)
            if isinstance(suggested, dict):
                self._left -= 1
                self._running[trial_id] = suggested
                self._new.add(trial_id)
            return suggested
        if trial is None and not self._running and not self._one_is_whole:
            trial = self._ladder.best_waiting()
        if trial is None:
            return None if self._running else Searcher.FINISHED
        self._ladder.go_on(trial)
        parameters = self._running[trial_id] = self._parameters[trial]
        ray.get(self._desk.go_on.remote(trial, parameters))
        return parameters

    def on_trial_result(self, trial_id: str, result: TuneResult) -> None:
        if trial_id in self._new:
            self._points.on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: TuneResult | None = None, error: bool = False) -> None:
        parameters = self._running.pop(trial_id, {})
        result = result or {}
        trial: str = result.get("trial", "")
        waits = self._ladder.waits(trial)
        is_whole = not waits and all(key in result for key in self._points.objectives.keys)
        self._one_is_whole = self._one_is_whole or is_whole
        if waits:
            self._parameters[trial] = parameters
        if trial_id not in self._new:
            if is_whole:
                self._points.teach(parameters, result, {})
        elif waits:
            self._points.on_trial_result(trial_id, result)
            self._points.on_trial_complete(trial_id)
        else:
            self._points.on_trial_complete(trial_id, result, error)

    def save(self, checkpoint_path: str) -> None:
        self._points.save(checkpoint_path)

    def restore(self, checkpoint_path: str) -> None:
        self._points.restore(checkpoint_path)
