"""PNG figures: contact sheet, comparison panels, masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from recon.metrics import slice_metrics

ERROR_GAIN = 5
matplotlib.rcParams["font.size"] = 8


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


def comparison(examples: Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray]], path: Path) -> None:
    """Rows of target, zero-filled, reconstruction and the two error maps; images (height, width) in [0, 1].

    PSNR and SSIM in the titles are of preset `paper`.
    """
    height, width = examples[0][1].shape
    figure = Figure(figsize=(12.5, len(examples) * (2.5 * height / width + 0.35) + 0.2))
    for row, (name, target, zero_filled, found) in enumerate(examples):
        cells = [(f"target: {name}", target, "gray", 1.0)]
        for title, image in (("zero-filled", zero_filled), ("reconstruction", found)):
            rated = slice_metrics(target, image)
            cells.append((f"{title}: {rated['psnr']:.1f} dB / {rated['ssim']:.3f}", image, "gray", 1.0))
        for title, image in (("zero-filled", zero_filled), ("reconstruction", found)):
            cells.append((f"error of {title} × {ERROR_GAIN}", np.abs(target - image) * ERROR_GAIN, "inferno", 1.0))
        for column, (title, image, colours, top) in enumerate(cells):
            axes = figure.add_subplot(len(examples), len(cells), row * len(cells) + column + 1)
            axes.imshow(image, cmap=colours, vmin=0, vmax=top)
            axes.set_title(title, fontsize=7)
            axes.axis("off")
    figure.tight_layout(pad=0.4)
    figure.savefig(path, dpi=130)
