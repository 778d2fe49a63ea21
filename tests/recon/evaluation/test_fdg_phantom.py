"""Simulated FDG of a head made of ellipses: maps, data set, training, tables; and what is of another modality."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from larmor.cluster.experiments.experiment import Experiment
from larmor.commands.data import convert
from larmor.commands.models import EvaluateOptions, evaluate, pull, reconstruct
from larmor.commands.training import train
from larmor.recon.evaluation.fdg_phantom import ATTENUATION, FdgOptions, maps_of_tissues, simulate_pet
from larmor.recon.evaluation.head_tissues import find_heads
from larmor.recon.evaluation.tables import table_text
from larmor.storage.conversion.convert import ConvertOptions
from larmor.storage.dataset.dataset import read_split
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore
from larmor.tuning.search.experiment import load_sweep_experiment
from tests.helpers import random_kspace, small_recipe, write_dataset, write_model, write_volume
from tests.recon.evaluation.test_segmentation import head

OPTIONS = FdgOptions(pixel_mm=4, matrix=48, every=3, fine_mm=4)


@pytest.fixture(scope="module", autouse=True)
def libraries() -> None:
    for name in ("SimpleITK", "dipy"):
        pytest.importorskip(name)


@pytest.fixture(scope="module")
def pet_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One head as three subjects: segmenting takes seconds."""
    folder = tmp_path_factory.mktemp("pet")
    slices = [head((96, 80), depth)[0] for depth in np.linspace(-0.9, 0.9, 40)]
    t1 = np.stack(slices)[:, ::-1, ::-1].transpose(2, 0, 1) * np.float32(1000)
    write_volume(folder / "heads" / "ann.nii.gz", t1, np.diag([2, 4, 2, 1]))
    (folder / "heads" / "ann.json").write_text(json.dumps({"licence": "CC0", "source": "drawn"}))
    heads = find_heads([folder / "heads"])
    path = simulate_pet(heads, folder / "maps", OPTIONS)[0].path
    assert path is not None
    with pytest.raises(InputError, match="already exists; pass --overwrite"):
        simulate_pet(heads, folder / "maps", OPTIONS)
    for name in ("bob", "cat"):
        for suffix in (".npy", ".json"):
            shutil.copy(path.with_suffix(suffix), path.with_name(name + suffix))
    url = str(folder / "set")
    convert(str(folder / "maps"), url, ConvertOptions(held_out={"validation": ["bob"], "test": ["cat"]}))
    return url


def test_maps_follow_the_tissues() -> None:
    slices = [head((48, 40), depth) for depth in np.linspace(-0.5, 0.5, 12)]
    classes = np.stack([found for _, found in slices])
    inside = np.stack([image > 0.2 for image, _ in slices])
    activity, attenuation = maps_of_tissues(classes, inside, 4.0, np.random.default_rng(0))
    assert set(np.unique(attenuation)) == {np.float32(0), np.float32(ATTENUATION)}
    assert np.all((activity > 0) == (attenuation > 0)), "activity is where the head is"
    medians = [float(np.median(activity[classes == tissue])) for tissue in (1, 2, 3)]
    np.testing.assert_allclose(medians, [0.2, 4, 1], rtol=0.1)
    again, _ = maps_of_tissues(classes, inside, 4.0, np.random.default_rng(0))
    np.testing.assert_array_equal(activity, again)
    assert not np.array_equal(activity, maps_of_tissues(classes, inside, 4.0, np.random.default_rng(1))[0])


def test_a_place_without_heads_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no NIfTI file"):
        find_heads([tmp_path])


def tiny(url: str, tmp_path: Path, *overrides: str) -> Experiment:
    settings = (
        f"data.url={url}",
        f"output_url={tmp_path}",
        "data.client=s3fs",
        "data.crop=[48,48]",
        "signal.pet.num_angles=30",
        "signal.pet.pixel_mm=4",
        "generator.width=4",
        "critic.width=4",
        "training.num_steps=2",
        "training.validate_every=2",
        "training.checkpoint_every=2",
        "training.validation_slices=2",
        "training.backend=plain",
        "training.zero_stage=0",
        *overrides,
    )
    return load_sweep_experiment("pet", settings).training_part()


def test_train_pull_evaluate_and_reconstruct(pet_url: str, tmp_path: Path) -> None:
    info = read_split(ObjectStore(pet_url), "train")
    assert (info.modality, info.subjects, info.buckets[0].shape) == ("pet", ("ann",), (2, 48, 48))
    experiment = tiny(pet_url, tmp_path)
    train(experiment, local=True)
    model = tmp_path / "model"
    pull(experiment.run_url, model)
    found = evaluate(model, pet_url, EvaluateOptions(every=2))
    (table,) = found.tables
    assert table.label.startswith("simulated FDG PET, 48×48, 3e+05 counts")
    assert [row[0] for row in table_text(table)[1]] == ["FBP", "smoothed", "drgan"]
    text = (model / "evaluation" / "tables.md").read_text()
    assert "zero_filled" not in text
    card = (model / "model-card.md").read_text()
    assert "improves simulated FDG PET images" in card
    assert "| FBP |" in card
    assert "## Mask" not in card
    assert reconstruct(model, pet_url, tmp_path / "images")[0].files
    for options in (EvaluateOptions(methods=["wavelet"]), EvaluateOptions(ratios=[0.1])):
        with pytest.raises(InputError, match=r"about k-space, and a model with signal.mode=pet has none"):
            evaluate(model, pet_url, options)
    slices = str(tmp_path / "slices")
    write_dataset(ObjectStore(slices), {"test": random_kspace(4, (2, 48, 48))})
    with pytest.raises(InputError, match=r"holds MRI.*signal.mode=pet needs activity and attenuation"):
        evaluate(model, slices)
    with pytest.raises(InputError, match="reconstructs simulated scans of a data set"):
        reconstruct(model, str(tmp_path / "scan.npy"), tmp_path / "out")


def test_mri_is_not_read_as_pet_nor_pet_as_mri(pet_url: str, tmp_path: Path) -> None:
    message = r"holds activity and attenuation.*signal.mode=magnitude needs MRI"
    model: Any = write_model(tmp_path / "model", small_recipe())
    for use in (
        lambda: evaluate(model, pet_url),
        lambda: reconstruct(model, pet_url, tmp_path / "images"),
        lambda: train(tiny(pet_url, tmp_path, "signal.mode=magnitude"), local=True),
    ):
        with pytest.raises(InputError, match=message):
            use()
