"""An installed package gives short names to its parts; the recipe keeps their paths."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from larmor.recon.recipe.recipe import Recipe
from larmor.storage.objects.errors import InputError
from larmor.tuning.search.experiment import build_sweep_experiment

NAMES = """
[larmor.generators]
lab_net = nolab.nets:Net
unet = nolab.nets:UNet
wrong = nolab.nets
[larmor.critics]
lab_critic = nolab.nets:Critic
[larmor.losses]
lab_loss = nolab.losses:charbonnier
[larmor.masks]
lab_mask = nolab.masks:points
[larmor.metrics]
lab_metric = nolab.metrics:blur
lab_other = nolab.metrics:noise
[larmor.systems]
lab_system = labparts:system
"""


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The metadata of a package whose code is nowhere: a recipe imports nothing."""
    folder = tmp_path / "nolab-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: nolab\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(NAMES)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])


def test_every_kind_of_part_has_them() -> None:
    recipe = Recipe.model_validate(
        {
            "generator": {"name": "lab_net", "options": {"width": 8}},
            "critic": {"name": "lab_critic"},
            "loss": {"content": "lab_loss"},
            "mask": {"kind": "lab_mask"},
            "training": {"metrics": ["lab_metric"], "best_metric": "lab_other"},
        }
    )
    assert recipe.own_parts == {
        "generator.name": "nolab.nets:Net",
        "critic.name": "nolab.nets:Critic",
        "loss.content": "nolab.losses:charbonnier",
        "mask.kind": "nolab.masks:points",
        "training.metrics.0": "nolab.metrics:noise",
        "training.metrics.1": "nolab.metrics:blur",
    }
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe


def test_a_system_is_had_by_its_short_name_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its defaults are read, and the experiment keeps its path."""
    (tmp_path / "labparts.py").write_text('system = {"generator": {"name": "dagan"}, "loss": {"a": 3}}\n')
    content = {"system": "lab_system", "loss": {"b": 2}}
    experiment = build_sweep_experiment(content, [], "here")
    monkeypatch.delitem(sys.modules, "labparts")
    assert (experiment.system, experiment.generator.name) == ("labparts:system", "dagan")
    assert (experiment.loss.a, experiment.loss.b) == (3, 2)
    with pytest.raises(InputError, match=r"system='lab_systm': .*installed packages have lab_system"):
        build_sweep_experiment({"system": "lab_systm"}, [], "here")


def test_larmors_own_names_come_first() -> None:
    assert Recipe.model_validate({"generator": {"name": "unet"}}).own_parts == {}


@pytest.mark.parametrize("name", ["lab_nett", "lab_critic", "wrong"])
def test_an_unknown_name_is_told_what_there_is(name: str) -> None:
    with pytest.raises(ValidationError, match=r"MODULE:NAME of your own code \(installed packages have .*lab_net\b"):
        Recipe.model_validate({"generator": {"name": name}})
