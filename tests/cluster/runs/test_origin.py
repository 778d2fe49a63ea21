"""A run, a sweep and a model keep to the data set and the mask that they were begun with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from larmor.cluster.experiments.experiment import Experiment
from larmor.cluster.launch.run import check, claimed
from larmor.cluster.runs.origin import check_origin, pinned, record_origin
from larmor.cluster.runs.run_folder import RunFolder
from larmor.cluster.runs.run_result import RunResult
from larmor.recon.inference.inference import Physics
from larmor.recon.models.model import load_model
from larmor.recon.physics.masks import make_mask, mask_hash
from larmor.recon.recipe.mask_config import MaskConfig
from larmor.storage.dataset import dataset, writing
from larmor.storage.loading.config import open_reader
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore
from larmor.tuning.search.experiment import SweepExperiment, load_sweep_experiment
from larmor.tuning.search.space import with_values
from larmor.tuning.search.sweep import check_sweep
from larmor.tuning.search.sweep_folder import SweepFolder
from tests.helpers import random_kspace, small_recipe, write_dataset, write_model

Make = Callable[..., Any]


def write_data(url: str, seed: int = 0) -> None:
    """A data set; another seed gives one of the same names and sizes."""
    store = ObjectStore(url)
    writing.remove(store)
    splits = ("train", "validation")
    write_dataset(store, {split: random_kspace(4, (1, 16, 16), seed + 10 * n) for n, split in enumerate(splits)})


def write_mask(path: Path, column: int) -> Path:
    mask = np.zeros((16, 16), bool)
    mask[:, [column, 8]] = True
    np.save(path, mask)
    return path


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """The same experiment each time, read anew as a later command does: nothing of it is kept in memory."""
    url, mask = str(tmp_path / "data"), tmp_path / "mask.npy"
    write_data(url)
    write_mask(mask, 3)

    def experiment(model: Any = Experiment, **more: Any) -> Any:
        make_mask.__globals__["_read"].cache_clear()
        content = {
            "data": {"url": url, "crop": [16, 16]},
            "mask": {"kind": "file", "file": str(mask)},
            "name": "mine",
            "output_url": str(tmp_path / "results"),
        }
        return model.model_validate({**content, **more})

    return experiment


def change_data(tmp_path: Path) -> None:
    write_data(str(tmp_path / "data"), seed=1)


def change_mask(tmp_path: Path) -> None:
    write_mask(tmp_path / "mask.npy", 5)


CHANGES = {"data set": change_data, "mask": change_mask}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("finished", [False, True])
def test_a_run_does_not_go_on_with_another(make: Make, tmp_path: Path, what: str, finished: bool) -> None:
    run = RunFolder(make().run_url)
    with claimed(make(), run, False, print):
        pass
    if finished:
        run.write_result(RunResult("finished", 1))
    assert (check(make(), run, overwrite=False) is not None) == finished, "what is as it was goes on"
    CHANGES[what](tmp_path)
    said = f"started with another {what}.*--overwrite"
    with pytest.raises(InputError, match=said):
        check(make(), run, overwrite=False)
    with pytest.raises(InputError, match=said), claimed(make(), run, False, print):
        pass
    with claimed(make(), run, True, print):
        assert run.result() is None


@pytest.mark.parametrize("what", CHANGES)
def test_who_trains_reads_what_was_claimed(make: Make, tmp_path: Path, what: str) -> None:
    """Between the claim and the workers' start it may change, and on another machine the mask's file may be another."""
    run = RunFolder(make().run_url)
    with claimed(make(), run, False, print) as experiment:
        assert experiment.data.sha256 == dataset.read_identity(ObjectStore(experiment.data.url))
        assert experiment.mask.sha256 == mask_hash(make_mask(experiment.mask, (16, 16)))
        assert yaml.safe_load(run.config_yaml())["data"]["sha256"] == experiment.data.sha256
        open_reader(experiment.data, "train").close()
        CHANGES[what](tmp_path)
        make()
        read: dict[str, Callable[[], Any]] = {
            "data set": lambda: open_reader(experiment.data, "train"),
            "mask": lambda: make_mask(experiment.mask, (16, 16)),
        }
        with pytest.raises(InputError, match=r"(data|mask)\.sha256=.*names.*start a new run"):
            read[what]()


def test_masks_of_the_same_settings_must_be_the_same(make: Make, tmp_path: Path) -> None:
    """Another version may draw them otherwise."""
    run = RunFolder(make().run_url)
    drawn = {"mask": {"kind": "gaussian1d"}}
    record_origin(make(**drawn), run)
    check_origin(make(**drawn), run)
    with pytest.raises(InputError, match=r"another mask.*other versions"):
        check_origin(make(mask={"kind": "gaussian1d", "seed": 1}), run)


@pytest.mark.parametrize("what", CHANGES)
def test_a_sweep_does_not_go_on_with_another(make: Make, tmp_path: Path, what: str) -> None:
    sweep = {"sweep": {"space": {"loss.a": "loguniform(1,10)"}}}
    experiment = make(SweepExperiment, **sweep)
    folder = SweepFolder(experiment.sweep_url)
    folder.create(yaml.safe_dump(experiment.model_dump(mode="json")))
    record_origin(experiment, folder)
    assert check_sweep(make(SweepExperiment, **sweep), folder, overwrite=False) is None
    CHANGES[what](tmp_path)
    with pytest.raises(InputError, match=f"started with another {what}"):
        check_sweep(make(SweepExperiment, **sweep), folder, overwrite=False)
    assert check_sweep(make(SweepExperiment, **sweep), folder, overwrite=True) is None


def test_a_model_is_used_with_the_mask_that_it_was_trained_for(make: Make, tmp_path: Path) -> None:
    mask = pinned(make()).mask.model_dump()
    folder = write_model(tmp_path / "model", small_recipe(mask=mask))
    physics: Physics = load_model(folder).physics
    make_mask(physics.mask, (16, 16))
    change_mask(tmp_path)
    make()
    with pytest.raises(InputError, match=r"mask\.sha256"):
        make_mask(load_model(folder).physics.mask, (16, 16))


def test_a_pin_goes_with_what_it_is_a_pin_of(make: Make, tmp_path: Path) -> None:
    """The configuration of a run is an experiment too: with another data set it is another one."""
    first = pinned(make())
    path = tmp_path / "first.yaml"
    path.write_text(yaml.safe_dump(first.model_dump(mode="json")))
    assert load_sweep_experiment(str(path), []).training_part() == first
    assert load_sweep_experiment(str(path), ["data.url=elsewhere"]).training_part().data.sha256 is None
    assert load_sweep_experiment(str(path), ["mask.kind=radial", "mask.file=null"]).training_part().mask == MaskConfig(
        kind="radial"
    )
    other = "ab" * 32
    assert (
        load_sweep_experiment(str(path), [f"data.sha256='{other}'", "data.url=x"]).training_part().data.sha256 == other
    )
    assert with_values(first, {"data.url": "elsewhere"}).data.sha256 is None
    assert with_values(first, {"loss.a": 1.0}).data.sha256 == first.data.sha256
    change_data(tmp_path)
    with pytest.raises(InputError, match=r"is not the data set that data\.sha256=.* names"):
        pinned(load_sweep_experiment(str(path), []).training_part())
