"""A model directory appears whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from cluster.experiment import Experiment, dump_yaml
from cluster.pull import metric_direction, pull_run
from cluster.run_folder import RunFolder
from recon.metrics import HIGHER_IS_BETTER
from recon.model import load_model
from storage.errors import InputError
from tests.helpers import add_checkpoint, contents_of, flip_byte, make_generator, small_recipe

FIGURES = {10: (20.0, 0.30), 20: (30.0, 0.10), 30: (25.0, 0.05)}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Three checkpoints: step 20 is the best by PSNR, step 30 by NMSE."""
    run = RunFolder(str(tmp_path / "run"))
    run.create("seed: 1\n")
    for step, (psnr, nmse) in FIGURES.items():
        files = {"generator.safetensors": b"weights of step %d" % step, "training/rank0.pt": b"state"}
        add_checkpoint(run, tmp_path / "scratch", step, {"val/psnr": psnr, "val/nmse": nmse}, files)
    return run


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "models" / "mine"


def beside(target: Path) -> set[str]:
    return {path.name for path in target.parent.iterdir()} if target.parent.exists() else set()


@pytest.mark.parametrize(("metric", "step"), [("psnr", 20), ("val/psnr", 20), ("nmse", 30)])
def test_the_best_checkpoint_arrives_without_anything_else(
    run: RunFolder, target: Path, metric: str, step: int
) -> None:
    best = pull_run(run, metric, target, overwrite=False)
    assert best.step == step
    found = contents_of(target)
    assert set(found) == {"generator.safetensors", "config.yaml", "metrics.json"}
    assert found["generator.safetensors"] == b"weights of step %d" % step
    assert found["config.yaml"] == b"seed: 1\n"
    record = json.loads(found["metrics.json"])
    assert (record["step"], record["chosen_by"]) == (step, f"val/{metric.removeprefix('val/')}")
    assert record["metrics"] == {"val/psnr": FIGURES[step][0], "val/nmse": FIGURES[step][1]}
    assert record["source"].startswith(run.url)
    assert beside(target) == {"mine"}


def test_damaged_weights_leave_nothing(run: RunFolder, target: Path) -> None:
    flip_byte(run.store, f"{run.best('val/psnr', True).folder}/generator.safetensors", 5)
    with pytest.raises(InputError, match=r"generator.safetensors: checksum .* does not match"):
        pull_run(run, "psnr", target, overwrite=False)
    assert beside(target) == set()


def test_an_existing_target_is_refused_and_untouched(run: RunFolder, target: Path) -> None:
    target.mkdir(parents=True)
    (target / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=f"{target}: exists already; pass --overwrite"):
        pull_run(run, "psnr", target, overwrite=False)
    assert contents_of(target) == {"mine.txt": b"mine"}


def test_overwriting_replaces_all_of_it(run: RunFolder, target: Path) -> None:
    pull_run(run, "psnr", target, overwrite=False)
    (target / "old.txt").write_text("old")
    pull_run(run, "nmse", target, overwrite=True)
    assert set(contents_of(target)) == {"generator.safetensors", "config.yaml", "metrics.json"}
    assert (target / "generator.safetensors").read_bytes() == b"weights of step 30"
    assert beside(target) == {"mine"}


def test_overwriting_that_fails_keeps_the_old_one(run: RunFolder, target: Path) -> None:
    pull_run(run, "psnr", target, overwrite=False)
    before = contents_of(target)
    flip_byte(run.store, f"{run.best('val/nmse', False).folder}/generator.safetensors", 0)
    with pytest.raises(InputError, match="checksum"):
        pull_run(run, "nmse", target, overwrite=True)
    assert contents_of(target) == before
    assert beside(target) == {"mine"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_is_never_replaced_by_a_directory(run: RunFolder, target: Path, overwrite: bool) -> None:
    target.parent.mkdir()
    target.write_text("mine")
    with pytest.raises(InputError, match=f"{target}: is a file; choose another --to"):
        pull_run(run, "psnr", target, overwrite)
    assert target.read_text() == "mine"


def test_an_unknown_metric_names_the_known_ones(run: RunFolder, target: Path) -> None:
    with pytest.raises(InputError, match="'fid' is not a validation metric; choose one of psnr, ssim, mse, rmse, nmse"):
        pull_run(run, "fid", target, overwrite=False)
    with pytest.raises(InputError, match="metric 'val/ssim'; its metrics are val/nmse, val/psnr"):
        pull_run(run, "ssim", target, overwrite=False)
    assert beside(target) == set()


def test_without_a_run_or_a_checkpoint_nothing_appears(tmp_path: Path, target: Path) -> None:
    empty = RunFolder(str(tmp_path / "empty"))
    with pytest.raises(InputError, match=f"{empty.url}: no run is there"):
        pull_run(empty, "psnr", target, overwrite=False)
    empty.create("seed: 1")
    with pytest.raises(InputError, match="it has no whole checkpoint yet"):
        pull_run(empty, "psnr", target, overwrite=False)
    assert beside(target) == set()


@pytest.mark.parametrize("name", HIGHER_IS_BETTER)
def test_every_metric_has_its_direction(name: str) -> None:
    assert metric_direction(name) == metric_direction(f"val/{name}") == (f"val/{name}", HIGHER_IS_BETTER[name])


@torch.no_grad()
def test_what_is_pulled_is_a_model(tmp_path: Path, target: Path) -> None:
    recipe = small_recipe(mask={"sampling_ratio": 0.4})
    experiment = Experiment.model_validate({**recipe.model_dump(mode="json"), "name": "mine"})
    generator = make_generator(recipe, seed=5)
    run = RunFolder(str(tmp_path / "run"))
    run.create(dump_yaml(experiment))
    weights = save(generator.state_dict())
    add_checkpoint(run, tmp_path / "scratch", 10, {"val/psnr": 1.0}, {"generator.safetensors": weights})
    pull_run(run, "psnr", target, overwrite=False)
    model = load_model(target)
    assert model.recipe == recipe
    assert model.record["step"] == 10
    image = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.generator(image), generator(image))
