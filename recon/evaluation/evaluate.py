"""Evaluate several models and methods on one split: per slice and per volume, each figure with its preset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import scipy.stats
import torch

from larmor.recon.evaluation.calibration import Calibration, calibrate
from larmor.recon.evaluation.segmentation import Segmentation, SegmentationConfig, dice_per_class, segment
from larmor.recon.evaluation.segmentation_figure import SegmentationExample, SegmentedImage
from larmor.recon.inference.figures import Example
from larmor.recon.inference.inference import (
    ZERO_FILLED,
    Method,
    Physics,
    Reconstructed,
    check_finite,
    reconstruct_split,
)
from larmor.recon.inference.metrics import slice_metrics, volume_metrics
from larmor.recon.inference.own_metrics import own_figures
from larmor.recon.models.residual import Residuals
from larmor.recon.recipe.metric import DICE, METRICS, TABLE_METRICS, Metric, Preset
from larmor.recon.recipe.own_metric import find_metric
from larmor.recon.recipe.signal import check_modality
from larmor.storage.dataset.dataset import SplitInfo
from larmor.storage.loading.reader import SliceReader
from larmor.storage.loading.stacks import check_stack, in_stacks
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.progress import Count

_TARGET = ""  # no method has that name
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
    """One cell of a table, that is one size, mask and ratio: all rows under one preset, and a few examples.

    `subject_of` gives the subject of each volume; `num_constant` slices are constant and left out. Every `every`-th
    slice of each volume is evaluated, by all methods alike. With segmentation the volumes have `dice` beside
    `METRICS` and `own`, the metrics of one's own, and `segmented` shows some slices with their classes.
    `calibrations`, one for each volume, are those of the mean of `members` by their standard deviation. `residuals` are
    the relative changes of measured points, by method.
    """

    physics: Physics
    preset: Preset
    methods: tuple[str, ...]
    slices: Sequence[Row]
    volumes: Sequence[Row]
    examples: Sequence[Example]
    subject_of: Mapping[str, str]
    segmented: Sequence[SegmentationExample] = ()
    num_constant: int = 0
    every: int = 1
    calibrations: Sequence[Calibration] = ()
    members: tuple[str, ...] = ()
    own: Mapping[str, Metric] = field(default_factory=dict)
    residuals: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def metrics(self) -> Mapping[str, Metric]:
        """The figures that the volumes have."""
        known = {**METRICS, **self.own, DICE: TABLE_METRICS[DICE]}
        return {name: metric for name, metric in known.items() if name in self.volumes[0].metrics}

    def title(self, method: str) -> str:
        """What a method is called in a table."""
        return self.physics.title(method)

    @property
    def size(self) -> str:
        return f"{self.physics.crop[0]}×{self.physics.crop[1]}"

    @property
    def label(self) -> str:
        """Size, mask and kind of image in words."""
        return self.physics.label(self.physics.crop)

    def mean(self, method: str) -> dict[str, float]:
        """Mean over subjects of each metric, and of `seconds`; a subject's own is the mean over its volumes."""
        return {name: float(np.mean(values)) for name, values in self._by_subject(method).items()}

    def interval(self, method: str) -> dict[str, tuple[float, float]] | None:
        """95 % interval of each metric's `mean`, by Student's t over subjects; None for one subject.

        A bootstrap of few subjects is far too narrow: of two its interval holds the mean in half of the cases.
        """
        values = self._by_subject(method)
        count = len(values["seconds"])
        if count < 2:
            return None
        reach = float(scipy.stats.t.ppf(0.975, count - 1)) / count**0.5
        mean = self.mean(method)
        spread = {name: reach * float(np.std(values[name], ddof=1)) for name in self.metrics}
        return {name: (mean[name] - spread[name], mean[name] + spread[name]) for name in self.metrics}

    def _by_subject(self, method: str) -> dict[str, list[float]]:
        """Of each metric, and of `seconds`, one figure for each subject: the mean over its volumes."""
        subjects: dict[str, list[Row]] = {}
        for row in self.volumes:
            if row.method == method:
                subjects.setdefault(self.subject_of[row.volume], []).append(row)
        found = {
            name: [float(np.mean([row.metrics[name] for row in rows])) for rows in subjects.values()]
            for name in self.metrics
        }
        return {**found, "seconds": [float(np.mean([row.seconds for row in rows])) for rows in subjects.values()]}


def evaluate(
    methods: Mapping[str, Method],
    physics: Physics,
    reader: SliceReader,
    preset: Preset,
    batch_size: int,
    progress: Count,
    device: torch.device | str = "cpu",
    segmentation: SegmentationConfig | None = None,
    every: int = 1,
    members: Sequence[str] = (),
    own: Sequence[str] = (),
) -> Evaluation:
    """Reconstruct the slices of the reader's split with every method, zero-filled first, and evaluate them: all, or
    every `every`-th one (of stacks, every `every`-th stack) of each volume to save time.

    `paper`: means over slices, data range 1. `fastmri`: one figure for each volume, in the intensities of
    the source, data range = maximum of the target volume. With `segmentation` volumes are also evaluated by Dice: the
    mean over tissues of the overlap between the segmentations of reconstruction and target.

    With `members`, names of methods, they count as an ensemble (see `calibrate`). `own` are metrics of one's own,
    MODULE:NAME; they are called as preset `paper` has the slices, and of a volume are the mean, whatever the preset.

    Slices whose target is constant, and volumes of such, are counted and left out. Raises `InputError` if there are no
    others, if the data set's slices are smaller than the images, for images that are not finite, and for a
    segmentation, which needs whole volumes, of some slices.
    """
    info = reader.info
    if segmentation and every > 1:
        raise InputError(f"--segmentation needs whole volumes, not one slice in {every}; leave --every out")
    check_modality(info.modality, physics.signal)
    _check_size(info, physics)
    check_stack(info, physics.stack)
    names, described = (ZERO_FILLED, *methods), {name: find_metric(name) for name in own}
    last, count = len(info.volumes) - 1, min(len(info.volumes), _MOST_PICTURED)
    pictured = {info.volumes[place] for place in np.linspace(0, last, count).astype(int)}
    slices: list[Row] = []
    volumes: list[Row] = []
    examples = []
    segmented = []
    calibrations = []
    subjects = {}
    residuals = Residuals()
    note = residuals.note if physics.signal.mode != "pet" else None
    done, chosen_of = 0, {volume: in_stacks(info.slices_of(volume), physics.stack, every) for volume in info.volumes}
    total = sum(len(np.unique(stacks)) for stacks in chosen_of.values())
    for volume, stacks in chosen_of.items():
        indices = np.unique(stacks)
        places = np.linspace(0.3, 0.7, 3 if len(info.volumes) == 1 else 1) * (len(indices) - 1)
        shown = set(indices[places.astype(int)]) if volume in pictured else set()
        batches = []
        chosen = [int(index) for index in indices]
        for batch in reconstruct_split(
            methods, reader, stacks.reshape(-1).tolist(), physics, batch_size, torch.device(device), note
        ):
            check_finite(batch, lambda index: f"slice {int(info.index[index])} of {info.volumes[info.volume[index]]}")
            slices += _slice_rows(batch, volume, own)
            batches.append(batch)
            done += len(batch.indices)
            progress(done, total)
            for place, index in enumerate(batch.indices):
                if index in shown:
                    images = {name: batch.images[name][place] for name in names}
                    title = f"{volume}, slice {int(info.index[index])}"
                    examples.append(Example(title, batch.target[place], images))
        if not any(batch.shows.any() for batch in batches):
            continue
        subjects[volume] = info.subjects[int(info.subject[indices[0]])]
        calibrations += [calibrate(batches, members)] if members else []
        segmentations = _segmentations(names, batches, segmentation) if segmentation else {}
        volumes += _volume_rows(volume, names, batches, preset, slices, segmentations)
        if segmentations:
            segmented += [
                _segmented(f"{volume}, slice {int(info.index[index])}", chosen.index(index), batches, segmentations)
                for index in sorted(shown)
            ]
    if not volumes:
        raise InputError(
            f"{info.name}: none of its {info.num_slices} slices shows anything within {physics.crop[0]}×"
            f"{physics.crop[1]}; evaluate at a larger --size, or other volumes"
        )
    num_constant = info.num_constant + total - len(slices) // len(names)
    ended = (calibrations, tuple(members), described, residuals.shares)
    shown_of = (examples, subjects, segmented, num_constant, every, *ended)
    return Evaluation(physics, preset, names, slices, volumes, *shown_of)


def _slice_rows(batch: Reconstructed, volume: str, own: Sequence[str]) -> Iterator[Row]:
    """The figures of every slice that shows something, by every method."""
    for place, index in enumerate(batch.indices):
        if not batch.shows[place]:
            continue
        for method, images in batch.images.items():
            seconds = batch.seconds.get(method, 0.0) / len(batch.indices)
            figures = slice_metrics(batch.target[place], images[place])
            if own:
                figures |= own_figures(own, torch.from_numpy(batch.target[place]), torch.from_numpy(images[place]))
            yield Row(volume, index, method, figures, seconds)


def _volume_rows(
    volume: str,
    methods: Sequence[str],
    batches: Sequence[Reconstructed],
    preset: Preset,
    slices: Sequence[Row],
    segmentations: Mapping[str, Segmentation],
) -> Iterator[Row]:
    target, scale = (
        np.concatenate([getattr(batch, name)[batch.shows] for batch in batches]) for name in ("target", "scale")
    )
    for method in methods:
        rows = [row for row in slices if row.volume == volume and row.method == method]
        metrics = {name: float(np.mean([row.metrics[name] for row in rows])) for name in rows[0].metrics}
        if preset == "fastmri":
            found = np.concatenate([batch.images[method][batch.shows] for batch in batches])
            metrics |= volume_metrics(_intensities(target, scale), _intensities(found, scale))
        if segmentations:
            metrics[DICE] = dice_per_class(segmentations[_TARGET], segmentations[method])["mean"]
        yield Row(volume, None, method, metrics, float(np.mean([row.seconds for row in rows])))


def _segmentations(
    methods: Sequence[str], batches: Sequence[Reconstructed], config: SegmentationConfig
) -> dict[str, Segmentation]:
    """That of the target and of each method's images, of a whole volume."""
    scale = np.concatenate([batch.scale for batch in batches])
    found = {_TARGET: segment(np.concatenate([batch.target for batch in batches]), config, scale)}
    for method in methods:
        found[method] = segment(np.concatenate([batch.images[method] for batch in batches]), config, scale)
    return found


def _segmented(
    title: str, place: int, batches: Sequence[Reconstructed], segmentations: Mapping[str, Segmentation]
) -> SegmentationExample:
    """Slice `place` of a volume, for the figure."""
    sizes = np.cumsum([0, *(len(batch.indices) for batch in batches)])
    number = int(np.searchsorted(sizes, place, side="right")) - 1
    batch, row = batches[number], place - int(sizes[number])
    images = {_TARGET: batch.target[row], **{name: images[row] for name, images in batch.images.items()}}
    original, *others = (
        SegmentedImage(name or title, images[name], found.one_slice(place)) for name, found in segmentations.items()
    )
    return SegmentationExample(original, others)


def _intensities(images: np.ndarray, scale: np.ndarray) -> np.ndarray:
    low, high = scale[:, 0, None, None], scale[:, 1, None, None]
    return images * (high - low) + low


def _check_size(info: SplitInfo, physics: Physics) -> None:
    height, width = info.largest_matrix
    if physics.crop[0] > height or physics.crop[1] > width:
        raise InputError(
            f"images of {physics.crop[0]}×{physics.crop[1]} are wanted, the data set has slices of {height}×{width}; "
            "convert the data at a larger --matrix, or evaluate at a smaller --size"
        )
