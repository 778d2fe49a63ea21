"""A model directory is read back, or refused with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from larmor.recon.models.model import load_model
from larmor.storage.objects.errors import InputError
from tests.helpers import make_generator, random_images, small_recipe, write_model

MASK = {"kind": "gaussian2d", "sampling_ratio": 0.4, "seed": 9}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model", small_recipe(mask=MASK))


@torch.no_grad()
def test_a_model_comes_back_with_its_physics(folder: Path) -> None:
    (folder / "metrics.json").write_text(json.dumps({"step": 5}))
    model, recipe = load_model(folder), small_recipe(mask=MASK)
    assert model.recipe == recipe
    assert (model.physics.crop, model.physics.mask) == ((32, 32), recipe.mask)
    assert model.record == {"step": 5}
    assert not model.generator.training
    image = random_images(2, 32, 32)
    expected = make_generator(recipe)(image)
    assert not torch.equal(expected, image)
    assert torch.equal(model.generator(image), expected)


def test_the_record_may_be_missing_and_other_sections_do_not_matter(folder: Path) -> None:
    content = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**content, "name": "a-run", "cluster": {"num_workers": 4}}))
    model = load_model(folder)
    assert model.record == {}
    assert model.recipe == small_recipe(mask=MASK)


def damage(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def cut_weights(folder: Path) -> None:
    path = folder / "generator.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def another_width(folder: Path) -> None:
    (folder / "config.yaml").write_text(yaml.safe_dump(small_recipe(generator={"width": 8}).model_dump(mode="json")))


def one_tensor_less(folder: Path) -> None:
    state = make_generator(small_recipe()).state_dict()
    state.pop("last.weight")
    save_file(state, folder / "generator.safetensors")


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda folder: (folder / "generator.safetensors").unlink(), "generator.safetensors: no such file"),
    "no configuration": (lambda folder: (folder / "config.yaml").unlink(), "config.yaml: no such file"),
    "weights are text": (damage("generator.safetensors", b"hello"), "generator.safetensors: does not fit config.yaml"),
    "weights are a pickle": (
        damage("generator.safetensors", b"\x80\x04\x95" + bytes(50)),
        "generator.safetensors: does not fit config.yaml",
    ),
    "weights cut short": (cut_weights, "generator.safetensors: does not fit config.yaml"),
    "a tensor less": (one_tensor_less, "generator.safetensors: does not fit config.yaml"),
    "another width": (another_width, "generator.safetensors: does not fit config.yaml"),
    "configuration is not YAML": (damage("config.yaml", b"a: [1"), "config.yaml: is not the configuration"),
    "configuration is not text": (damage("config.yaml", b"\xff\xfe\x00"), "config.yaml: is not the configuration"),
    "configuration is empty": (damage("config.yaml", b""), "config.yaml: is not the configuration"),
    "unknown key": (damage("config.yaml", b"mask: {radial: 1}"), "config.yaml: is not the configuration"),
    "record is not JSON": (damage("metrics.json", b"{'step'"), "metrics.json: is not JSON"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_model_directory_is_refused(folder: Path, case: str) -> None:
    spoil, reason = WRONG[case]
    spoil(folder)
    with pytest.raises(InputError, match=f"{folder}/{reason}(?s:.*)(larmor pull|pull it again)"):
        load_model(folder)
