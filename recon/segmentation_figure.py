"""A PNG of segmentations: original and reconstructions with their classes, Dice and regions of interest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from recon.segmentation import TISSUES, Region, Segmentation, dice_per_class
from storage.errors import InputError

_COLOURS = ("black", "#3b6fb6", "#9aa39b", "#f4f1e6")  # background, CSF, grey and white matter
_BRAIN, _INSTANCE = "#e4572e", "#f2b134"  # of the boxes


@dataclass(frozen=True)
class SegmentedImage:
    """A slice (height, width) in [0, 1] and its segmentation, in which it is number `slice_index`."""

    title: str
    image: np.ndarray
    segmentation: Segmentation
    slice_index: int = 0

    def one_slice(self) -> Segmentation:
        """The segmentation of this slice alone."""
        part = slice(self.slice_index, self.slice_index + 1)
        found = self.segmentation
        regions = [region for region in found.regions if region.slice_index == self.slice_index]
        return Segmentation(found.classes[part], found.instances[part], regions)


@dataclass(frozen=True)
class SegmentationExample:
    """One row: an original and its reconstructions, as many in each row."""

    original: SegmentedImage
    reconstructions: Sequence[SegmentedImage]


def write_segmentation_figure(examples: Sequence[SegmentationExample], path: Path) -> None:
    """Rows of original, its classes, and of each reconstruction and its classes with Dice against the original.

    Boxes: the brain and its largest regions, each found in the image beside them. Dice is that of the one slice.
    Raises `InputError` without examples.
    """
    if not examples:
        raise InputError("a figure of segmentations needs at least one slice")
    height, width = examples[0].original.image.shape
    columns = 2 * (1 + max(len(example.reconstructions) for example in examples))
    figure = Figure(figsize=(2.5 * columns, len(examples) * (2.5 * height / width + 0.45) + 0.4))
    for row, example in enumerate(examples):
        original = example.original.one_slice()
        for place, shown in enumerate([example.original, *example.reconstructions]):
            found = shown.one_slice()
            image_axes, class_axes = (
                figure.add_subplot(len(examples), columns, row * columns + 2 * place + side) for side in (1, 2)
            )
            _draw_image(image_axes, shown, found)
            title = "classes" if place == 0 else _dice_title(original, found)
            _draw_classes(class_axes, found.classes[0], title)
    patches = [Patch(color=colour, label=name) for colour, name in zip(_COLOURS[1:], TISSUES, strict=True)]
    legend = figure.legend(handles=patches, loc="lower center", ncol=len(patches), fontsize=7)
    legend.get_frame().set_facecolor("#cccccc")
    figure.tight_layout(pad=0.4, rect=(0, 0.3 / figure.get_figheight(), 1, 1))
    figure.savefig(path, dpi=130)


def _draw_image(axes: Axes, shown: SegmentedImage, found: Segmentation) -> None:
    inside = shown.image[found.classes[0] > 0]
    # fat is much brighter than brain: the window shows the brain
    top = float(np.percentile(inside, 99)) * 1.2 if inside.size else 1.0
    axes.imshow(shown.image, cmap="gray", vmin=0, vmax=top or 1.0)
    for region in found.regions_of_interest(shown.slice_index):
        axes.add_patch(_box(region))
    axes.set_title(shown.title, fontsize=7)
    axes.axis("off")


def _box(region: Region) -> Rectangle:
    top, left, bottom, right = region.box
    whole = region.tissue == "brain"
    colour = _BRAIN if whole else _INSTANCE
    return Rectangle(
        (left - 0.5, top - 0.5),
        right - left,
        bottom - top,
        fill=False,
        edgecolor=colour,
        linewidth=1.2 if whole else 0.7,
    )


def _draw_classes(axes: Axes, classes: np.ndarray, title: str) -> None:
    axes.imshow(classes, cmap=ListedColormap(_COLOURS), vmin=0, vmax=len(TISSUES), interpolation="nearest")
    axes.set_title(title, fontsize=7)
    axes.axis("off")


def _dice_title(original: Segmentation, found: Segmentation) -> str:
    rated = dice_per_class(original, found)
    each = " ".join(f"{short} {rated[name]:.2f}" for short, name in zip(("CSF", "GM", "WM"), TISSUES, strict=True))
    return f"Dice {rated['mean']:.3f}: {each}"
