"""A PNG of segmentations: original and reconstructions, tissues, regions of interest, and where tissues differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from skimage.segmentation import find_boundaries

from larmor.recon.evaluation.segmentation import TISSUES, Region, Segmentation, dice_per_class
from larmor.storage.objects.errors import InputError

_COLOURS = ("#2f7fd8", "#2ca25f", "#ffd23f")  # CSF, grey and white matter: told apart by the colour-blind too
_DIFFERENT, _BRAIN, _INSTANCE = "#e4312e", "#ff6b2c", "#f7f7f7"
_OPACITY = 0.55
_MARGIN = 14  # pixels around the brain that are shown
_SHORT = ("CSF", "GM", "WM")


@dataclass(frozen=True)
class SegmentedImage:
    """A slice (height, width) in [0, 1] and the segmentation of it alone (`Segmentation.one_slice`)."""

    title: str
    image: np.ndarray
    segmentation: Segmentation


@dataclass(frozen=True)
class SegmentationExample:
    """An original and its reconstructions, as many in each example."""

    original: SegmentedImage
    reconstructions: Sequence[SegmentedImage]


def write_segmentation_figure(examples: Sequence[SegmentationExample], path: Path) -> None:
    """Three rows for each example, a column for the original and each reconstruction.

    Above the images, with boxes around the brain and its largest regions as they were found there; then their
    tissues; below, the original's regions (outlined, one by one) and where the reconstructions' tissues differ from
    the original's. Dice is that of the one slice. Raises `InputError` without examples.
    """
    if not examples:
        raise InputError("a figure of segmentations needs at least one slice")
    columns = 1 + max(len(example.reconstructions) for example in examples)
    views = [_view(example) for example in examples]
    heights = [3 * (2.6 * (bottom - top) / (right - left) + 0.28) for top, left, bottom, right in views]
    figure = Figure(figsize=(2.6 * columns + 0.25, sum(heights) + 0.5))
    grid = figure.add_gridspec(3 * len(examples), columns, height_ratios=np.repeat(heights, 3))
    for number, (example, view) in enumerate(zip(examples, views, strict=True)):
        for column, shown in enumerate([example.original, *example.reconstructions]):
            axes = [figure.add_subplot(grid[3 * number + row, column]) for row in range(3)]
            _draw_column(axes, shown, example.original, view, named=number == 0)
    labels: list[Artist] = [
        Patch(color=colour, label=name.replace("csf", "CSF").replace("_", " "))
        for colour, name in zip(_COLOURS, TISSUES, strict=True)
    ]
    labels += [
        Patch(color=_DIFFERENT, label="another tissue than in the original"),
        Line2D([], [], color=_BRAIN, label="brain, as found"),
        Line2D([], [], color=_INSTANCE, label="its largest regions"),
    ]
    legend = figure.legend(handles=labels, loc="lower center", ncol=min(6, 2 * columns), fontsize=7)
    legend.get_frame().set_facecolor("#b5b5b5")
    figure.tight_layout(pad=0.3, h_pad=0.4, rect=(0.02, 0.45 / figure.get_figheight(), 1, 1))
    figure.savefig(path, dpi=130)


def _view(example: SegmentationExample) -> tuple[int, int, int, int]:
    """Top, left, bottom and right of what is shown: the original's brain with a margin, or the whole slice."""
    classes = example.original.segmentation.classes[0]
    (height, width), (rows, columns) = classes.shape, np.nonzero(classes)
    if not rows.size:
        return 0, 0, height, width
    top, left = max(0, int(rows.min()) - _MARGIN), max(0, int(columns.min()) - _MARGIN)
    return top, left, min(height, int(rows.max()) + _MARGIN), min(width, int(columns.max()) + _MARGIN)


def _draw_column(
    axes: Sequence[Axes],
    shown: SegmentedImage,
    original: SegmentedImage,
    view: tuple[int, int, int, int],
    named: bool,
) -> None:
    grey, classes = _grey(shown), shown.segmentation.classes[0]
    is_original = shown is original
    for place in axes:
        place.imshow(grey)
        top, left, bottom, right = view
        place.set(xlim=(left - 0.5, right - 0.5), ylim=(bottom - 0.5, top - 0.5), xticks=[], yticks=[])
        for side in place.spines.values():
            side.set_visible(False)
    for region in shown.segmentation.regions_of_interest(0):
        axes[0].add_patch(_box(region))
    axes[1].imshow(_painted(classes), interpolation="nearest")
    instances = shown.segmentation.instances[0]
    if is_original:
        marked, colour = find_boundaries(instances, mode="inner"), _INSTANCE
        titles = ("its tissues", f"its {len(np.unique(instances)) - 1} regions")
    else:
        marked, colour = classes != original.segmentation.classes[0], _DIFFERENT
        titles = (_dice_title(original.segmentation, shown.segmentation), _difference_title(original, shown))
    axes[2].imshow(np.ma.masked_where(~marked, marked), cmap=ListedColormap([colour]), interpolation="nearest")
    axes[0].set_title(f"original: {shown.title}" if is_original else shown.title, fontsize=8)
    for place, title in zip(axes[1:], titles, strict=True):
        place.set_title(title, fontsize=7)
    if is_original and named:
        for place, label in zip(axes, ("image", "tissues", "regions | differences"), strict=True):
            place.set_ylabel(label, fontsize=8)


def _grey(shown: SegmentedImage) -> np.ndarray:
    """(height, width, 3): fat is much brighter than brain, so the window is the brain's."""
    inside = shown.image[shown.segmentation.classes[0] > 0]
    top = float(np.percentile(inside, 99)) * 1.2 if inside.size else 1.0
    return np.repeat(np.clip(shown.image / (top or 1.0), 0, 1)[..., None], 3, axis=2)


def _painted(classes: np.ndarray) -> np.ndarray:
    """(height, width, 4): each tissue in its colour, half transparent, the background not at all."""
    table = np.zeros((1 + len(TISSUES), 4))
    for number, colour in enumerate(_COLOURS, start=1):
        table[number] = (*to_rgb(colour), _OPACITY)
    return table[classes]


def _box(region: Region) -> Rectangle:
    top, left, bottom, right = region.box
    whole = region.tissue == "brain"
    return Rectangle(
        (left - 0.5, top - 0.5),
        right - left,
        bottom - top,
        fill=False,
        edgecolor=_BRAIN if whole else _INSTANCE,
        linewidth=1.4 if whole else 0.8,
    )


def _dice_title(original: Segmentation, found: Segmentation) -> str:
    rated = dice_per_class(original, found)
    each = ", ".join(f"{short} {rated[name]:.2f}" for short, name in zip(_SHORT, TISSUES, strict=True))
    return f"Dice {rated['mean']:.3f} ({each})"


def _difference_title(original: SegmentedImage, shown: SegmentedImage) -> str:
    wanted, found = original.segmentation.classes[0], shown.segmentation.classes[0]
    either = (wanted > 0) | (found > 0)
    share = float((wanted != found)[either].mean()) if either.any() else 0.0
    return f"{share:.1%} of the brain differ"
