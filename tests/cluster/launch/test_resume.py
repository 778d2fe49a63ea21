"""A training that was interrupted and started again equals one that was not, bit for bit."""

from __future__ import annotations

import json

import pytest
import torch

from larmor.cluster.experiments.experiment import Experiment
from larmor.cluster.runs.run_folder import RunFolder
from larmor.cluster.worker.ranks import Ranks
from larmor.cluster.worker.worker import RunWorker
from larmor.recon.training.train import train
from larmor.storage.objects.errors import InputError
from larmor.tuning.search.experiment import load_sweep_experiment
from tests.helpers import flip_byte
from tests.interrupted import Interrupted, interrupted_after
from tests.workbench import TINY, unique_name

LOSSES = ("loss", "critic_loss", "adversarial", "normalized_root_mse", "frequency")
STEPS = 7


@pytest.fixture
def experiment(tiny_heads: str, store_environment: dict[str, str]) -> Experiment:
    overrides = [
        *TINY,
        f"data.url={tiny_heads}",
        f"training.num_steps={STEPS}",
        "training.checkpoint_every=3",
        "training.validate_every=3",
        "training.log_every=2",
        "training.gradient_accumulation=2",
        "critic.steps=2",
        "cluster.num_workers=1",
    ]
    return load_sweep_experiment("laptop", overrides).training_part()


def run_of(name: str) -> RunFolder:
    return RunFolder(f"s3://larmor/runs/{unique_name(name)}")


def with_training(experiment: Experiment, **changes: object) -> Experiment:
    return experiment.model_copy(update={"training": experiment.training.model_copy(update=changes)})


def losses(run: RunFolder) -> list[tuple[float, ...]]:
    return [tuple(row[name] for name in LOSSES) for row in run.history()]


def train_in(run: RunFolder, experiment: Experiment, kind: type[RunWorker] = RunWorker) -> None:
    with kind(Ranks(), run, experiment.training, torch.device("cpu")) as worker:
        train(experiment, worker)


ENGINES = [("plain", 0), ("deepspeed", 0), ("deepspeed", 2), ("deepspeed", 3)]


@pytest.mark.parametrize(("backend", "zero_stage"), ENGINES)
def test_resumed_training_equals_uninterrupted_one(experiment: Experiment, backend: str, zero_stage: int) -> None:
    torch.set_num_threads(1)
    experiment = with_training(experiment, backend=backend, zero_stage=zero_stage)
    whole, broken = run_of("whole"), run_of("broken")
    train_in(whole, experiment)
    with pytest.raises(Interrupted):
        train_in(broken, experiment, interrupted_after(3))
    assert [row["step"] for row in broken.history()] == [1, 2, 3]
    train_in(broken, experiment)

    assert len(losses(whole)) == STEPS
    assert losses(broken) == losses(whole)
    final = [run.latest() for run in (whole, broken)]
    assert final[0] is not None
    assert final[1] is not None
    assert final[0].files["generator.safetensors"] == final[1].files["generator.safetensors"]
    assert {k: v for k, v in final[0].metrics.items() if k.startswith("val/")} == {
        k: v for k, v in final[1].metrics.items() if k.startswith("val/")
    }
    reports = [json.loads(line) for line in broken.store.read("metrics.jsonl").splitlines()]
    assert [(report["attempt"], report["step"]) for report in reports] == [(1, 2), (1, 3), (2, 4), (2, 6), (2, 7)]
    counted = [report["training_seconds"] for report in reports]
    assert counted == sorted(counted), "time goes on from the checkpoint's"
    assert all(0 < report["goodput"] < 1 and report["communication_share"] < 1 for report in reports)


def test_other_seed_gives_other_losses(experiment: Experiment) -> None:
    """The comparison above can fail."""
    torch.set_num_threads(1)
    experiment = with_training(experiment, num_steps=3, backend="plain", zero_stage=0)
    runs = [run_of("seed"), run_of("seed")]
    for seed, run in enumerate(runs):
        train_in(run, experiment.model_copy(update={"seed": seed}))
    assert losses(runs[0]) != losses(runs[1])


def test_a_damaged_checkpoint_is_skipped_and_made_again(experiment: Experiment) -> None:
    torch.set_num_threads(1)
    experiment = with_training(experiment, backend="plain", zero_stage=0)
    whole, damaged = run_of("whole"), run_of("damaged")
    train_in(whole, experiment)
    train_in(damaged, experiment)
    before = damaged.checkpoints()
    assert [item.step for item in before][-2:] == [6, STEPS]
    flip_byte(damaged.store, f"{before[-1].folder}/generator.safetensors", -1)
    train_in(damaged, experiment)
    assert losses(damaged) == losses(whole)
    (warning,) = damaged.warnings()
    assert f"{before[-1].folder} was skipped" in warning
    assert "generator.safetensors: checksum" in warning
    assert "resumed from step 6" in warning
    assert damaged.latest().files["generator.safetensors"] == whole.latest().files["generator.safetensors"]  # type: ignore[union-attr]
    assert before[-1].folder not in {item.folder for item in damaged.checkpoints()}


def test_loss_that_is_not_finite_stops_the_training(experiment: Experiment) -> None:
    torch.set_num_threads(1)
    experiment = with_training(experiment, num_steps=12, backend="plain", zero_stage=0, log_every=4)
    rate = experiment.generator_optimizer.model_copy(update={"learning_rate": 1e30})
    run = run_of("diverged")
    with pytest.raises(InputError, match=r"training diverged: .* at step"):
        train_in(run, experiment.model_copy(update={"generator_optimizer": rate}))
