"""What may differ when a run goes on: how it is trained, and for how long, but not what is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from larmor.cluster.experiments.experiment import Experiment
from larmor.cluster.launch.run import check, claimed, finish
from larmor.cluster.launch.run_locally import train_locally
from larmor.cluster.runs.origin import pinned
from larmor.cluster.runs.run_folder import RunFolder
from larmor.cluster.runs.runs import summarise
from larmor.recon.training.history import TrainingDiverged
from larmor.storage.objects.errors import InputError
from tests.cluster.launch.test_systems import kspace_url, tiny  # noqa: F401


def train(experiment: Experiment, run: RunFolder) -> bool:
    """As `larmor train --local` does; False if the run had finished already."""
    if check(experiment, run, overwrite=False):
        return False
    with claimed(experiment, run, False, print):
        train_locally(experiment, run, "cpu")
        finish(experiment, run)
    return True


def test_a_finished_run_trains_longer(kspace_url: str, tmp_path: Path) -> None:  # noqa: F811
    """Exactly as if it had been told so from the first."""
    steady = "training.schedule=constant"
    short, long = (tiny(kspace_url, steady, f"training.num_steps={steps}") for steps in (4, 8))
    whole, run = RunFolder(str(tmp_path / "whole")), RunFolder(str(tmp_path / "run"))
    assert train(long, whole)
    assert train(short, run)
    assert not train(short, run), "finished already"
    assert train(long, run)
    assert not train(long, run), "finished already"
    assert run.history() == whole.history()
    results = run.result(), whole.result()
    assert all(results)
    assert len({result.step for result in results if result}) == 1
    assert yaml.safe_load(run.config_yaml())["training"]["num_steps"] == 8, "the record is of what was trained"
    with pytest.raises(InputError, match=r"differs in training\.num_steps"):
        train(short, run)


def test_a_longer_training_that_was_only_claimed_is_not_finished(kspace_url: str, tmp_path: Path) -> None:  # noqa: F811
    short, long = (tiny(kspace_url, f"training.num_steps={steps}") for steps in (2, 4))
    run = RunFolder(str(tmp_path))
    assert train(short, run)
    with claimed(long, run, False, print):
        pass  # and killed
    assert not check(long, run, overwrite=False)


@pytest.mark.parametrize(
    "change",
    [
        "cluster.num_workers=2",
        "training.zero_stage=2",
        "training.log_every=1",
        "training.checkpoint_every=1",
        "training.keep_checkpoints=5",
        "data.client=http",
        "data.read_threads=2",
        "data.read_ahead_bytes=1000",
        "data.memory_cache_bytes=1000",
        "data.disk_cache_bytes=1000",
    ],
)
def test_how_a_run_is_trained_may_differ(kspace_url: str, tmp_path: Path, change: str) -> None:  # noqa: F811
    run, engine = RunFolder(str(tmp_path)), "training.backend=deepspeed"
    with claimed(tiny(kspace_url, engine), run, False, print):
        pass
    changed = tiny(kspace_url, engine, change)
    assert not check(changed, run, overwrite=False)
    with claimed(changed, run, False, print):
        pass
    assert yaml.safe_load(run.config_yaml()) == pinned(changed).model_dump(mode="json")


@pytest.mark.parametrize(
    "change", ["seed=1", "data.shuffle_bytes=1000", "training.global_batch_size=8", "training.num_steps=2"]
)
def test_what_is_trained_may_not(kspace_url: str, tmp_path: Path, change: str) -> None:  # noqa: F811
    run = RunFolder(str(tmp_path))
    with claimed(tiny(kspace_url), run, False, print):
        pass
    with pytest.raises(InputError, match=f"differs in {change.split('=')[0]}"):
        check(tiny(kspace_url, change), run, overwrite=False)


def test_a_training_that_diverged_here_says_so_until_it_goes_on(kspace_url: str, tmp_path: Path) -> None:  # noqa: F811
    run = RunFolder(str(tmp_path))
    diverging = tiny(kspace_url, "training.largest_critic_loss=1e-9", "training.log_every=1")
    with pytest.raises(TrainingDiverged):
        train(diverging, run)
    assert "the critic diverged" in (run.failure() or "")
    assert summarise(run).state == "failed"
    with claimed(diverging, run, False, print):
        train_locally(tiny(kspace_url), run, "cpu")
    assert run.failure() is None


def test_a_run_of_an_older_larmor_is_resumed(kspace_url: str, tmp_path: Path) -> None:  # noqa: F811
    """Keys that did not exist count with their defaults; one that is set to something else makes another experiment."""
    run = RunFolder(str(tmp_path))
    with claimed(tiny(kspace_url), run, False, print):
        pass
    older = yaml.safe_load(run.config_yaml())
    del older["signal"]["noise"], older["loss"]["residual_critic"], older["data"]["stack"]
    run.replace_config(yaml.safe_dump(older))
    assert not check(tiny(kspace_url), run, overwrite=False)
    with claimed(tiny(kspace_url), run, False, print):
        pass
    run.replace_config(yaml.safe_dump(older))
    with pytest.raises(InputError, match=r"differs in signal\.noise"):
        check(tiny(kspace_url, "signal.noise=[0,0.1]"), run, overwrite=False)
