"""What is tried next: whole grids, and a sampler that learns from trials which have ended."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from larmor.storage.objects.errors import InputError
from larmor.tuning.search.experiment import SweepConfig, SweepExperiment
from larmor.tuning.search.objectives import Objectives
from larmor.tuning.search.records import State, TrialRecord
from larmor.tuning.search.sampler import earlier_trials, grid_points, make_searcher, planned_trials
from larmor.tuning.search.space import Dimension, parse_dimension, starting_point
from larmor.tuning.search.sweep import first_points
from larmor.tuning.search.sweep_folder import SweepFolder

A = parse_dimension("loss.a", "loguniform(0.1, 100)")
B = parse_dimension("loss.b", "uniform(0, 1)")
GRID = [parse_dimension("loss.a", "choice(1, 10)"), parse_dimension("critic.steps", "randint(1, 4)")]


def record(a: float, psnr: float | None, state: State = "finished", **more: Any) -> TrialRecord:
    metrics = {} if psnr is None else {"val/psnr": psnr}
    parameters = {"loss.a": a, **more}
    return TrialRecord(id=f"of {a}", state=state, parameters=parameters, metrics=metrics, began=a, seconds=1.0)


def suggestions(known: list[TrialRecord], count: int, **settings: Any) -> list[dict[str, Any]]:
    searcher = make_searcher(SweepConfig(**settings), [A], [], known)
    found = []
    for number in range(count):
        found.append(searcher.suggest(f"t{number}"))
        searcher.on_trial_complete(f"t{number}", {"val/psnr": 20.0})
    return found


def test_a_grid_has_every_combination_once() -> None:
    points = grid_points(GRID)
    assert len(points) == planned_trials(SweepConfig(sampler="grid"), GRID) == 6
    assert points[0] == {"loss.a": 1, "critic.steps": 1}
    assert points[-1] == {"loss.a": 10, "critic.steps": 3}
    assert len({str(point) for point in points}) == 6
    assert planned_trials(SweepConfig(sampler="random", num_trials=3), GRID) == 3


def test_a_grid_of_a_range_is_refused() -> None:
    with pytest.raises(InputError, match=r"sweep.space.loss.b=uniform\(0, 1\): a grid needs single values"):
        grid_points([GRID[0], B])


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_suggestions_are_inside_and_repeat_with_the_seed(sampler: str) -> None:
    found = suggestions([], 12, sampler=sampler, seed=3)
    assert all(0.1 <= point["loss.a"] <= 100 for point in found)
    assert found == suggestions([], 12, sampler=sampler, seed=3)
    assert found != suggestions([], 12, sampler=sampler, seed=4)


@pytest.mark.parametrize(("num_trials", "random"), [(4, 10), (36, 12), (60, 20)])
def test_the_first_third_is_random_and_at_least_ten(num_trials: int, random: int) -> None:
    found = suggestions([], random + 1, num_trials=num_trials, seed=3)
    by_chance = suggestions([], random + 1, sampler="random", seed=3)
    assert found[:random] == by_chance[:random]
    assert found[random] != by_chance[random]


def test_known_trials_teach_the_sampler() -> None:
    """Good near 30, bad below 1: after twenty of them it looks near 30 far more often than chance would."""
    good = [record(30 + number * 0.1, 30.0) for number in range(10)]
    bad = [record(0.2 + number * 0.05, 20.0) for number in range(10)]
    num_near = sum(point["loss.a"] > 10 for point in suggestions([*good, *bad], 20))
    assert num_near > 10
    assert num_near > sum(point["loss.a"] > 10 for point in suggestions([], 20, sampler="random")) + 3


def test_trials_that_diverged_count_as_the_worst() -> None:
    good = [record(0.2 + number * 0.01, 25.0) for number in range(10)]
    diverged = [record(50 + number, None, "diverged") for number in range(10)]
    assert len([point for point in suggestions([*good, *diverged], 20) if point["loss.a"] > 10]) < 4


def test_what_was_begun_is_tried_first_and_then_the_experiments_own_values() -> None:
    experiment = SweepExperiment()
    config = SweepConfig()
    own = starting_point([A], experiment)
    assert own == {"loss.a": 15.0}
    assert first_points(config, [A], experiment, [], [], []) == [own]
    assert first_points(config, [A], experiment, [{"loss.a": 2.0}], [], []) == [{"loss.a": 2.0}]
    assert first_points(config, [A], experiment, [], [record(1.0, 20.0)], [record(1.0, 20.0)]) == []


def test_a_grid_of_tuples_knows_what_its_records_tell() -> None:
    grid = [parse_dimension("data.crop", "choice((64, 64), (96, 96))"), parse_dimension("loss.a", "choice(1, 2)")]
    config = SweepConfig(sampler="grid")
    first, *others = grid_points(grid)
    ended = [replace(record(1, 20.0), parameters=json.loads(json.dumps(first)))]
    points = first_points(config, grid, SweepExperiment(), [], ended, ended)
    assert points == others
    searcher = make_searcher(config, grid, points, ended)
    assert [searcher.suggest(f"t{number}") for number in range(3)] == others


def test_a_grid_goes_on_with_what_is_left() -> None:
    experiment, config = SweepExperiment(), SweepConfig(sampler="grid")
    everything = grid_points(GRID)
    ended = [record(1, 20.0, "finished", **{"critic.steps": 1})]
    points = first_points(config, GRID, experiment, [everything[4]], ended, ended)
    assert points[0] == everything[4]
    assert sorted(map(str, points)) == sorted(map(str, everything[1:]))
    searcher = make_searcher(config, GRID, points, ended)
    assert [searcher.suggest(f"t{number}") for number in range(5)] == points


def test_an_earlier_sweep_teaches_with_the_trials_that_fit(tmp_path: Path) -> None:
    folder = SweepFolder(str(tmp_path))
    assert folder.create("sweep: {}")
    trials = {
        "fits": record(3.0, 24.0, "finished", **{"loss.b": 0.5}),
        "outside": record(300.0, 24.0),
        "diverged": record(4.0, None, "diverged"),
        "another": replace(record(5.0, 24.0), parameters={"loss.b": 0.3}),
    }
    for name, trial in trials.items():
        folder.write_trial(replace(trial, id=name))
    (found,) = earlier_trials(folder.url, Objectives.of("psnr"), [A])
    assert found.parameters == {"loss.a": 3.0}
    with pytest.raises(InputError, match=r"none of its trials has val/ssim"):
        earlier_trials(folder.url, Objectives.of("ssim"), [A])
    with pytest.raises(InputError, match="there is no sweep here"):
        earlier_trials(str(tmp_path / "nothing"), Objectives.of("psnr"), [A])


@pytest.mark.parametrize(
    ("dimension", "inside", "outside"),
    [
        (A, [0.1, 5, 100], [0.05, 101, None, "x"]),
        (GRID[1], [1, 3], [0, 4, None]),
        (parse_dimension("loss.adversarial", "choice('bce', None)"), ["bce", None], ["wasserstein", 1]),
    ],
)
def test_a_dimension_knows_its_values(dimension: Dimension, inside: list[Any], outside: list[Any]) -> None:
    assert all(dimension.contains(value) for value in inside)
    assert not any(dimension.contains(value) for value in outside)


TWO = SweepConfig(metric=("psnr", "hfen"), num_trials=30, seed=3)


def two_records(a_values: list[float], hfen: float) -> list[TrialRecord]:
    """PSNR is best at a = 30; HFEN is the same for all."""
    found = [record(a, 30 - abs(a - 30) / 10) for a in a_values]
    return [replace(trial, metrics={**trial.metrics, "val/hfen": hfen}) for trial in found]


def test_of_two_metrics_the_sampler_learns_from_both() -> None:
    """Points near 30 are the best by one metric, as good by the other: twenty known ones draw the search there."""
    good, bad = two_records([28 + number / 3 for number in range(10)], 0.4), two_records([0.2] * 10, 0.4)
    pruned = [record(90 + number, None, "diverged") for number in range(5)]
    searcher = make_searcher(TWO, [A], [], [*good, *bad, *pruned])
    found = [searcher.suggest(f"t{number}")["loss.a"] for number in range(12)]
    assert sum(10 < a < 60 for a in found) > 6


def test_of_two_metrics_trials_without_one_of_them_count_as_the_worst() -> None:
    searcher = make_searcher(TWO, [A], [{"loss.a": 1.0}, {"loss.a": 2.0}, {"loss.a": 3.0}], [])
    results = [{"val/psnr": 20.0, "val/hfen": 0.5}, {"val/psnr": 20.0}, {"val/psnr": 20.0, "val/hfen": float("nan")}]
    for number, result in enumerate(results):
        assert searcher.suggest(f"t{number}") == {"loss.a": number + 1.0}
        searcher.on_trial_complete(f"t{number}", result)
    assert [trial.state.name for trial in searcher.study.trials] == ["COMPLETE", "PRUNED", "PRUNED"]
    assert searcher.study.trials[0].values == [20.0, 0.5]


def test_an_earlier_sweep_teaches_two_metrics_only_with_both(tmp_path: Path) -> None:
    folder = SweepFolder(str(tmp_path))
    assert folder.create("sweep: {}")
    folder.write_trial(replace(record(3.0, 24.0), id="one"))
    with pytest.raises(InputError, match=r"none of its trials has val/psnr and val/hfen and values inside"):
        earlier_trials(folder.url, TWO.objectives, [A])
    folder.write_trial(replace(two_records([4.0], 0.3)[0], id="both"))
    assert [trial.id for trial in earlier_trials(folder.url, TWO.objectives, [A])] == ["both"]
