"""DICOM series: single images, or enhanced files of many frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from larmor.storage.formats.dicom_frames import Frame, read_frames, stack
from larmor.storage.formats.dicom_header import UNREADABLE, read_dicom
from larmor.storage.formats.grid import Grid
from larmor.storage.formats.source import Facts, SourceOptions, SourceRef
from larmor.storage.formats.volume_array import gather_slabs
from larmor.storage.formats.volumes import VolumeSource, canonical_volume
from larmor.storage.objects.errors import InputError


def open_source(ref: SourceRef, files: Sequence[Path], options: SourceOptions) -> VolumeSource:
    """The coronal slices of one series.

    Raises `InputError` if the files are not one evenly spaced stack of like MR images of one series, hold no place in
    space, phases or colours, are compressed in an unknown way, cut short, or all of one value.
    """
    frames: list[Frame] = []
    about: Facts = {}
    for path in files:
        found, facts = read_frames(path)
        frames += found
        about = about or facts
    ordered, affine = stack(frames, options.single)
    rows, columns = ordered[0].shape
    where = files[0] if len(files) == 1 else f"{files[0].parent} ({ref.name})"
    data = gather_slabs(where, (columns, rows, len(ordered)), _pixels(ordered))
    return VolumeSource(canonical_volume(data, affine, grid=Grid(data.shape, affine, frames=ordered)), options, about)


def _pixels(frames: Sequence[Frame]) -> Iterator[np.ndarray]:
    """The values of each frame, (column, row, 1) float64."""
    from pydicom.pixels import iter_pixels

    for path, group in groupby(frames, key=lambda frame: frame.path):
        wanted = list(group)
        try:
            pixels = iter_pixels(_pixel_source(path), indices=[frame.index for frame in wanted])
            for frame, stored in zip(wanted, pixels, strict=True):
                yield (stored.astype(np.float64) * frame.slope + frame.intercept).T[..., None]
        except UNREADABLE as error:
            raise InputError(
                f"{path}: its pixels cannot be read ({error}); cut short, or compressed in a way that needs "
                "another package? export it again, uncompressed"
            ) from error


def _pixel_source(path: Path) -> Any:
    """What pydicom takes pixels from: a path, of which one frame at a time is in memory, where it can do that."""
    from pydicom.filereader import read_file_meta_info
    from pydicom.misc import is_dicom

    syntax = read_file_meta_info(path).get("TransferSyntaxUID") if is_dicom(path) else None
    return read_dicom(path) if syntax is None or syntax.is_deflated else path
