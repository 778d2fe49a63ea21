"""The grid of a comparison: every system trained alike for every size, mask and ratio, and the tables filled."""

from __future__ import annotations

import contextlib
import importlib.resources
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from torch import nn

from cluster.experiment import Experiment, build, read_content, set_dotted
from cluster.pull import pull_run
from cluster.run import check, claimed, finish, train_locally
from cluster.run_folder import RunFolder, sha256
from recon.evaluate import Evaluation, evaluate
from recon.evaluation_file import load_evaluation, save_evaluation, saved_facts
from recon.figures import comparison
from recon.inference import Physics, network_method
from recon.methods import classical_method
from recon.model import load_model
from recon.networks import build_critic, build_generator
from recon.systems import SYSTEMS
from recon.tables import slug, text_table, write_tables
from storage.config import DataConfig, open_reader
from storage.errors import InputError
from storage.reader import SliceReader

Say = Callable[[str], None]


class GridConfig(BaseModel):
    """What is compared. `overrides` hold for all systems, `systems` says what is each one's alone.

    Each is called as its system, or as one likes with `system: NAME` among its own keys. Every system sees
    `num_images` images: generator steps × batch.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    experiment: str = Field(description="an experiment's file, or the name of a shipped one, that all begin from")
    sizes: tuple[tuple[int, int], ...] = Field(min_length=1)
    masks: tuple[str, ...] = Field(min_length=1)
    ratios: tuple[float, ...] = Field(min_length=1)
    classical: tuple[str, ...] = ()
    num_images: int = Field(ge=1)
    overrides: Mapping[str, Any] = Field(default_factory=dict)
    systems: Mapping[str, Mapping[str, Any]] = Field(min_length=1)

    @field_validator("systems")
    @classmethod
    def _known(cls, systems: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
        for label, own in systems.items():
            if own.get("system", label) not in SYSTEMS:
                raise ValueError(
                    f"'{own.get('system', label)}' is no system; choose one of {', '.join(SYSTEMS)}, or give "
                    f"{label} a key 'system'"
                )
        return systems


def shipped_grids() -> dict[str, Path]:
    """Name → file of the grids that come with Larmor."""
    folder = Path(str(importlib.resources.files("cluster"))) / "grids"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_grid(source: str, overrides: Mapping[str, Any]) -> GridConfig:
    """A grid's YAML file, or a shipped one by name; `overrides` replace whole keys.

    Raises `InputError` for a missing file, an unknown key or an impossible value.
    """
    path = shipped_grids().get(source, Path(source))
    if not path.is_file():
        raise InputError(f"{source}: no such file; shipped grids are {', '.join(shipped_grids())}")
    try:
        return GridConfig.model_validate({**yaml.safe_load(path.read_text()), **overrides})
    except (yaml.YAMLError, UnicodeDecodeError, TypeError) as error:
        raise InputError(f"{source}: is not a grid ({error})") from error
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        raise InputError(
            f"{source}: {key}={problem['input']!r}: {problem['msg'].removeprefix('Value error, ')}"
        ) from error


def experiments(grid: GridConfig, name: str, data_url: str, output_url: str) -> Iterator[tuple[str, Experiment]]:
    """Each system's training for each cell, cell by cell, with the system's name."""
    for size in grid.sizes:
        for kind in grid.masks:
            for ratio in grid.ratios:
                for system, own in grid.systems.items():
                    content = read_content(grid.experiment)
                    content.pop("sweep", None)
                    cell = {
                        "system": system,
                        "name": f"{name}-{size[0]}x{size[1]}-{kind}-{100 * ratio:g}-{system}",
                        "output_url": output_url,
                        "data.url": data_url,
                        "data.crop": list(size),
                        "mask.kind": kind,
                        "mask.sampling_ratio": ratio,
                    }
                    for key, value in {**cell, **grid.overrides, **own}.items():
                        set_dotted(content, key, value)
                    yield system, build(_with_budget(content, grid.num_images), Experiment, grid.experiment)


def _with_budget(content: dict[str, Any], num_images: int) -> dict[str, Any]:
    batch = content.get("training", {}).get("global_batch_size", 16)
    steps = max(1, num_images // batch)
    for key, value in (("num_steps", steps), ("validate_every", -(-steps // 4)), ("checkpoint_every", -(-steps // 4))):
        set_dotted(content, f"training.{key}", value)
    return content


def fill(
    grid: GridConfig,
    name: str,
    data_url: str,
    output_url: str,
    folder: Path,
    device: str,
    say: Say,
    overwrite: bool = False,
) -> list[Evaluation]:
    """Train what is not yet trained, rate what is not yet rated, write the tables to `folder`; returns them.

    Stopped at any time, the same call goes on: a training from its last checkpoint. Raises what training and
    evaluation raise, and `InputError` if something else lies where a run belongs; `overwrite` trains all anew.
    """
    cells: dict[Physics, dict[str, Path]] = {}
    data = DataConfig(url=data_url, memory_cache_bytes=0, disk_cache_bytes=0)
    with contextlib.closing(open_reader(data, "test")) as reader:
        for system, experiment in experiments(grid, name, data_url, output_url):
            model = folder / "models" / experiment.name
            _train(experiment, model, device, say, overwrite)
            # rated with one mask for all, also where a system was trained with many
            physics = Physics(experiment.data.crop, experiment.mask.model_copy(update={"per_slice": False}))
            cells.setdefault(physics, {})[system] = model
            if len(cells[physics]) == len(grid.systems):
                _rate(grid.classical, physics, cells[physics], reader, folder, device, say)
    results = [load_evaluation(_cell_file(folder, physics)) for physics in cells]
    write_tables(results, folder, _about(grid, next(iter(cells.values()))))
    return results


def _train(experiment: Experiment, model: Path, device: str, say: Say, overwrite: bool) -> None:
    run = RunFolder(experiment.run_url)
    if not check(experiment, run, overwrite):
        with claimed(experiment, run, overwrite, say):
            began = time.perf_counter()
            train_locally(experiment, run, device)
            best = finish(experiment, run)
            seconds = time.perf_counter() - began
        say(f"{experiment.name}: {best['metrics']['val/psnr']:.2f} dB on the validation split, {seconds:.0f} s")
    pull_run(run, experiment.training.best_metric, model, overwrite=True)


def _rate(
    classical: Sequence[str],
    physics: Physics,
    models: Mapping[str, Path],
    reader: SliceReader,
    folder: Path,
    device: str,
    say: Say,
) -> None:
    path = _cell_file(folder, physics)
    facts = {
        "classical": list(classical),
        "models": {name: sha256(model / "generator.safetensors") for name, model in models.items()},
    }
    if saved_facts(path) == facts:
        return
    methods = {name: classical_method(name, physics) for name in classical}
    methods |= {name: network_method(load_model(model, device).generator) for name, model in models.items()}
    result = evaluate(methods, physics, reader, "paper", 8, lambda *_: None, device)
    folder.mkdir(parents=True, exist_ok=True)
    comparison(result.examples, folder / f"comparison-{slug(physics)}.png")
    save_evaluation(result, path, facts)
    for line in text_table(result):
        say(line)


def _cell_file(folder: Path, physics: Physics) -> Path:
    return folder / "cells" / f"{slug(physics)}.json"


def _about(grid: GridConfig, models: Mapping[str, Path]) -> str:
    """What was compared, as Markdown: the budget, and the size of each system's networks."""
    lines = [
        f"Every system saw {grid.num_images} images (generator steps × batch) of the same split, from the same seed.",
        "",
        "| system | generator | width | parameters | critic | width | parameters |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, folder in models.items():
        recipe = load_model(folder).recipe
        row = [name, recipe.generator.name, str(recipe.generator.width), _millions(build_generator(recipe.generator))]
        critic = ["–", "–", "–"]
        if recipe.loss.adversarial != "none":
            critic = [recipe.critic.name, str(recipe.critic.width), _millions(build_critic(recipe.critic))]
        lines.append("| " + " | ".join(row + critic) + " |")
    return "\n".join(lines)


def _millions(network: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in network.parameters()) / 1e6:.2f} M"
