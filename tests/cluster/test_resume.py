"""A training that was interrupted and started again equals one that was not, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from cluster.experiment import Experiment, load_experiment
from cluster.run_folder import RunFolder
from cluster.worker import LocalWorker
from recon.train import train
from storage.errors import InputError
from tests.workbench import TINY, unique_name
from tuning.experiment import SweepExperiment

LOSSES = ("loss", "critic_loss", "adversarial", "normalized_root_mse", "frequency")
STEPS = 7


class Interrupted(Exception):
    pass


class InterruptedWorker(LocalWorker):
    """Stops right after the checkpoint of step 3, as a kill would."""

    def save(self, step: int, metrics: Mapping[str, float], write: Callable[[Path], None]) -> None:
        super().save(step, metrics, write)
        if step == 3:
            raise Interrupted


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
    return load_experiment("laptop", overrides, SweepExperiment).training_part()


def run_of(name: str) -> RunFolder:
    return RunFolder(f"s3://larmor/runs/{unique_name(name)}")


def with_training(experiment: Experiment, **changes: object) -> Experiment:
    return experiment.model_copy(update={"training": experiment.training.model_copy(update=changes)})


def losses(run: RunFolder) -> list[tuple[float, ...]]:
    return [tuple(row[name] for name in LOSSES) for row in run.history()]


ENGINES = [("plain", 0), ("deepspeed", 0), ("deepspeed", 2), ("deepspeed", 3)]


@pytest.mark.parametrize(("backend", "zero_stage"), ENGINES)
def test_resumed_training_equals_uninterrupted_one(experiment: Experiment, backend: str, zero_stage: int) -> None:
    torch.set_num_threads(1)
    experiment = with_training(experiment, backend=backend, zero_stage=zero_stage)
    whole, broken = run_of("whole"), run_of("broken")
    device = torch.device("cpu")
    train(experiment, LocalWorker(whole, experiment.training, device))
    with pytest.raises(Interrupted):
        train(experiment, InterruptedWorker(broken, experiment.training, device))
    assert [row["step"] for row in broken.history()] == [1, 2, 3]
    train(experiment, LocalWorker(broken, experiment.training, device))

    assert len(losses(whole)) == STEPS
    assert losses(broken) == losses(whole)
    final = [run.latest() for run in (whole, broken)]
    assert final[0] is not None
    assert final[1] is not None
    assert final[0].files["generator.safetensors"] == final[1].files["generator.safetensors"]
    assert {k: v for k, v in final[0].metrics.items() if k.startswith("val/")} == {
        k: v for k, v in final[1].metrics.items() if k.startswith("val/")
    }


def test_other_seed_gives_other_losses(experiment: Experiment) -> None:
    """The comparison above can fail."""
    torch.set_num_threads(1)
    experiment = with_training(experiment, num_steps=3, backend="plain", zero_stage=0)
    runs = [run_of("seed"), run_of("seed")]
    for seed, run in enumerate(runs):
        train(experiment.model_copy(update={"seed": seed}), LocalWorker(run, experiment.training, torch.device("cpu")))
    assert losses(runs[0]) != losses(runs[1])


def test_checkpoint_that_was_changed_is_refused(experiment: Experiment) -> None:
    torch.set_num_threads(1)
    experiment = with_training(experiment, num_steps=3, backend="plain", zero_stage=0)
    run = run_of("damaged")
    train(experiment, LocalWorker(run, experiment.training, torch.device("cpu")))
    checkpoint = run.latest()
    assert checkpoint is not None
    path = f"{checkpoint.folder}/generator.safetensors"
    content = bytearray(run.store.read(path))
    content[-1] ^= 1
    run.store.write(path, bytes(content))
    with pytest.raises(InputError, match=r"generator\.safetensors: checksum"):
        train(with_training(experiment, num_steps=4), LocalWorker(run, experiment.training, torch.device("cpu")))


def test_loss_that_is_not_finite_stops_the_training(experiment: Experiment) -> None:
    torch.set_num_threads(1)
    experiment = with_training(experiment, num_steps=12, backend="plain", zero_stage=0, log_every=4)
    rate = experiment.generator_optimizer.model_copy(update={"learning_rate": 1e30})
    run = run_of("diverged")
    with pytest.raises(InputError, match=r"training diverged: .* at step"):
        train(
            experiment.model_copy(update={"generator_optimizer": rate}),
            LocalWorker(run, experiment.training, torch.device("cpu")),
        )
