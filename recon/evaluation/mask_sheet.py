"""A picture of undersampling masks and of the aliasing that each of them makes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from larmor.recon.physics.masks import achieved_ratio, make_mask, mask_hash
from larmor.recon.recipe.mask_config import MaskConfig
from larmor.recon.recipe.mask_kinds import KINDS
from larmor.storage.objects.text_table import aligned

DECADES = 3  # of the point spread function that are shown, below its peak
CELL_AREA = 4.4  # square inches
MARGIN, TITLE, BAR = 0.12, 0.32, 0.72  # inches


def all_kinds(base: MaskConfig) -> list[MaskConfig]:
    """The same setting for every kind of mask but `file`."""
    settings = base.model_dump(exclude={"kind", "file", "sha256"})
    return [MaskConfig(kind=kind, **settings) for kind in KINDS if kind != "file"]


def write_mask_sheet(configs: Sequence[MaskConfig], shape: tuple[int, int], path: Path) -> list[str]:
    """Write a PNG with a column for each mask (height, width); returns a line of text about each.

    Above the pattern, white where k-space is measured, with the achieved and the wanted ratio; below it the
    magnitude of the point spread function: what becomes of a single bright point in the middle of the image,
    in decades below its peak. Whole columns blur along a row only: theirs is drawn as a curve.

    Where masks differ from slice to slice, it is that of the first slice, as in `describe_mask`.
    """
    masks = [make_mask(config, shape, (0, 0)) for config in configs]
    cell_height = (CELL_AREA * shape[0] / shape[1]) ** 0.5
    cell_width = cell_height * shape[1] / shape[0]
    width, height = len(masks) * (cell_width + MARGIN) + BAR, 2 * (cell_height + MARGIN) + MARGIN + TITLE
    figure = Figure(figsize=(width, height))
    norm, colours = Normalize(-DECADES, 0), colormaps["magma"]
    for column, (config, mask) in enumerate(zip(configs, masks, strict=True)):
        left, size = (MARGIN + column * (cell_width + MARGIN)) / width, (cell_width / width, cell_height / height)
        pattern = figure.add_axes((left, (2 * MARGIN + cell_height) / height, *size), xticks=[], yticks=[])
        pattern.imshow(mask, cmap="gray", vmin=0, vmax=1, aspect="auto")
        pattern.set_title(_title(config, mask), fontsize=8, pad=4)
        blur = figure.add_axes((left, MARGIN / height, *size), xticks=[], yticks=[], facecolor="black")
        spread = _point_spread(mask)
        if (mask == mask[0]).all():
            blur.plot(spread[shape[0] // 2], color=colours(0.8), linewidth=0.7)
            blur.set(xlim=(-0.5, shape[1] - 0.5), ylim=(-DECADES, 0.03 * DECADES))
        else:
            blur.imshow(spread, cmap=colours, norm=norm, aspect="auto")
    ticks = list(range(-DECADES, 1))
    bar = figure.add_axes(((width - BAR + MARGIN) / width, MARGIN / height, MARGIN / width, cell_height / height))
    figure.colorbar(ScalarMappable(norm, colours), cax=bar, ticks=ticks).set_ticklabels(
        [f"$10^{{{tick}}}$" for tick in ticks]
    )
    figure.savefig(path, dpi=110)
    return aligned([_row(config, mask) for config, mask in zip(configs, masks, strict=True)])


def _point_spread(mask: np.ndarray) -> np.ndarray:
    """log₁₀ of the magnitude (height, width) of the mask's Fourier transform, relative to its peak."""
    spread = np.abs(np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(mask))))
    return np.log10(np.maximum(spread / spread.max(), 10.0**-DECADES))


def _title(config: MaskConfig, mask: np.ndarray) -> str:
    achieved = f"{100 * achieved_ratio(mask):.2f} %"
    return f"{config.kind}\n{achieved}" + ("" if config.kind == "file" else f" for {config.ratio_in_words}")


def _row(config: MaskConfig, mask: np.ndarray) -> tuple[str, ...]:
    wanted = "as in file" if config.kind == "file" else " to ".join(f"{r:.4f}" for r in dict.fromkeys(config.ratios))
    return config.kind, f"wanted {wanted}", f"achieved {achieved_ratio(mask):.4f}", f"sha256 {mask_hash(mask)[:12]}"
