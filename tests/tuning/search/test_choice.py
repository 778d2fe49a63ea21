"""Which trial of a sweep is pulled: the reported best, or the one that is named; else an error that lists them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from larmor.cluster.runs.pull import TrialOrigin, pull_run
from larmor.storage.objects.errors import InputError
from larmor.tuning.search.choice import choose_run
from larmor.tuning.search.objectives import Objectives
from larmor.tuning.search.sweep_folder import SweepFolder
from tests.helpers import add_checkpoint, result_of
from tests.synthetic_sweep import write_sweep


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> SweepFolder:
    """24 trials: finished, stopped, diverged and failed ones. Not to be changed."""
    folder = write_sweep(str(tmp_path_factory.mktemp("sweeps") / "whole"))
    folder.write_result(Objectives.of("psnr"))
    return folder


@pytest.fixture
def small(tmp_path: Path) -> SweepFolder:
    return write_sweep(str(tmp_path / "small"), num_trials=8)


def best_id(folder: SweepFolder) -> str:
    finished = [trial for trial in folder.trials() if trial.state == "finished"]
    return max(finished, key=lambda trial: trial.metrics["val/psnr"]).id


def test_the_best_pulled_is_the_best_reported_byte_for_byte(whole: SweepFolder, tmp_path: Path) -> None:
    reported = result_of(whole).best
    choice = choose_run(whole.url, "psnr")
    pulled = pull_run(choice.run, "psnr", tmp_path / "model", about=choice.about)
    record = json.loads((tmp_path / "model" / "metrics.json").read_text())
    assert (record["trial"], record["parameters"]) == (reported.id, reported.parameters)
    assert record["metrics"] == reported.metrics
    stored = choice.run.store.read(f"{pulled.checkpoint.folder}/generator.safetensors")
    assert (tmp_path / "model" / "generator.safetensors").read_bytes() == stored
    assert pulled.notes == ()
    assert f"Trial `{reported.id}`" in (tmp_path / "model" / "model-card.md").read_text()


@pytest.mark.parametrize("metric", ["ssim", "val/mse", "rmse", "nmse", "val/hfen", "gmsd"])
def test_by_another_metric_the_trial_with_the_best_checkpoint(small: SweepFolder, tmp_path: Path, metric: str) -> None:
    odd = next(trial.id for trial in small.trials() if trial.state == "finished" and trial.id != best_id(small))
    figures = {
        "val/psnr": 1.0,
        "val/ssim": 0.999,
        "val/mse": 1e-9,
        "val/rmse": 1e-9,
        "val/nmse": 1e-9,
        "val/hfen": 1e-9,
        "val/gmsd": 1e-9,
    }
    add_checkpoint(small.trial_run(odd), tmp_path / "scratch", 40, figures, token="bb")
    assert choose_run(small.url, metric).run.url.endswith(odd)
    assert choose_run(small.url, "psnr").run.url.endswith(best_id(small))


def test_of_equal_trials_the_one_that_began_first(small: SweepFolder) -> None:
    best = next(trial for trial in small.trials() if trial.id == best_id(small))
    for trial in small.trials():
        if trial.state == "finished":
            small.write_trial(dataclasses.replace(trial, metrics=best.metrics))
    assert choose_run(small.url, "psnr").run.url.endswith("t00")


def test_a_sweep_that_goes_on_gives_the_best_of_those_that_have_ended(small: SweepFolder, tmp_path: Path) -> None:
    choice = choose_run(small.url, "psnr")
    pulled = pull_run(choice.run, "psnr", tmp_path / "model", about=choice.about)
    assert pulled.notes == ("the sweep has not finished: the best of 8 trials that have ended",)
    assert choice.run.url.endswith(best_id(small))


@pytest.mark.parametrize(("wanted", "state"), [("t03", "stopped"), ("t05", "diverged"), ("t01", "finished")])
def test_a_named_trial_gives_its_own_best_whatever_became_of_it(
    whole: SweepFolder, tmp_path: Path, wanted: str, state: str
) -> None:
    choice = choose_run(whole.url, "psnr", wanted)
    pulled = pull_run(choice.run, "psnr", tmp_path / "model", about=choice.about)
    assert choice.run.url.endswith(f"trials/{wanted}")
    assert pulled.checkpoint == choice.run.best("val/psnr", True)
    assert any(f"state is '{state}'" in note for note in pulled.notes) == (state != "finished")


def test_a_trial_that_still_runs_is_pulled_and_called_so(small: SweepFolder) -> None:
    small.store.delete("trials/t04/trial.json")
    assert choose_run(small.url, "psnr", "t04").about == TrialOrigin(
        small.url, "t04", notes=("the trial's state is 'running'",)
    )


def test_unknown_trials_are_answered_with_those_there_are(whole: SweepFolder, small: SweepFolder) -> None:
    with pytest.raises(InputError, match=r"has no trial 'x9'; choose one of t00, t01, .*t23"):
        choose_run(whole.url, "psnr", "x9")
    with pytest.raises(
        InputError, match=r"'t2' is the beginning of the ids of 4 trials; choose one of t20, t21, t22, t23"
    ):
        choose_run(whole.url, "psnr", "t2")
    with pytest.raises(InputError, match=r"is not a sweep, so it has no trial 't00'; leave --trial out"):
        choose_run(small.trial_run("t00").url, "psnr", "t00")


@pytest.mark.parametrize("metric", ["psnr", "ssim"])
def test_without_a_finished_trial_those_there_are_are_named(small: SweepFolder, metric: str) -> None:
    for trial in small.trials():
        if trial.is_rated:
            small.store.delete(f"trials/{trial.id}/trial.json")
    with pytest.raises(InputError, match=r"trial.* with the metric 'val/.*its trials are t00, t01, t02"):
        choose_run(small.url, metric)
    assert choose_run(small.url, metric, "t00").run.url.endswith("t00")


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> SweepFolder:
    """A sweep by PSNR and HFEN. Not to be changed."""
    folder = write_sweep(str(tmp_path_factory.mktemp("sweeps") / "front"), metric=["psnr", "hfen"])
    folder.write_result(Objectives.of(["psnr", "hfen"]))
    return folder


def test_of_two_metrics_the_reported_best_is_pulled_with_its_rule(front: SweepFolder, tmp_path: Path) -> None:
    result = result_of(front)
    assert len(result.front) >= 3
    choice = choose_run(front.url)
    assert (choice.run.url.rsplit("/", 1)[-1], choice.metric) == (result.best.id, "psnr")
    pulled = pull_run(choice.run, choice.metric, tmp_path / "model", about=choice.about)
    assert pulled.notes == (f"of {len(result.front)} trials on the front, nearest to the best psnr and hfen",)
    assert pulled.checkpoint.metrics == result.best.metrics


def test_a_preference_chooses_from_the_front(front: SweepFolder) -> None:
    rated = [trial for trial in front.trials() if trial.is_rated]
    least = min(rated, key=lambda trial: trial.metrics["val/hfen"]).id
    highest = max(rated, key=lambda trial: trial.metrics["val/psnr"]).id
    assert least != highest
    choices = {prefer: choose_run(front.url, prefer=prefer) for prefer in ("hfen", "psnr", "psnr=0.5,hfen=0.5")}
    notes = {prefer: choice.about.notes for prefer, choice in choices.items() if choice.about}
    assert choices["hfen"].run.url.endswith(least)
    assert choices["psnr"].run.url.endswith(highest)
    assert choices["psnr=0.5,hfen=0.5"].run.url == choose_run(front.url).run.url
    (note,) = notes["hfen"]
    assert note.endswith("trials on the front, the best hfen")
    (note,) = notes["psnr=0.5,hfen=0.5"]
    assert note.endswith("nearest to the best psnr and hfen, weights 0.5, 0.5")


def test_a_preference_without_a_front_is_refused(front: SweepFolder, whole: SweepFolder) -> None:
    with pytest.raises(InputError, match=r"has no front of trade-offs, its metric is psnr; leave --prefer out"):
        choose_run(whole.url, prefer="psnr")
    with pytest.raises(InputError, match=r"is not a sweep, so it has no front of trade-offs"):
        choose_run(whole.trial_run("t00").url, prefer="psnr")
    for other, option in (({"metric": "psnr"}, "--metric"), ({"trial": "t00"}, "--trial")):
        with pytest.raises(InputError, match=rf"--prefer hfen: {option} also chooses a trial; give only one of them"):
            choose_run(front.url, prefer="hfen", **other)
    with pytest.raises(InputError, match=r"the sweep's metrics are psnr, hfen, not 'ssim'"):
        choose_run(front.url, prefer="ssim")


def test_without_a_metric_a_run_gives_its_own_best(small: SweepFolder, tmp_path: Path) -> None:
    run = small.trial_run("t00")
    assert choose_run(run.url).metric == "psnr"
    config = run.config_yaml().replace("best_metric: psnr", "best_metric: hfen")
    run.store.write("config.yaml", config.encode())
    assert choose_run(run.url).metric == "hfen"
