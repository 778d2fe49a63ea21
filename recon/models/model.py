"""A pulled model: `generator.safetensors` with the configuration it was trained with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file

from larmor.recon.engines.device import choose_device
from larmor.recon.inference.inference import Physics
from larmor.recon.networks.networks import build_generator
from larmor.recon.recipe.recipe import Recipe
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.file_digest import file_digest

MODEL_FORMAT = 1


@dataclass(frozen=True)
class Model:
    """A generator ready to use (called with a sample's `measurement`); how its input was undersampled; the recipe;
    what `larmor pull` wrote of its origin and metrics; and the directory it came from."""

    generator: torch.nn.Module
    physics: Physics
    recipe: Recipe
    record: dict[str, Any]
    folder: Path


def load_model(folder: Path, device: torch.device | str = "cpu") -> Model:
    """Read a model directory made by `larmor pull`.

    Raises `InputError` if a file is missing, does not match its suffix, does not fit the others, has changed since it
    was pulled, or was written by a newer Larmor.
    """
    config_path, weights_path = folder / "config.yaml", folder / "generator.safetensors"
    for path in (config_path, weights_path):
        if not path.is_file():
            raise InputError(f"{path}: no such file; a model directory is made by `larmor pull`")
    record = _record(folder / "metrics.json")
    try:
        content = yaml.safe_load(config_path.read_text())
        recipe = Recipe.model_validate({key: content[key] for key in Recipe.model_fields if key in content})
    except (yaml.YAMLError, UnicodeDecodeError, ValidationError, TypeError) as error:
        raise InputError(f"{config_path}: is not the configuration of a model ({error}); pull it again") from error
    generator = build_generator(recipe.generator, recipe.signal.channels, recipe.data.stack)
    try:
        generator.load_state_dict(load_file(weights_path))
    except (SafetensorError, RuntimeError) as error:
        # torch lists every tensor that does not fit: the first one says enough
        reason = " ".join(line.strip() for line in str(error).splitlines()[:2])
        raise InputError(f"{weights_path}: does not fit {config_path.name} ({reason}); pull it again") from error
    expected = record.get("sha256", {}).get(weights_path.name)
    if expected and file_digest(weights_path) != expected:
        raise InputError(f"{weights_path}: has changed since it was pulled (SHA-256, metrics.json); pull it again")
    physics = Physics(recipe.data.crop, recipe.mask, recipe.signal, recipe.data.stack)
    return Model(generator.eval().to(choose_device(device)), physics, recipe, record, folder)


def _record(path: Path) -> dict[str, Any]:
    """What `larmor pull` wrote; empty if the file is not there."""
    try:
        record = json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise InputError(f"{path}: is not JSON ({error}); pull it again") from error
    if record.get("format", 1) > MODEL_FORMAT:
        raise InputError(
            f"{path}: this model has format {record['format']}, this Larmor reads up to {MODEL_FORMAT}; update Larmor, "
            "or pull it again with this one"
        )
    return record
