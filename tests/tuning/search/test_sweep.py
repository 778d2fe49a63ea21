"""Ray Tune over Ray Train on tiny heads, and what follows: pull, training with the best values, report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from larmor.cluster.runs.attempts import first_and_last
from larmor.cluster.runs.run_folder import RunFolder
from larmor.tuning.search.experiment import SweepConfig
from larmor.tuning.search.ladder import Ladder
from larmor.tuning.search.sweep_folder import SweepFolder
from tests.helpers import result_of
from tests.workbench import larmor, succeed, tiny, unique_name

OUTPUT = "s3://larmor"
SCHEDULE = (
    "training.num_steps=6",
    "training.checkpoint_every=3",
    "training.validate_every=3",
    "cluster.num_workers=1",
    "loss.a=15",
    "space.loss.a=loguniform(0.1,100)",
    "space.loss.b=loguniform(0.001,10)",
    "space.critic.clip=loguniform(0.001,0.1)",
    "sweep.overrides={}",
    "sweep.metric=psnr",
    "sweep.start_seeds=1",
    "sweep.concurrent_trials=1",
)


@pytest.fixture(scope="module")
def sweep_name() -> str:
    return unique_name("sweep")


@pytest.fixture
def swept(sweep_name: str, tiny_heads: str, store_environment: dict[str, str]) -> SweepFolder:
    """Two trials, one after the other in the same processes; searched once for all tests of this file."""
    folder = SweepFolder(f"{OUTPUT}/sweeps/{sweep_name}")
    if folder.result() is None:
        succeed("sweep", *tiny(sweep_name, tiny_heads, OUTPUT, *SCHEDULE), "--trials", "2")
    return folder


def test_trials_begin_with_the_experiments_own_values(swept: SweepFolder) -> None:
    result = swept.result()
    assert result is not None
    trials = result.trials
    assert [trial.state for trial in trials] == ["finished", "finished"]
    assert {"loss.a": 15.0, "loss.b": 0.1, "critic.clip": 0.01} in [trial.parameters for trial in trials]
    assert [trial.id for trial in trials] == ["0001", "0002"]
    assert trials[0].parameters != trials[1].parameters
    for trial in trials:
        run = swept.trial_run(trial.id)
        config = yaml.safe_load(run.config_yaml())
        assert config["loss"]["a"] == trial.parameters["loss.a"]
        assert config["critic"]["clip"] == trial.parameters["critic.clip"]
        assert [row["step"] for row in run.history()] == list(range(1, 7))
        assert (trial.steps, trial.num_images) == (6, 24)
        assert trial.metrics["val/psnr"] == max(row["val/psnr"] for row in run.history() if "val/psnr" in row)
    assert result.best.metrics["val/psnr"] == max(trial.metrics["val/psnr"] for trial in trials)


def test_a_trial_in_warm_processes_is_the_training_it_says(swept: SweepFolder, tiny_heads: str) -> None:
    """Nothing of the trial before it in the same processes is left: the second equals a training by itself."""
    trial = swept.trials()[1]
    name = unique_name("alone")
    values = [f"{key}={value}" for key, value in trial.parameters.items()]
    succeed("train", "--local", *tiny(name, tiny_heads, OUTPUT, *SCHEDULE, *values))
    alone, warm = (run.history() for run in (RunFolder(f"{OUTPUT}/runs/{name}"), swept.trial_run(trial.id)))
    figures = ("loss", "critic_loss", "normalized_root_mse", "val/psnr", "val/ssim")
    assert [[row.get(key) for key in figures] for row in warm] == [[row.get(key) for key in figures] for row in alone]


def test_same_sweep_again_adds_only_what_is_missing(tiny_heads: str, store_environment: dict[str, str]) -> None:
    """In a folder of its own: it grows."""
    name = unique_name("again")
    arguments, folder = (*tiny(name, tiny_heads, OUTPUT, *SCHEDULE), "--trials"), SweepFolder(f"{OUTPUT}/sweeps/{name}")
    succeed("sweep", *arguments, "1")
    before = {trial.id for trial in folder.trials()}
    again = succeed("sweep", *arguments, "1")
    assert "best: trial" in again
    assert {trial.id for trial in folder.trials()} == before
    succeed("sweep", *arguments, "2")
    after = {trial.id for trial in folder.trials()}
    assert before < after
    assert len(after) == 2


def test_other_sweep_of_that_name_is_refused(swept: SweepFolder, sweep_name: str, tiny_heads: str) -> None:
    done = larmor("sweep", *tiny(sweep_name, tiny_heads, OUTPUT, *SCHEDULE, "seed=9"), "--trials", "2")
    assert done.returncode == 1
    assert "it differs in seed" in done.stderr


@pytest.mark.parametrize(
    ("settings", "schedule", "rung"),
    [
        ({}, (250, 25), 50),
        ({}, (250, 50), 50),
        ({}, (162, 18), 18),
        ({"reduction_factor": 2}, (6, 2), 2),
        ({}, (10, 100), 10),
        ({"grace_steps": 7}, (250, 50), 7),
        ({"grace_steps": 300}, (250, 50), 250),
    ],
)
def test_asha_begins_to_stop_at_a_validation(settings: dict[str, int], schedule: tuple[int, int], rung: int) -> None:
    assert SweepConfig.model_validate(settings).first_rung(*schedule) == rung


def test_two_metrics_have_a_front_and_the_start_has_seeds(
    tiny_heads: str, store_environment: dict[str, str], tmp_path: Path
) -> None:
    """Three trials, then a fourth; the first, which has the experiment's own values, is trained with two seeds."""
    name = unique_name("front")
    settings = ("sweep.metric=[psnr,hfen]", "sweep.start_seeds=2", "sweep.scheduler=asha", "sweep.grace_steps=3")
    arguments = (*tiny(name, tiny_heads, OUTPUT, *SCHEDULE, *settings), "--trials")
    folder = SweepFolder(f"{OUTPUT}/sweeps/{name}")
    for num_trials in (3, 4):
        printed = succeed("sweep", *arguments, str(num_trials))
        result = result_of(folder)
        assert len(result.trials) == num_trials
        assert result.metric == ("val/psnr", "val/hfen")
        assert result.best.id in result.front
        assert f"front: {len(result.front)} trials ({', '.join(result.front)})" in printed
    own, *others = folder.trials()
    assert own.parameters == {"loss.a": 15.0, "loss.b": 0.1, "critic.clip": 0.01}
    assert all(not trial.seeds for trial in others)
    if own.state == "finished":
        assert [end.seed for end in own.seeds] == [0, 1]
        assert own.seeds[0].metrics != own.seeds[1].metrics
    least = min(folder.trials(), key=lambda trial: trial.metrics["val/hfen"])
    succeed("pull", folder.url, "--to", str(tmp_path / "model"), "--prefer", "hfen")
    record = json.loads((tmp_path / "model" / "metrics.json").read_text())
    assert (record["trial"], record["chosen_by"]) == (least.id, "val/psnr")
    assert record["notes"][0].endswith("trials on the front, the best hfen")


def test_asha_lets_trials_wait_and_go_on(tiny_heads: str, store_environment: dict[str, str]) -> None:
    """One trial at a time, so what happens follows from the figures, also where a second call adds trials."""
    name, ladder, legs = unique_name("asha"), Ladder(2, 2, 6, higher_is_better=True), dict[str, int]()
    rule = ("sweep.scheduler=asha", "sweep.reduction_factor=2", "sweep.sampler=random", "training.validate_every=2")
    space = "space.generator_optimizer.learning_rate=loguniform(1e-6,1e-1)"
    arguments = (*tiny(name, tiny_heads, OUTPUT, *SCHEDULE, *rule, space), "--trials")
    folder = SweepFolder(f"{OUTPUT}/sweeps/{name}")
    for num_trials in (4, 7):
        succeed("sweep", *arguments, str(num_trials))
        trials = {trial.id: trial for trial in folder.trials()}
        curves = {trial: folder.trial_run(trial).history() for trial in trials}
        new = [trial for trial in trials if trial not in legs]
        while (trial := ladder.ready() or (new.pop(0) if new else None)) is not None:
            legs[trial] = legs.get(trial, 0) + 1
            if ladder.waits(trial):
                ladder.go_on(trial)
            for row in curves[trial]:
                if row["step"] in ladder.rungs and ladder.arrive(trial, int(row["step"]), row["val/psnr"]):
                    break
        for trial, record in trials.items():
            assert (record.state == "stopped") == ladder.waits(trial)
            assert record.steps in (ladder.rungs if ladder.waits(trial) else [6])
            assert ("ASHA: not among the best 1/2" in record.reason) == ladder.waits(trial)
            assert record.metrics["val/psnr"] >= curves[trial][(record.steps or 0) - 1]["val/psnr"]
            attempts = first_and_last(folder.trial_run(trial).store)
            assert attempts is not None
            assert attempts[1].number == legs[trial]
        best = result_of(folder).best
        assert best.metrics["val/psnr"] == max(trial.metrics["val/psnr"] for trial in trials.values())
    assert max(legs.values()) > 1
    assert sum(trial.steps or 0 for trial in trials.values()) < 7 * 6

    waited = next(trial for trial, record in trials.items() if legs[trial] > 1 and record.state == "finished")
    values = [f"{key}={value}" for key, value in trials[waited].parameters.items()]
    succeed("train", "--local", *tiny(f"{name}-alone", tiny_heads, OUTPUT, *SCHEDULE, *rule[-1:], *values))
    alone = RunFolder(f"{OUTPUT}/runs/{name}-alone").history()
    figures = ("loss", "critic_loss", "val/psnr")
    assert [[row.get(key) for key in figures] for row in curves[waited]] == [
        [row.get(key) for key in figures] for row in alone
    ]


def test_best_is_pulled_used_and_reported(swept: SweepFolder, tiny_heads: str, tmp_path: Path) -> None:
    best = result_of(swept).best
    succeed("pull", swept.url, "--to", str(tmp_path / "model"))
    record = json.loads((tmp_path / "model" / "metrics.json").read_text())
    assert best.id in record["source"]
    assert record["metrics"]["val/psnr"] == best.metrics["val/psnr"]

    name = unique_name("from-sweep")
    short = ("training.num_steps=1", "training.checkpoint_every=1")
    succeed("train", "--local", *tiny(name, tiny_heads, OUTPUT, *SCHEDULE, *short), "--best-of", swept.url)
    run = RunFolder(f"{OUTPUT}/runs/{name}")
    assert yaml.safe_load(run.config_yaml())["loss"]["a"] == best.parameters["loss.a"]

    succeed("evaluate", str(tmp_path / "model"), tiny_heads, "--to", str(tmp_path / "evaluation"))
    page = tmp_path / "report.html"
    evaluation = str(tmp_path / "evaluation")
    succeed("report", run.url, swept.url, "--to", str(page), "--evaluation", evaluation)
    text = page.read_text()
    for expected in (best.id, "zero_filled", "Preset <b>paper</b>", "phantom03", "data:image/png;base64,"):
        assert expected in text
    card = (tmp_path / "model" / "model-card.md").read_text()
    for expected in (best.id, "phantom03", "Split `test`", "Made with", "SHA-256 of its root document"):
        assert expected in card
