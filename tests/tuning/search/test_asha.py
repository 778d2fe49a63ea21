"""Trials in legs: what is suggested when, and what the sampler learns of it."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from larmor.tuning.search.experiment import SweepConfig
from larmor.tuning.search.ladder import Ladder
from larmor.tuning.search.records import TrialRecord
from larmor.tuning.search.sampler import make_searcher
from larmor.tuning.search.space import parse_dimension

A = parse_dimension("loss.a", "loguniform(0.001, 1000)")
METRIC = "val/psnr"


def figure(a: float) -> float:
    """The same at every step; best at a = 100."""
    return 30 - abs(math.log10(a) - 2)


class Search:
    """A search of one trial at a time, as Tune leads it; `values` of a by trial, `steps` reached."""

    def __init__(self, num_new: int, ended: list[TrialRecord], metric: Any = "psnr") -> None:
        from larmor.tuning.search.asha import LegSearch, WaitAtRungs

        self.went_on: list[str] = []
        desk: Any = SimpleNamespace(
            go_on=SimpleNamespace(remote=lambda trial, parameters: self.went_on.append(trial)),
            stop=SimpleNamespace(remote=lambda tune_id, reason: None),
        )
        self.ladder = Ladder(18, 3, 162, higher_is_better=True)
        for trial in ended:
            self.ladder.remember(trial.id, {18: trial.last[METRIC]}, waits=trial.state == "stopped")
        config = SweepConfig(num_trials=num_new + len(ended), seed=1, metric=metric)
        points = make_searcher(config, [A], [], ended)
        self.searcher = LegSearch(points, self.ladder, desk, num_new, ended)
        self.scheduler = WaitAtRungs(self.ladder, desk, METRIC, 3)
        self.steps = {trial.id: int(trial.last["step"]) for trial in ended}
        self.values: dict[str, float] = {}

    def run(self) -> None:
        legs, went_on = 0, 0
        while isinstance(parameters := self.searcher.suggest(f"tune-{legs}"), dict):
            if len(self.went_on) == went_on:
                self.values[f"{len(self.steps) + 1:04d}"] = parameters["loss.a"]
                self._train(f"tune-{legs}", f"{len(self.steps) + 1:04d}", figure(parameters["loss.a"]))
            else:
                self._train(f"tune-{legs}", self.went_on[-1], figure(parameters["loss.a"]))
            legs, went_on = legs + 1, len(self.went_on)
        assert parameters == self.searcher.FINISHED

    def _train(self, tune_id: str, trial: str, value: float) -> None:
        tune_trial: Any = SimpleNamespace(trial_id=tune_id)
        for step in (step for step in (18, 54, 162) if step > self.steps.get(trial, 0)):
            self.steps[trial] = step
            result = {"trial": trial, "step": step, METRIC: value, "training_iteration": step // 18}
            result["val/hfen"] = 30 - value
            if step == 162 or self.scheduler.on_trial_result(None, tune_trial, result) == self.scheduler.STOP:
                self.searcher.on_trial_complete(tune_id, result)
                return
            self.searcher.on_trial_result(tune_id, result)


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray  # not before: tests of clusters set what Ray reads when it is imported

    monkeypatch.setattr(ray, "get", lambda answer: answer)


def stopped(id: str, a: float) -> TrialRecord:
    last, metrics = {"step": 18, METRIC: figure(a)}, {METRIC: figure(a)}
    return TrialRecord(id=id, state="stopped", parameters={"loss.a": a}, metrics=metrics, last=last, began=0, seconds=1)


@pytest.mark.parametrize("metric", ["psnr", ["psnr", "hfen"]])
def test_the_best_is_trained_to_its_end_and_half_of_the_steps_are_spared(metric: Any) -> None:
    search = Search(60, [], metric)
    search.run()
    assert len(search.values) == 60
    best = max(search.values, key=lambda trial: figure(search.values[trial]))
    assert search.steps[best] == 162
    assert sum(search.steps.values()) < 0.5 * 60 * 162


def test_the_sampler_learns_from_trials_that_wait() -> None:
    """Of the first third, which is random, few come near to the best value; of the last third most do."""
    search = Search(60, [])
    search.run()
    near = [abs(math.log10(a) - 2) < 1 for a in search.values.values()]
    assert sum(near[:20]) < 12
    assert sum(near[40:]) > 15


@pytest.mark.parametrize("num_trials", [1, 2])
def test_one_trial_is_trained_to_its_end_though_too_few_reach_the_rung(num_trials: int) -> None:
    search = Search(num_trials, [])
    search.run()
    assert sorted(search.steps.values()) == sorted([18] * (num_trials - 1) + [162])
    best = max(search.values, key=lambda trial: figure(search.values[trial]))
    assert search.steps[best] == 162


@pytest.mark.parametrize("metric", ["psnr", ["psnr", "hfen"]])
def test_trials_of_an_earlier_call_go_on_where_they_wait(metric: Any) -> None:
    search = Search(0, [stopped("0001", 1.0), stopped("0002", 100.0), stopped("0003", 10.0)], metric)
    search.run()
    assert search.steps == {"0001": 18, "0002": 162, "0003": 18}
    assert search.went_on == ["0002", "0002"], "at the second rung it is alone, and no other is whole"
