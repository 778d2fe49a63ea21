"""PNG figures: contact sheet, comparison panels, masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from larmor.recon.inference.metrics import slice_metrics

ERROR_GAINS = (5, 10, 20, 40)
matplotlib.rcParams["font.size"] = 8


@dataclass(frozen=True)
class Example:
    """One slice for the figure: images (height, width) in [0, 1], one for each method."""

    title: str
    target: np.ndarray
    images: Mapping[str, np.ndarray]


def contact_sheet(images: Sequence[np.ndarray], titles: Sequence[str], columns: int, path: Path) -> None:
    """Many slices (height, width) on one sheet, each from its minimum (black) to its maximum (white)."""
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.5 * columns, 1.65 * rows))
    for place, (image, title) in enumerate(zip(images, titles, strict=True)):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.imshow(image, cmap="gray")
        axes.set_title(title, fontsize=6)
        axes.axis("off")
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=110)


def comparison(examples: Sequence[Example], path: Path) -> None:
    """Two rows for each example: target and every method's image; below them the error maps.

    PSNR and SSIM in the titles are of preset `paper`.
    """
    height, width = examples[0].target.shape
    columns = 1 + len(examples[0].images)
    cell = 2.5  # inches wide
    figure = Figure(figsize=(cell * columns, 2 * len(examples) * (cell * height / width + 0.3) + 0.2))
    for number, example in enumerate(examples):
        top, below = 2 * number * columns, (2 * number + 1) * columns
        gain = error_gain(example)
        _panel(figure, 2 * len(examples), columns, top, f"target: {example.title}", example.target, "gray")
        for column, (name, image) in enumerate(example.images.items(), start=1):
            rated = slice_metrics(example.target, image)
            title = f"{name}: {rated['psnr']:.1f} dB / {rated['ssim']:.3f}"
            _panel(figure, 2 * len(examples), columns, top + column, title, image, "gray")
            error = np.abs(example.target - image) * gain
            _panel(figure, 2 * len(examples), columns, below + column, f"error × {gain}", error, "inferno")
    figure.tight_layout(pad=0.4)
    figure.savefig(path, dpi=110)


def error_gain(example: Example) -> int:
    """By how much errors are enlarged, alike for all methods: as far as the better half of them, zero-filled left out,
    keeps all but 0.5 % of its pixels in range. Worse ones may be too bright."""
    others = list(example.images.values())[1:] or list(example.images.values())
    largest = sorted(float(np.percentile(np.abs(example.target - image), 99.5)) for image in others)
    return max((gain for gain in ERROR_GAINS if gain * largest[len(largest) // 2] <= 1), default=ERROR_GAINS[0])


def _panel(figure: Figure, rows: int, columns: int, place: int, title: str, image: np.ndarray, colours: str) -> None:
    axes = figure.add_subplot(rows, columns, place + 1)
    axes.imshow(image, cmap=colours, vmin=0, vmax=1)
    axes.set_title(title, fontsize=7)
    axes.axis("off")
