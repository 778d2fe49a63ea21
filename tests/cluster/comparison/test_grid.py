"""A grid trains each system once, rates all alike, and goes on where it was stopped."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from larmor.cluster.comparison.grid import cells, experiments, fill, load_grid, shipped_grids
from larmor.cluster.runs.run_folder import RunFolder
from larmor.recon.recipe.systems import SYSTEMS
from larmor.storage.dataset import dataset, writing
from larmor.storage.loading.reader import SliceReader
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore
from tests.helpers import random_kspace, write_dataset, write_split
from tests.workbench import larmor

TINY: dict[str, Any] = {
    "experiment": "laptop",
    "sizes": [[32, 40]],
    "masks": ["gaussian2d"],
    "ratios": [0.3, 0.5],
    "num_images": 8,
    "overrides": {
        "generator.width": 4,
        "critic.width": 4,
        "critic.steps": 1,
        "training.global_batch_size": 4,
        "training.backend": "plain",
        "training.zero_stage": 0,
        "cluster.num_workers": 1,
        "data.client": "s3fs",
    },
    "systems": {"gan_resnet50_dc": {}, "unet": {"generator.width": 6}},
}


@pytest.fixture
def data(tmp_path: Path) -> str:
    store = ObjectStore(str(tmp_path / "set"))
    sizes = {"train": 8, "validation": 3, "test": 4}
    write_dataset(store, {split: random_kspace(n, (1, 32, 40), seed) for seed, (split, n) in enumerate(sizes.items())})
    return store.url


@pytest.fixture
def grid_file(tmp_path: Path) -> str:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return str(path)


def test_the_grid_is_filled_and_nothing_is_done_twice(data: str, grid_file: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    said: list[str] = []
    arguments = (load_grid(grid_file, {}), "small", data, str(tmp_path / "out"), tmp_path / "tables", "cpu")
    first = fill(*arguments, said.append)
    assert [result.label for result in first] == ["32×40, gaussian2d 30 %", "32×40, gaussian2d 50 %"]
    for result in first:
        assert result.methods == ("zero_filled", "gan_resnet50_dc", "unet")
        assert len(result.slices) == 3 * 4
        assert np.isfinite([row.metrics["psnr"] for row in result.slices]).all()
    assert sum("on the validation split" in line for line in said) == 4
    text = (tmp_path / "tables" / "tables.md").read_text()
    assert "Every system saw 8 images" in text
    assert "| unet | unet | 6 |" in text
    assert text.count("###") == 2
    assert len(list((tmp_path / "tables").glob("comparison-*.png"))) == 2

    said.clear()
    assert [result.slices for result in fill(*arguments, said.append)] == [result.slices for result in first]
    assert said == []
    with_classical = load_grid(grid_file, {"classical": ["wavelet"]})
    pytest.importorskip("sigpy")
    again = fill(with_classical, *arguments[1:], said.append)
    assert again[0].methods == ("zero_filled", "wavelet", "gan_resnet50_dc", "unet"), "rated anew, not trained anew"
    assert not any("on the validation split" in line for line in said)
    assert [len(result.slices) for result in again] == [4 * 4] * 2, "zero-filled counts once"
    assert again[0].examples
    assert all(set(example.images) == set(again[0].methods) for example in again[0].examples)


def test_another_grid_under_the_same_name_is_refused_or_takes_its_place(
    data: str, grid_file: str, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    changes = {"systems": {"unet": {}}, "ratios": [0.3]}
    arguments = ("small", data, str(tmp_path / "out"), tmp_path / "tables", "cpu", lambda _: None)
    first = fill(load_grid(grid_file, changes), *arguments)
    other = load_grid(grid_file, {**changes, "systems": {"unet": {"seed": 1}}})
    with pytest.raises(InputError, match=r"differs in seed.*--overwrite"):
        fill(other, *arguments)
    second = fill(other, *arguments, overwrite=True)
    assert first[0].mean("zero_filled")["psnr"] == second[0].mean("zero_filled")["psnr"]
    assert first[0].mean("unet")["psnr"] != second[0].mean("unet")["psnr"], "the new model is rated, not the old one"


def test_no_table_mixes_rows_of_two_data_sets(data: str, grid_file: str, tmp_path: Path) -> None:
    """Only the images to be rated are others: the same models come out of the training again."""
    torch.set_num_threads(1)
    grid = load_grid(grid_file, {"systems": {"unet": {}}, "ratios": [0.3], "classical": ["wavelet"]})
    arguments = ("small", data, str(tmp_path / "out"), tmp_path / "tables", "cpu", lambda _: None)
    pytest.importorskip("sigpy")
    (first,) = fill(grid, *arguments)
    store = ObjectStore(data)
    kspace = {split: np.stack(_slices(store, split)) for split in ("train", "validation")}
    writing.remove(store)
    splits = {**kspace, "test": random_kspace(4, (1, 32, 40), seed=9)}
    source = {
        "volume": "v",
        "format": "npy",
        "plane": "acquired",
        "licence": "own",
        "files": [{"file": "v.npy", "sha256": "ab"}],
    }
    writing.publish(store, {split: write_split(store, split, k) for split, k in splits.items()}, [source])
    with pytest.raises(InputError, match="started with another data set"):
        fill(grid, *arguments)
    (second,) = fill(grid, *arguments, overwrite=True)
    for method in ("zero_filled", "wavelet", "unet"):
        assert first.mean(method)["psnr"] != second.mean(method)["psnr"], method


def _slices(store: ObjectStore, split: str) -> list[np.ndarray]:
    with contextlib.closing(SliceReader(store, dataset.read_split(store, split))) as reader:
        return reader.read(range(reader.info.num_slices))


@pytest.mark.parametrize("name", ["code_hash", "describe_mask"])
def test_what_other_code_or_another_mask_rated_is_rated_again(
    data: str, grid_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    torch.set_num_threads(1)
    grid = load_grid(grid_file, {"systems": {"unet": {}}, "ratios": [0.3], "num_validations": 1})
    arguments = (grid, "small", data, str(tmp_path / "out"), tmp_path / "tables", "cpu")
    said: list[str] = []
    fill(*arguments, said.append)
    assert "gain of unet" in "".join(said)
    said.clear()
    fill(*arguments, said.append)
    assert said == []
    monkeypatch.setattr(f"larmor.cluster.comparison.grid_cell.{name}", lambda *_: {"sha256": "another"})
    fill(*arguments, said.append)
    assert "gain of unet" in "".join(said)
    assert "on the validation split" not in "".join(said), "nothing is trained again"


def test_runs_that_are_not_kept_leave_their_models(data: str, grid_file: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    said: list[str] = []
    grid = load_grid(grid_file, {"keep_runs": False, "num_validations": 1, "ratios": [0.3]})
    arguments = (grid, "small", data, str(tmp_path / "out"), tmp_path / "tables", "cpu", said.append)
    (first,) = fill(*arguments)
    assert list((tmp_path / "out").rglob("*.safetensors")) == []
    assert len(list((tmp_path / "tables").rglob("*.safetensors"))) == 2
    said.clear()
    assert fill(*arguments)[0].slices == first.slices
    assert said == [], "nothing is trained or rated again"


def test_a_system_that_diverges_is_left_out_and_named(data: str, grid_file: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    said: list[str] = []
    systems = {**TINY["systems"], "unet": {"generator_optimizer.learning_rate": 1e30}}
    grid = load_grid(grid_file, {"systems": systems, "ratios": [0.3]})
    arguments = (grid, "small", data, str(tmp_path / "out"), tmp_path / "tables", "cpu", said.append)
    (result,) = fill(*arguments)
    assert result.methods == ("zero_filled", "gan_resnet50_dc")
    assert any("unet is left out: training diverged" in line for line in said)
    text = (tmp_path / "tables" / "tables.md").read_text()
    assert "Diverged, therefore without figures: unet (32×40, gaussian2d 30 %)." in text
    assert fill(*arguments)[0].slices == result.slices, "the others are kept"


def test_all_systems_of_a_cell_see_the_same(data: str, grid_file: str) -> None:
    grid = load_grid(grid_file, {})
    found = [pair for cell in cells(grid) for pair in experiments(grid, cell, "small", data, "out").items()]
    assert [system for system, _ in found] == ["gan_resnet50_dc", "unet"] * 2
    for _, experiment in found:
        assert experiment.training.num_steps * experiment.training.global_batch_size == 8
    first, second = (experiment for _, experiment in found[:2])
    assert (first.data, first.mask, first.seed) == (second.data, second.mask, second.seed)
    assert (first.generator.width, second.generator.width) == (4, 6)
    assert len({experiment.name for _, experiment in found}) == 4


@pytest.mark.parametrize("name", ["laptop", "paper", "systems"])
def test_shipped_grids_hold_every_system(name: str) -> None:
    assert set(shipped_grids()) == {"ablation", "coils", "dynamic", "laptop", "paper", "pet", "systems"}
    grid = load_grid(name, {})
    of_images = {
        name for name, given in SYSTEMS.items() if given.get("signal", {}).get("coils") != "all" and "data" not in given
    }
    assert set(grid.systems) == of_images, "others need the k-space of several coils, or series"
    names = [each.name for cell in cells(grid) for each in experiments(grid, cell, name, "data", "out").values()]
    trainings = sum(grid.seeds.get(system, 1) for system in grid.systems)
    assert len(names) == len(set(names)) == len(grid.sizes) * len(grid.masks) * len(grid.ratios) * trainings


def test_variants_of_one_system_have_names_of_their_own() -> None:
    grid = load_grid("ablation", {})
    found = experiments(grid, cells(grid)[0], "ablation", "data", "out")
    variants = {name: experiment for name, experiment in found.items() if " (seed " not in name}
    assert set(variants) == set(grid.systems) > {"larmor", "no_critic", "zero_filled_start", "two_cascades"}
    assert set(found) - set(variants) == {f"{name} (seed {n})" for name in ("larmor", "no_critic") for n in (1, 2)}
    assert {experiment.system for experiment in found.values()} == {"larmor"}
    base = variants["larmor"]
    for name, experiment in variants.items():
        assert (experiment.training.num_steps, experiment.seed) == (base.training.num_steps, base.seed)
        assert (experiment.model_copy(update={"name": base.name}) == base) == (name == "larmor")


def test_several_seeds_are_rows_of_their_own_with_their_spread(data: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    content = {**TINY, "ratios": [0.3], "seeds": {"unet": 3}, "every": 2}
    path = tmp_path / "seeds.yaml"
    path.write_text(yaml.safe_dump(content))
    said: list[str] = []
    place = str(tmp_path / "out"), tmp_path / "tables"
    (result,) = fill(load_grid(str(path), {}), "seeds", data, *place, "cpu", said.append)
    assert result.methods == ("zero_filled", "gan_resnet50_dc", "unet", "unet (seed 1)", "unet (seed 2)")
    assert len(result.slices) == 2 * 5, "every other of four slices"
    values = [result.mean(method)["psnr"] for method in result.methods[2:]]
    assert len(set(values)) == 3
    text = (tmp_path / "tables" / "tables.md").read_text()
    assert f"| unet | 3 | {np.mean(values):.3f} ± {np.std(values, ddof=1):.3f} |" in text
    assert "one in 2 of each volume, the same ones in every row" in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"systems": {"vae": {}}}, ["systems", "vae"]),
        ({"colour": "red"}, ["colour"]),
        ({"ratios": []}, ["ratios"]),
    ],
)
def test_wrong_grids_are_refused(tmp_path: Path, changes: dict[str, object], words: list[str]) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump({**TINY, **changes}))
    with pytest.raises(InputError) as caught:
        load_grid(str(path), {})
    for word in words:
        assert word in str(caught.value)
    with pytest.raises(InputError, match="shipped grids are ablation, coils, dynamic, laptop, paper, pet, systems"):
        load_grid("nothere", {})


def test_the_command_fills_a_grid(data: str, grid_file: str, tmp_path: Path) -> None:
    out, tables = str(tmp_path / "out"), tmp_path / "tables"
    done = larmor("benchmark", "tables", "--preset", grid_file, "--data", data, "--output", out, "--to", str(tables))
    assert done.returncode == 0, done.stderr
    assert "gain of unet" in done.stdout
    run = RunFolder(f"{out}/runs/tables-small-8-32x40-gaussian2d-30-unet")
    assert run.result() is not None
    models = [str(tables / "models" / f"tables-small-8-32x40-gaussian2d-{ratio}-unet") for ratio in (30, 50)]
    done = larmor("evaluate", *models, data, "--ratio", "0.4", "--size", "16x24", "--to", str(tmp_path / "evaluation"))
    assert done.returncode == 0, done.stderr
    assert "16×24, gaussian2d 40 %" in done.stdout
    assert "unet (tables-small-8-32x40-gaussian2d-50-unet)" in done.stdout
    done = larmor("evaluate", *models, data, "--size", "99x99", "--to", str(tmp_path / "no"))
    assert done.returncode == 1
    assert "slices of 32×40" in done.stderr
    assert not (tmp_path / "no").exists()


def test_a_system_of_many_ratios_is_rated_at_the_cells(data: str, grid_file: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    many = {"mask.sampling_ratio": {"min": 0.2, "max": 0.6}}
    grid = load_grid(grid_file, {"systems": {"unet": many}, "ratios": [0.3]})
    (found,) = fill(grid, "small", data, str(tmp_path / "out"), tmp_path / "tables", "cpu", lambda _: None)
    assert found.label == "32×40, gaussian2d 30 %"
    run = RunFolder(f"{tmp_path}/out/runs/small-32x40-gaussian2d-30-unet")
    assert yaml.safe_load(run.store.read("config.yaml"))["mask"]["sampling_ratio"] == {"min": 0.2, "max": 0.6}
