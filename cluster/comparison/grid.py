"""The grid of a comparison: every system trained alike for every size, mask and ratio, and the tables filled."""

from __future__ import annotations

import contextlib
import importlib.resources
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from torch import nn

from larmor.cluster.comparison.grid_cell import CellOptions, CellPlace, FilledCell, Say, fill_cells
from larmor.cluster.experiments.experiment import Experiment, build, change, read_content, set_dotted
from larmor.recon.evaluation.evaluate import Evaluation
from larmor.recon.evaluation.tables import write_tables
from larmor.recon.networks.networks import build_critic, build_generator
from larmor.recon.recipe.metric import TABLE_METRICS
from larmor.recon.recipe.systems import SYSTEMS
from larmor.recon.training.flops import flops_per_image
from larmor.storage.loading.config import DataConfig, open_reader
from larmor.storage.objects.errors import InputError

_SPREAD_METRICS = ("psnr", "ssim", "hfen", "gmsd")
_SEED = " (seed {})"  # after a system's name, for all seeds but the first


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
    noises: tuple[float, ...] = Field(
        (),
        description="standard deviations of noise at which each cell is evaluated, as in signal.noise; none: without",
    )
    classical: tuple[str, ...] = ()
    num_images: int = Field(ge=1)
    num_validations: int = Field(4, ge=1, description="in each training, the last at its end")
    keep_runs: bool = Field(True, description="false: a run's checkpoints are deleted once its best one is pulled")
    overrides: Mapping[str, Any] = Field(default_factory=dict)
    systems: Mapping[str, Mapping[str, Any]] = Field(min_length=1)
    seeds: Mapping[str, int] = Field(
        default_factory=dict, description="systems that are trained several times, each time from another seed"
    )
    every: int = Field(1, ge=1, description="evaluate one slice in so many of each volume")

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
    folder = Path(str(importlib.resources.files("larmor.cluster.comparison"))) / "grids"
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


@dataclass(frozen=True)
class Cell:
    """One table of a grid: height and width, mask, sampling ratio."""

    size: tuple[int, int]
    kind: str
    ratio: float

    def __str__(self) -> str:
        return f"{self.size[0]}x{self.size[1]}-{self.kind}-{100 * self.ratio:g}"


def cells(grid: GridConfig) -> list[Cell]:
    """The cells of a grid, in its order."""
    return [Cell(*each) for each in itertools.product(grid.sizes, grid.masks, grid.ratios)]


def experiments(grid: GridConfig, cell: Cell, name: str, data_url: str, output_url: str) -> dict[str, Experiment]:
    """Each system's training for one cell."""
    found = {}
    for label, own, seed in _trainings(grid):
        content = read_content(grid.experiment)
        content.pop("sweep", None)
        given = {
            "system": label.split()[0],
            "name": f"{name}-{cell}-{slug_of(label)}",
            "seed": seed,
            "output_url": output_url,
            "data.url": data_url,
            "data.crop": list(cell.size),
        }
        if grid.overrides.get("signal.mode") == "pet":  # no k-space, no mask
            content.pop("mask", None)
        else:
            given |= {"mask.kind": cell.kind, "mask.sampling_ratio": cell.ratio}
        change(content, {**given, **grid.overrides, **own})
        found[label] = build(_with_budget(content, grid), Experiment, grid.experiment)
    return found


def _trainings(grid: GridConfig) -> Iterator[tuple[str, Mapping[str, Any], int]]:
    """(row of the table, its own keys, seed) of each training."""
    for system, own in grid.systems.items():
        for seed in range(grid.seeds.get(system, 1)):
            yield f"{system}{_SEED.format(seed) if seed else ''}", own, seed


def slug_of(label: str) -> str:
    """A row's name as a part of a run's."""
    return label.replace(" (seed ", "-seed-").rstrip(")")


def _with_budget(content: dict[str, Any], grid: GridConfig) -> dict[str, Any]:
    step_images = content.get("training", {}).get("global_batch_size", 16) * content.get("data", {}).get("stack", 1)
    steps = max(1, grid.num_images // step_images)
    validate = -(-steps // grid.num_validations)
    checkpoint = validate if grid.keep_runs else steps
    for key, value in (("num_steps", steps), ("validate_every", validate), ("checkpoint_every", checkpoint)):
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
    """Train and evaluate what is missing, write the tables to `folder`; returns them.

    Stopped at any time, the same call resumes: a training from its last checkpoint. Raises what training and
    evaluation raise, and `InputError` if something else lies where a run belongs; `overwrite` trains all anew.
    """
    data = DataConfig(url=data_url, memory_cache_bytes=0, disk_cache_bytes=0)
    first = next(iter(experiments(grid, cells(grid)[0], name, data_url, output_url).values()))
    with contextlib.closing(open_reader(data, "test", **first.signal.beside)) as reader:
        place = CellPlace(reader, folder, device, say)
        options = CellOptions(grid.classical, grid.noises, grid.every, grid.keep_runs, overwrite)
        filled = [
            each
            for cell in cells(grid)
            for each in fill_cells(experiments(grid, cell, name, data_url, output_url), place, options, cell.ratio)
        ]
    write_grid(filled, folder)
    return [cell.result for cell in filled]


def write_grid(filled: Sequence[FilledCell], folder: Path) -> None:
    """The tables of the cells that are filled, with what was compared above them."""
    write_tables([cell.result for cell in filled], folder, "\n\n".join(filter(None, [_about(filled), _spread(filled)])))


def _spread(filled: Sequence[FilledCell]) -> str:
    """Mean and standard deviation over the training seeds, of the systems that have several, as Markdown."""
    lines = []
    for cell in filled:
        rows: dict[str, list[dict[str, float]]] = {}
        for method in cell.result.methods:
            rows.setdefault(method.split(" (seed ")[0], []).append(cell.result.mean(method))
        for system, means in rows.items():
            if len(means) > 1:
                cells = [_mean_and_deviation(name, [mean[name] for mean in means]) for name in _SPREAD_METRICS]
                lines.append(f"| {cell.result.label} | {system} | {len(means)} | " + " | ".join(cells) + " |")
    if not lines:
        return ""
    titles = [TABLE_METRICS[name].heading for name in _SPREAD_METRICS]
    heading = ["| cell | system | seeds | " + " | ".join(titles) + " |", "|" + " --- |" * (3 + len(titles))]
    return "\n".join(["Mean ± standard deviation over training seeds:", "", *heading, *lines])


def _mean_and_deviation(metric: str, values: Sequence[float]) -> str:
    write = TABLE_METRICS[metric].write
    return f"{write(fmean(values))} ± {write(stdev(values))}"


def _about(filled: Sequence[FilledCell]) -> str:
    """What was compared, as Markdown: the budget, and the size of each system's networks."""
    seen = {cell.result.label: _images(next(iter(cell.trained.values()))) for cell in filled}
    budget = f"{next(iter(seen.values()))} images"
    if len(set(seen.values())) > 1:
        budget = "equally many images of a cell (" + "; ".join(f"{each}: {n}" for each, n in seen.items()) + ")"
    lines = [
        f"Every system saw {budget} (generator steps × batch) of the same split, from the same seeds. Operations are "
        "the convolutions and matrix products of one reconstruction.",
        "",
        "| system | generator | width | parameters | GFLOP / image | critic | width | parameters |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, recipe in filled[0].trained.items():
        if " (seed " in name:
            continue
        with torch.device("meta"):  # only counted
            generator = build_generator(
                recipe.generator, recipe.signal.channels, recipe.data.stack, recipe.signal.guide
            )
            critics = [build_critic(recipe.critic, recipe.critic_channels) for _ in recipe.loss.critics]
        row = [name, recipe.generator.name, str(recipe.generator.width), _millions(generator)]
        row.append(f"{flops_per_image(recipe) / 1e9:.2f}")
        row += [recipe.critic.name, str(recipe.critic.width), _millions(*critics)] if critics else ["–"] * 3
        lines.append("| " + " | ".join(row) + " |")
    diverged = [f"{', '.join(cell.diverged)} ({cell.result.label})" for cell in filled if cell.diverged]
    if diverged:
        lines += ["", f"Diverged, therefore without figures: {'; '.join(diverged)}."]
    return "\n".join(lines)


def _images(experiment: Experiment) -> int:
    return experiment.training.num_steps * experiment.training.global_batch_size * experiment.data.stack


def _millions(*networks: nn.Module) -> str:
    """The parameters of a network, or of several alike, such as "2 × 1.47 M"."""
    each = sum(parameter.numel() for parameter in networks[0].parameters()) / 1e6
    return f"{len(networks)} × {each:.2f} M" if len(networks) > 1 else f"{each:.2f} M"
