"""A pulled model: `generator.safetensors` with the configuration it was trained with."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from larmor.recon.engines.device import choose_device
from larmor.recon.inference.inference import Physics
from larmor.recon.networks.networks import build_generator
from larmor.recon.recipe.own_code import INSTALLED, code_hash, import_part, make_importable, parts_elsewhere
from larmor.recon.recipe.own_name import declared_parts
from larmor.recon.recipe.recipe import Recipe
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.file_digest import file_digest

MODEL_FORMAT = 1
WEIGHTS = "generator.safetensors"
Network = TypeVar("Network", bound=torch.nn.Module)


@dataclass(frozen=True)
class Model:
    """A generator ready to use (called with a sample's `measurement`); how its input was undersampled; the recipe;
    what `larmor pull` wrote of its origin and metrics; and the directory it came from."""

    generator: torch.nn.Module
    physics: Physics
    recipe: Recipe
    record: dict[str, Any]
    folder: Path


def load_model(
    folder: Path, device: torch.device | str = "cpu", trust_code: Sequence[str | Path] | None = None
) -> Model:
    """Read a model directory made by `larmor pull`.

    A model with parts that are not Larmor's needs their code: `trust_code` is where it lies, or `installed` for
    packages that are installed. Nothing of it runs otherwise.

    Raises `InputError` if a file is missing, does not match its suffix, does not fit the others, has changed since it
    was pulled, or was written by a newer Larmor; for a model that decodes; and for code that is not trusted, or is
    not that of the training.
    """
    recipe, record = read_recipe(folder)
    if recipe.decoding is not None:
        raise InputError(
            f"{folder}: system={recipe.system} decodes fMRI trials and reconstructs no MRI; evaluate it with "
            "`larmor decode evaluate`"
        )
    _trust(folder, recipe, trust_code)
    generator = build_generator(recipe.generator, recipe.signal.channels, recipe.data.stack, recipe.signal.guide)
    load_weights(folder, record, lambda _: generator)
    physics = Physics(recipe.data.crop, recipe.mask, recipe.signal, recipe.data.stack)
    return Model(generator.eval().to(choose_device(device)), physics, recipe, record, folder)


def at_ratio(model: Model, ratio: float) -> Model:
    """The model for images that are undersampled at one ratio. Raises `InputError` where its mask has no ratio, and for
    one that cannot be."""
    mask = model.physics.mask
    if model.physics.signal.mode == "pet" or mask.kind == "file":
        what = "signal.mode=pet and no mask" if model.physics.signal.mode == "pet" else f"the mask {mask.file}"
        raise InputError(f"--ratio {ratio:g}: {model.folder} has {what}, which no ratio changes; leave it out")
    if not 0 < ratio <= 1:
        raise InputError(f"--ratio {ratio:g}: measured points / all points; give a number above 0, up to 1")
    return replace(model, physics=replace(model.physics, mask=mask.model_copy(update={"sampling_ratio": ratio})))


def _trust(folder: Path, recipe: Recipe, trust_code: Sequence[str | Path] | None) -> None:
    if not recipe.parts_of_model:
        return
    if not trust_code:
        raise InputError(
            f"{folder}: runs code that is not Larmor's ({_listed(recipe.parts_of_model)}); pass --trust-code with its "
            f"folder, or --trust-code {INSTALLED} if it is an installed package, and only if you know it"
        )
    paths = [path for path in trust_code if str(path) != INSTALLED]
    elsewhere = parts_elsewhere(recipe.parts_of_model, paths)
    if elsewhere and len(paths) == len(trust_code):
        raise InputError(
            f"{folder}: runs code that is not in {', '.join(map(str, paths))} ({_listed(elsewhere)}); pass "
            f"--trust-code with its folder too, or --trust-code {INSTALLED} if it is an installed package"
        )
    if recipe.code.sha256 and recipe.code.sha256 != (found := code_hash(paths)):
        raise InputError(
            f"{folder}: was trained with other code than that in {', '.join(map(str, paths)) or 'no folder'} (SHA-256 "
            f"{recipe.code.sha256[:12]}…, now {found[:12]}…); give the code of the training, or set code.sha256 "
            "to null in its config.yaml"
        )
    make_importable(paths)
    _check_installed(folder, elsewhere)


def _check_installed(folder: Path, parts: Mapping[str, str]) -> None:
    """Of installed code a model chooses a network or a declared mask: `torch.hub:load` would run anything."""
    kind = parts.get("mask.kind")
    if kind is not None and kind not in declared_parts("larmor.masks").values():
        raise InputError(
            f"{folder}: mask.kind={kind} is no mask that an installed package declares (entry points larmor.masks), "
            f"and --trust-code {INSTALLED} allows no other; pass --trust-code with its folder"
        )
    if (name := parts.get("generator.name")) is None:
        return
    part = import_part(name)
    if not (isinstance(part, type) and issubclass(part, nn.Module)):
        raise InputError(
            f"{folder}: generator.name={name} is no class of networks (torch.nn.Module), and --trust-code {INSTALLED} "
            "allows no other; put it into a class of your own, and pass --trust-code with its folder"
        )


def _listed(parts: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={name}" for key, name in parts.items())


def read_recipe(folder: Path) -> tuple[Recipe, dict[str, Any]]:
    """What a model directory was trained with, and what `larmor pull` wrote of it. Raises as `load_model` does."""
    config_path = folder / "config.yaml"
    for path in (config_path, folder / WEIGHTS):
        if not path.is_file():
            raise InputError(f"{path}: no such file; a model directory is made by `larmor pull`")
    record = _record(folder / "metrics.json")
    try:
        content = yaml.safe_load(config_path.read_text())
        recipe = Recipe.model_validate({key: content[key] for key in Recipe.model_fields if key in content})
    except (yaml.YAMLError, UnicodeDecodeError, ValidationError, TypeError) as error:
        raise InputError(f"{config_path}: is not the configuration of a model ({error}); pull it again") from error
    return recipe, record


def load_weights(folder: Path, record: dict[str, Any], build: Callable[[dict[str, Tensor]], Network]) -> Network:
    """The network that `build` makes for the weights of a model directory, with these weights.

    Raises `InputError` for weights that do not fit, or have changed since they were pulled.
    """
    path = folder / WEIGHTS
    try:
        weights = load_file(path)
        network = build(weights)
        network.load_state_dict(weights)
    except (SafetensorError, RuntimeError, KeyError) as error:
        # torch lists every tensor that does not fit: the first one says enough
        reason = " ".join(line.strip() for line in str(error).splitlines()[:2])
        raise InputError(f"{path}: does not fit config.yaml ({reason}); pull it again") from error
    expected = record.get("sha256", {}).get(path.name)
    if expected and file_digest(path) != expected:
        raise InputError(f"{path}: has changed since it was pulled (SHA-256, metrics.json); pull it again")
    return network


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
