"""The table: zero-filled against the model, per slice and per volume, each figure with its preset."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recon.figures import comparison
from recon.inference import Physics, Reconstructed, reconstruct_split
from recon.masks import describe_mask
from recon.metrics import METRICS, PRESETS, Preset, slice_metrics, volume_metrics
from recon.model import Model
from storage.dataset import SplitInfo
from storage.errors import InputError
from storage.reader import SliceReader

METHODS = ("zero_filled", "model")
_MOST_PICTURED = 8  # volumes in the figure, which matplotlib cannot draw at any height


@dataclass(frozen=True)
class Row:
    """One line of the table. `slice_index` is None for a volume's figure; `seconds` is the time per image."""

    volume: str
    slice_index: int | None
    method: str
    metrics: Mapping[str, float]
    seconds: float


@dataclass(frozen=True)
class Evaluation:
    """All rows under one preset, and a few examples for the figure."""

    preset: Preset
    slices: Sequence[Row]
    volumes: Sequence[Row]
    examples: Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray]]

    def mean(self, method: str) -> dict[str, float]:
        """Mean over volumes of each metric, and `seconds`."""
        rows = [row for row in self.volumes if row.method == method]
        means = {name: float(np.mean([row.metrics[name] for row in rows])) for name in METRICS}
        return {**means, "seconds": float(np.mean([row.seconds for row in rows]))}


def evaluate(
    model: Model, reader: SliceReader, preset: Preset, batch_size: int, progress: Callable[[int, int], None]
) -> Evaluation:
    """Reconstruct every slice of the reader's split and rate it.

    `paper`: means over slices, data range 1. `fastmri`: one figure for each volume, in the intensities of
    the source, data range = maximum of the target volume.
    """
    info, physics = reader.info, model.physics
    _check_size(info, physics)
    last, count = len(info.volumes) - 1, min(len(info.volumes), _MOST_PICTURED)
    pictured = {info.volumes[place] for place in np.linspace(0, last, count).astype(int)}
    device = next(model.generator.parameters()).device
    slices: list[Row] = []
    volumes: list[Row] = []
    examples = []
    done = 0
    for volume in info.volumes:
        indices = info.slices_of(volume)
        places = np.linspace(0.3, 0.7, 3 if len(info.volumes) == 1 else 1) * (len(indices) - 1)
        shown = set(indices[places.astype(int)]) if volume in pictured else set()
        batches = []
        for batch in reconstruct_split(model.generator, reader, [int(i) for i in indices], physics, batch_size, device):
            slices += _slice_rows(batch, volume)
            batches.append(batch)
            done += len(batch.indices)
            progress(done, info.num_slices)
            for place, index in enumerate(batch.indices):
                if index in shown:
                    images = (batch.target[place], batch.zero_filled[place], batch.reconstruction[place])
                    examples.append((f"{volume}, slice {int(info.index[index])}", *images))
        volumes += _volume_rows(volume, batches, preset, slices)
    return Evaluation(preset, slices, volumes, examples)


def _slice_rows(batch: Reconstructed, volume: str) -> Iterator[Row]:
    per_image = batch.seconds / len(batch.indices)
    for place, index in enumerate(batch.indices):
        for method, images, seconds in (
            ("zero_filled", batch.zero_filled, 0.0),
            ("model", batch.reconstruction, per_image),
        ):
            yield Row(volume, index, method, slice_metrics(batch.target[place], images[place]), seconds)


def _volume_rows(volume: str, batches: Sequence[Reconstructed], preset: Preset, slices: Sequence[Row]) -> Iterator[Row]:
    for method in METHODS:
        rows = [row for row in slices if row.volume == volume and row.method == method]
        seconds = float(np.mean([row.seconds for row in rows]))
        if preset == "paper":
            metrics = {name: float(np.mean([row.metrics[name] for row in rows])) for name in METRICS}
        else:
            target, found = (
                np.concatenate([_intensities(getattr(batch, name), batch.scale) for batch in batches])
                for name in ("target", "zero_filled" if method == "zero_filled" else "reconstruction")
            )
            metrics = volume_metrics(target, found)
        yield Row(volume, None, method, metrics, seconds)


def _intensities(images: np.ndarray, scale: np.ndarray) -> np.ndarray:
    low, high = scale[:, 0, None, None], scale[:, 1, None, None]
    return images * (high - low) + low


def _check_size(info: SplitInfo, physics: Physics) -> None:
    height, width = info.largest_matrix
    if physics.crop[0] > height or physics.crop[1] > width:
        raise InputError(
            f"the model works on {physics.crop[0]}×{physics.crop[1]}, the data set has slices of {height}×{width}; "
            "convert the data at a larger --matrix"
        )


def write_csv(evaluation: Evaluation, path: Path) -> None:
    """One line per slice and method, then one per volume (slice empty), with the preset in every line."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["volume", "slice", "method", "preset", *METRICS, "seconds_per_image"])
        for row in [*evaluation.slices, *evaluation.volumes]:
            # a single slice is always rated as preset `paper` does; `fastmri` rates volumes
            preset = "paper" if row.slice_index is not None else evaluation.preset
            place = "" if row.slice_index is None else row.slice_index
            values = [f"{row.metrics[name]:.6g}" for name in METRICS]
            writer.writerow([row.volume, place, row.method, preset, *values, f"{row.seconds:.6g}"])


def table(evaluation: Evaluation) -> list[str]:
    """The lines that `larmor evaluate` prints: mean over volumes for each method, then the difference."""
    number = len({row.volume for row in evaluation.volumes})
    slices = len(evaluation.slices) // len(METHODS)
    definition = f"preset '{evaluation.preset}': {PRESETS[evaluation.preset]}"
    lines = [f"mean over {number} volume(s), {slices} slices; {definition}"]
    lines.append(f"{'':<12} {'PSNR (dB)':>10} {'SSIM':>8} {'MSE':>11} {'RMSE':>9} {'NMSE':>9} {'ms/image':>9}")
    means = {method: evaluation.mean(method) for method in METHODS}
    for method, mean in means.items():
        time = f"{mean['seconds'] * 1000:9.1f}" if mean["seconds"] else f"{'–':>9}"
        lines.append(
            f"{method:<12} {mean['psnr']:>10.3f} {mean['ssim']:>8.4f} {mean['mse']:>11.4g} {mean['rmse']:>9.4g} "
            f"{mean['nmse']:>9.4g} {time}"
        )
    gain = {name: means["model"][name] - means["zero_filled"][name] for name in ("psnr", "ssim")}
    lines.append(f"{'gain':<12} {gain['psnr']:>+10.3f} {gain['ssim']:>+8.4f}")
    return lines


def evaluate_to_folder(
    model: Model,
    reader: SliceReader,
    preset: Preset,
    batch_size: int,
    folder: Path,
    progress: Callable[[int, int], None],
) -> Evaluation:
    """`evaluate`, with `metrics.csv`, `summary.json` and `comparison.png` written to `folder`."""
    result = evaluate(model, reader, preset, batch_size, progress)
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(result, folder / "metrics.csv")
    summary = {
        "preset": preset,
        "definition": PRESETS[preset],
        "split": reader.info.name,
        "volumes": list(reader.info.volumes),
        "subjects": list(reader.info.subjects),
        "num_slices": reader.info.num_slices,
        "mask": describe_mask(model.physics.mask, model.physics.crop),
        "mean": {method: result.mean(method) for method in METHODS},
        "model": model.record,
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2))
    comparison(result.examples, folder / "comparison.png")
    return result
