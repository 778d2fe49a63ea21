"""Which models and methods stand in which table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from larmor.recon.evaluation.methods import CLASSICAL, classical_method, named, parse_size, table_cells
from larmor.recon.evaluation.tables import slug
from larmor.recon.inference.inference import Physics
from larmor.recon.models.model import Model, load_model
from larmor.recon.networks.networks import build_generator
from larmor.recon.physics.samples import prepare
from larmor.recon.recipe.recipe import Recipe
from larmor.storage.loading.loader import Batch
from larmor.storage.objects.errors import InputError
from tests.helpers import random_kspace, small_recipe, write_model


def make_model(folder: Path, ratio: float) -> Model:
    return load_model(write_model(folder, small_recipe(mask={"sampling_ratio": ratio})))


@pytest.fixture
def models(tmp_path: Path) -> list[Model]:
    return [make_model(tmp_path / name, ratio) for name, ratio in (("a", 0.1), ("b", 0.1), ("c", 0.5))]


def test_models_meet_in_the_table_of_what_they_were_trained_for(models: list[Model]) -> None:
    cells = table_cells(named(models), ["wavelet"])
    assert [cell.physics.mask.sampling_ratio for cell in cells] == [0.1, 0.5]
    assert [list(cell.methods) for cell in cells] == [
        ["wavelet", "gan_resnet50 (a)", "gan_resnet50 (b)"],
        ["wavelet", "gan_resnet50 (c)"],
    ]


def test_every_model_is_rated_on_each_given_combination(models: list[Model]) -> None:
    cells = table_cells(named(models), [], [(16, 24), (32, 32)], ["radial"], [0.2, 0.3])
    found = [(cell.physics.crop, cell.physics.mask.kind, cell.physics.mask.sampling_ratio) for cell in cells]
    assert found == [(size, "radial", ratio) for size in ((16, 24), (32, 32)) for ratio in (0.2, 0.3)]
    assert all(len(cell.methods) == 3 for cell in cells)


def test_a_model_of_a_range_meets_others_at_a_given_ratio(models: list[Model], tmp_path: Path) -> None:
    mask = {"sampling_ratio": {"min": 0.1, "max": 0.5}}
    all_models = named([*models, load_model(write_model(tmp_path / "range", small_recipe(mask=mask)))])
    own = table_cells(all_models, [])
    assert [cell.physics.label((8, 8)) for cell in own] == [f"8×8, gaussian1d {of} %" for of in (10, 50, "10 to 50")]
    assert list(own[2].methods) == ["gan_resnet50 (range)"]
    given = table_cells(all_models, [], ratios=[0.1, 0.5])
    assert [(cell.physics.mask.sampling_ratio, len(cell.methods)) for cell in given] == [(0.1, 4), (0.5, 4)]
    assert len({slug(cell.physics) for cell in (*own, *given)}) == 3


def test_a_model_alone_has_its_systems_name(models: list[Model]) -> None:
    assert list(named(models[:1])) == ["gan_resnet50"]
    with pytest.raises(InputError, match="rename one"):
        named([models[0], models[0]])


@pytest.mark.parametrize("text", ["16", "16x", "16x24x3", "4x24", "ax24", "-16x24"])
def test_sizes_are_height_x_width(text: str) -> None:
    with pytest.raises(InputError, match="expected HEIGHTxWIDTH"):
        parse_size(text)
    assert parse_size("128x256") == parse_size("128×256") == (128, 256)


def test_what_there_is_not_is_refused(models: list[Model]) -> None:
    with pytest.raises(InputError, match=", ".join(CLASSICAL)):
        table_cells(named(models), ["magic"])
    with pytest.raises(InputError, match=r"ratio 1\.5"):
        table_cells(named(models), [], ratios=[1.5])
    with pytest.raises(InputError, match="mask cubes"):
        table_cells(named(models), [], kinds=["cubes"])


def test_alternating_is_what_larmor_starts_from_and_needs_the_maps() -> None:
    recipe = Recipe.model_validate({"system": "larmor", "generator": {"width": 4}, "data": {"crop": (32, 48)}})
    generator = build_generator(recipe.generator)
    batch = Batch.of(random_kspace(2, (1, 32, 48)), np.array([(0, 0), (0, 1)]))
    sample = prepare(batch, recipe.data.crop, recipe.mask, torch.device("cpu"))
    physics = Physics(recipe.data.crop, recipe.mask, recipe.signal)
    found = classical_method("alternating", physics)(sample)
    assert torch.equal(found, generator.start(*sample.measurement))  # type: ignore[operator]
    coils = replace(sample, kspace=sample.kspace.repeat(1, 3, 1, 1))
    with pytest.raises(InputError, match=r"alternating.*needs the sensitivity maps.*--sensitivity-maps"):
        classical_method("alternating", physics)(coils)
