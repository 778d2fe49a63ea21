"""Volumes to a sharded data set: coronal slices, their k-space, split by subject."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from storage import dataset
from storage.dataset import SliceRecord, SplitWriter
from storage.errors import InputError
from storage.object_store import ObjectStore
from storage.splits import assign_splits
from storage.volumes import NIFTI_SUFFIXES, Volume, coronal_slices, has_foreground, read_volume, subject_of

Progress = Callable[[str, int, "int | None"], None]


@dataclass(frozen=True)
class ConvertOptions:
    """`matrix` is (height, width) of the stored slices, `min_foreground` the least share of foreground pixels.

    `held_out` names the subjects of `validation` and `test` (see `assign_splits`).
    """

    matrix: tuple[int, int] = (256, 256)
    min_foreground: float = 0.15
    held_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    overwrite: bool = False
    skip_invalid: bool = False


@dataclass(frozen=True)
class SubjectReport:
    """What became of one source: `kept` of `total` coronal slices, or why it was left out."""

    subject: str
    split: str
    kept: int
    total: int
    left_out: str = ""


def find_sources(arguments: Sequence[Path]) -> list[Path]:
    """The NIfTI files named by files and folders, sorted.

    Raises `InputError` for a path that does not exist and a folder without volumes.
    """
    found: list[Path] = []
    for argument in arguments:
        if argument.is_dir():
            inside = [path for path in sorted(argument.rglob("*")) if path.name.endswith(NIFTI_SUFFIXES)]
            if not inside:
                raise InputError(f"{argument}: no volume in this folder; expected {' or '.join(NIFTI_SUFFIXES)} files")
            found += inside
        elif argument.is_file():
            subject_of(argument)
            found.append(argument)
        else:
            raise InputError(f"{argument}: no such file or folder")
    return sorted(set(found))


def convert(sources: Sequence[Path], url: str, options: ConvertOptions, progress: Progress) -> list[SubjectReport]:
    """Read `sources`, write the data set at `url`, publish it, and say what was kept.

    Every source is checked before anything is written. Memory: one volume and a shard per split.

    Raises `InputError` for a bad source (unless `skip_invalid`), a split that does not work out, or a data
    set that is there already (unless `overwrite`).
    """
    store = ObjectStore(url)
    store.check_access()
    split_of = assign_splits([subject_of(path) for path in sources], options.held_out)
    good, reports = _check_sources(sources, split_of, options, progress)
    empty = {"train", "validation", "test"} - {split_of[subject_of(path)] for path in good}
    if empty:
        raise InputError(f"no subject is left for the split '{min(empty)}'; add volumes or name other subjects")
    _check_foreground(good, split_of, options)
    dataset.begin(store, options.overwrite)
    writers = {
        split: SplitWriter(store, split, (1, *options.matrix), capacity=_capacity(good, split_of, split))
        for split in dataset.SPLITS
    }
    provenance = []
    for done, path in enumerate(good):
        progress("converting", done, len(good))
        volume = read_volume(path)
        split = split_of[volume.subject]
        kept = _append(writers[split], volume, options)
        reports.append(SubjectReport(volume.subject, split, kept, volume.data.shape[1]))
        provenance.append({"subject": volume.subject, "voxel_size_mm": volume.voxel_size, **volume.provenance})
    splits = {split: writer.close() for split, writer in writers.items()}
    about = {"matrix": list(options.matrix), "min_foreground": options.min_foreground, "plane": "coronal"}
    dataset.publish(store, splits, provenance, **about)
    progress("converting", len(good), len(good))
    return reports


def _check_sources(
    sources: Sequence[Path], split_of: Mapping[str, str], options: ConvertOptions, progress: Progress
) -> tuple[list[Path], list[SubjectReport]]:
    good, reports, errors = [], [], []
    for done, path in enumerate(sources):
        progress("checking", done, len(sources))
        try:
            read_volume(path)
            good.append(path)
        except InputError as error:
            errors.append(str(error))
            reports.append(SubjectReport(subject_of(path), split_of[subject_of(path)], 0, 0, str(error)))
    progress("checking", len(sources), len(sources))
    if errors and not options.skip_invalid:
        raise InputError("\n".join([*errors, "nothing was written; repair the sources or pass --skip-invalid"]))
    return good, reports


def _check_foreground(sources: Sequence[Path], split_of: Mapping[str, str], options: ConvertOptions) -> None:
    """One slice is enough for each split: mostly its first volume has it. Before an old data set is removed."""
    for split in dataset.SPLITS:
        volumes = (read_volume(path) for path in sources if split_of[subject_of(path)] == split)
        if not any(has_foreground(volume, options.matrix, options.min_foreground) for volume in volumes):
            raise InputError(
                f"no slice has {options.min_foreground:.0%} foreground in some split; lower --min-foreground "
                f"(all slices of '{split}' would be left out)"
            )


def _capacity(sources: Sequence[Path], split_of: Mapping[str, str], split: str) -> int:
    """An upper bound of a split's slices from the headers: a volume has as many coronal slices as its longest axis."""
    import nibabel

    images = [nibabel.load(path) for path in sources if split_of[subject_of(path)] == split]
    return sum(max(image.shape) for image in images)  # type: ignore[attr-defined]


def _append(writer: SplitWriter, volume: Volume, options: ConvertOptions) -> int:
    kept = coronal_slices(volume, options.matrix, options.min_foreground)
    for item in kept:
        writer.append(
            SliceRecord(
                kspace=image_to_kspace(item.image)[None],
                subject=volume.subject,
                index=item.index,
                position=item.position,
                scale=(float(item.image.min()), float(item.image.max())),
            )
        )
    return len(kept)


def image_to_kspace(image: np.ndarray) -> np.ndarray:
    """Centred orthonormal FFT of (…, height, width) → complex64; zero frequency at [n // 2]."""
    axes = (-2, -1)
    shifted = np.fft.ifftshift(image, axes=axes)
    return np.fft.fftshift(np.fft.fft2(shifted, norm="ortho", axes=axes), axes=axes).astype(np.complex64)
