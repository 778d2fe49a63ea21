"""Series in time as 4-D NIfTI: each slice is a scan of its own, whose stored slices are the frames.

A series is cut in its native plane: its slices are thick, and another plane would mix them. What belongs together in
time then lies together in a data set, as the slices of one volume do.
"""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from larmor.storage.formats.compressed import open_unpacked, read_to_end
from larmor.storage.formats.nifti import check_voxels, gather, read_header
from larmor.storage.formats.nifti_header import LARGEST_HEADER, NiftiHeader, parse_header
from larmor.storage.formats.remote_objects import opened
from larmor.storage.formats.source import SourceOptions
from larmor.storage.formats.volumes import Volume, VolumeSource, canonical_volume
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.urls import is_remote

_SECONDS = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6}


def list_parts(file: str) -> list[str]:
    """`slice000`, … for each slice of a series (a path or URL); [""] for a single volume.

    Raises `InputError` for a file without a NIfTI header.
    """
    path = Path(file)
    header = _remote_header(file) if is_remote(file) else read_header(path)
    shape = header.stored.get_data_shape()
    if len(shape) != 4 or shape[3] == 1:
        return [""]
    return [f"slice{number:03d}" for number in range(shape[2])]


def _remote_header(url: str) -> NiftiHeader:
    with opened(url) as stream:
        if url.lower().endswith(".gz"):
            with gzip.open(stream) as unpacked:
                block = unpacked.read(LARGEST_HEADER)
        else:
            block = stream.read(LARGEST_HEADER)
    return parse_header(Path(url), block)


@dataclass(frozen=True)
class Series:
    """`frames` (x, y, z, time) float32 as the file has them, `seconds` apart (None: not stated).

    `affine` maps their first three indices to RAS+ mm; `is_reversed`: the file's slices run from right, anterior or
    superior on; `notes` are those of `Source`.
    """

    frames: np.ndarray
    affine: np.ndarray
    notes: tuple[str, ...]
    seconds: float | None
    is_reversed: bool

    @cached_property
    def mean(self) -> Volume:
        """The mean over time, in canonical orientation."""
        return canonical_volume(self.frames.mean(axis=3, dtype=np.float32), self.affine, self.notes)

    def slice(self, number: int) -> tuple[Volume, Volume, int]:
        """Slice `number` of the file, its frames in place of slices; the mean volume, cut alike; the slice's place in
        it."""
        from nibabel.orientations import apply_orientation, io_orientation

        axis = self.mean.native_axis
        mean = self.mean.with_slices_along(axis)
        place = mean.data.shape[1] - 1 - number if self.is_reversed else number
        turned = np.moveaxis(apply_orientation(self.frames, io_orientation(self.affine)), axis, 0)[place]
        affine = mean.affine.copy()
        affine[:, 3] += place * affine[:, 1]
        return Volume(turned.transpose(0, 2, 1), mean.voxel_size, affine, self.notes), mean, place


class SeriesSource(VolumeSource):
    """The frames of one slice of a series as a `Source`: all, or none if their mean has too little foreground."""

    def __init__(self, series: Series, number: int, options: SourceOptions) -> None:
        frames, mean, self._place = series.slice(number)
        coronal = SourceOptions(
            options.matrix, options.min_foreground, whole=options.whole
        )  # axes are in place already
        about = {"frames": frames.data.shape[1], "frame_seconds": series.seconds, "slice": number}
        super().__init__(frames, coronal, {**about, "voxel_size_mm": list(series.mean.voxel_size)})
        self.plane = "native"
        self._mean, self._seconds = VolumeSource(mean, coronal), series.seconds or 1.0

    def kept_slices(self) -> Sequence[int]:
        """All frames or none: a series with gaps would be another one."""
        return range(self.num_slices) if self._mean.shows(self._place) else ()

    def position(self, index: int) -> float:
        """Seconds from the first frame; the frame's number where the file does not say."""
        return index * self._seconds


def open_part(path: Path, part: str, options: SourceOptions) -> SeriesSource:
    """The frames of one slice. Raises `InputError` for a file that is damaged, cut short, or another one by now."""
    series = _read_shared(path)
    number = int(part.removeprefix("slice"))
    if number >= series.mean.data.shape[series.mean.native_axis]:
        raise InputError(f"{path}: has no {part} any more; it was changed meanwhile, convert it again")
    return SeriesSource(series, number, options)


_lock = threading.Lock()
_newest: dict[tuple[str, int, int], Series] = {}  # at most one: the slices of a series are opened one after another


def _read_shared(path: Path) -> Series:
    status = path.stat()
    key = (str(path), status.st_size, status.st_mtime_ns)
    with _lock:
        if key not in _newest:
            _newest.clear()
            _newest[key] = read_series(path)
        return _newest[key]


def read_series(path: Path) -> Series:
    """Read one 4-D NIfTI file whole. Raises `InputError` as `nifti.read_volume` does."""
    from nibabel.orientations import OrientationError, io_orientation

    header = read_header(path)
    check_voxels(path, header)
    x, y, z, count = header.stored.get_data_shape()
    data = gather(path, (x, y, z * count), _frames(path, header.stored))
    try:
        is_reversed = bool(io_orientation(header.affine)[2, 1] < 0)
    except (OrientationError, np.linalg.LinAlgError, OverflowError) as error:
        raise InputError(f"{path}: its header is invalid ({error}); export the volume again") from error
    seconds, notes = _seconds(header)
    return Series(
        data.reshape((x, y, z, count), order="F"), header.affine, (*header.notes, *notes), seconds, is_reversed
    )


def _seconds(header: NiftiHeader) -> tuple[float | None, list[str]]:
    """Between two frames, and a note where the header leaves that open."""
    step, unit = float(header.stored["pixdim"][4]), header.stored.get_xyzt_units()[1]
    if not step > 0:
        return None, ["the header states no time between frames (pixdim); frames are numbered"]
    if unit not in _SECONDS:
        return step, ["the header states no unit of time (xyzt_units); seconds are assumed"]
    return step * _SECONDS[unit], []


def _frames(path: Path, header: Any) -> Iterator[np.ndarray]:
    """One frame (x, y, z) after another, scaled, in one pass over the file."""
    from nibabel.arrayproxy import ArrayProxy

    with open_unpacked(path) as file:
        proxy = ArrayProxy(file, header)
        for number in range(proxy.shape[3]):
            yield proxy[..., number]
        read_to_end(path, file)
