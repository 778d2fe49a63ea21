"""Lines of Cartesian k-space as a scanner sends them, in ISMRMRD acquisitions: slices as soon as they are complete."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from larmor.storage.formats import ismrmrd_header
from larmor.storage.formats.measured import MeasuredKspace
from larmor.storage.formats.mrd_lines import (
    PART_COUNTERS,
    Grid,
    assemble,
    check_finite,
    fill_gaps,
    grid_of,
    has_flag,
    image_lines,
)
from larmor.storage.formats.partitions import partitions_to_slices
from larmor.storage.objects.errors import InputError

LARGEST_BYTES = 2**30
"""Of the k-space of one slice (or of one stack of a 3-D scan), and of all lines that wait for their slice."""
_ALIKE = ("samples", "center", "discard_pre", "discard_post", "channels")
_KEY = [*PART_COUNTERS, "slice"]


@dataclass(frozen=True)
class StreamedSlice:
    """A slice, or the stack of slices of a 3-D scan, whose lines are all there.

    `head` is the acquisition header of its first line, as sent; `field_of_view` (x, y, z) that of the image or stack
    in mm, None if the header states none that is positive.
    """

    source: MeasuredKspace
    head: bytes
    field_of_view: tuple[float, float, float] | None


@dataclass
class _Open:
    """The lines of a slice so far, and the counters (step 1, step 2, average) of those of its image."""

    head: bytes
    lines: list[np.ndarray] = field(default_factory=list)
    readouts: list[np.ndarray] = field(default_factory=list)
    places: set[tuple[int, ...]] = field(default_factory=set)


class StreamedScan:
    """The scan of one connection. `document` is its XML header.

    A slice is complete with its line that is flagged as the last (of the last average), or with all lines within the
    encoding limits. The stack of a 3-D scan needs all of its lines. Raises `InputError` for another header than
    ISMRMRD's.
    """

    def __init__(self, document: bytes) -> None:
        try:
            self._header = ismrmrd_header.parse(document)
        except ismrmrd_header.HeaderError as error:
            raise InputError(f"the header is not ISMRMRD ({error}); send the XML of the scan") from error
        if not self._header.encoding:
            raise InputError("the header describes no encoding; send the XML of the scan")
        self._open: dict[tuple[int, ...], _Open] = {}
        self._done: set[tuple[int, ...]] = set()
        self._alike: dict[int, tuple[int, ...]] = {}
        self._grids: dict[int, tuple[Any, ...]] = {}
        self._held = 0
        self._flagged = False

    def add(self, head: bytes, readout: np.ndarray) -> StreamedSlice | None:
        """Take the line with the acquisition header `head` and the samples (coil, sample) complex64; the slice that
        it completes.

        Noise, navigators and other lines that are of no image are passed over. Raises `InputError` for a line that
        cannot be of this scan, and for a slice that cannot be assembled.
        """
        import ismrmrd

        heads = np.frombuffer(head, np.dtype(ismrmrd.AcquisitionHeader))
        lines = image_lines(heads, 0)
        if not len(lines):
            return None
        line, last = lines[0], bool(has_flag(heads["flags"], "LAST_IN_SLICE")[0])
        key = tuple(int(line[name]) for name in _KEY)
        if not line["calibration"]:
            self._check(key, line)
        self._held += readout.nbytes
        if self._held > LARGEST_BYTES:
            raise InputError(
                f"the lines of {len(self._open)} incomplete slices hold more than {LARGEST_BYTES >> 20} MiB; mark the "
                "last line of each slice (ACQ_LAST_IN_SLICE)"
            )
        found = self._open.setdefault(key, _Open(head))
        found.lines.append(lines)
        found.readouts.append(readout)
        if not line["calibration"]:
            found.places.add((int(line["step1"]), int(line["step2"]), int(line["average"])))
        return self._take(key) if self._is_complete(key, line, last) else None

    def finish(self) -> Iterator[StreamedSlice]:
        """The slices that were not complete when the scan ended: those of a scan that marks no last lines.

        Raises `InputError` for a slice that others than it were ended before.
        """
        for key in [key for key, found in self._open.items() if found.places]:
            found = self._open[key]
            if self._flagged:
                raise InputError(
                    f"slice {key[-1]} ended after {len(found.places)} lines, without the one that is marked as its "
                    "last (ACQ_LAST_IN_SLICE); send the whole slice"
                )
            yield self._take(key)

    def _check(self, key: tuple[int, ...], line: np.void) -> None:
        number, place = key[0], key[-1]
        if number >= len(self._header.encoding):
            raise InputError(
                f"slice {place} is of encoding {number}; the header has {len(self._header.encoding)}, correct it"
            )
        if key in self._done:
            raise InputError(
                f"slice {place} got another line after its image was made; count averages and repetitions, and state "
                "encodingLimits.average in the header"
            )
        form = tuple(int(line[name]) for name in _ALIKE)
        for name, value, first in zip(_ALIKE, form, self._alike.setdefault(number, form), strict=True):
            if value != first:
                raise InputError(
                    f"slice {place} has a line with {name}={value}; it is {first} in the lines before, and all must "
                    "be alike"
                )

    def _is_complete(self, key: tuple[int, ...], line: np.void, last: bool) -> bool:
        found = self._open[key]
        if not found.places:
            return False  # lines for calibration alone
        encoding = self._header.encoding[key[0]]
        limits, matrix = encoding.encodingLimits, encoding.encodedSpace.matrixSize
        lines, partitions = (
            _span(limits, f"kspace_encoding_step_{axis}", size) for axis, size in ((1, matrix.y), (2, matrix.z))
        )
        averages = _span(limits, "average", 1)
        if last and partitions == 1:
            self._flagged = True
            first = int(getattr(getattr(limits, "average", None), "minimum", 0) or 0)
            if int(line["average"]) >= first + averages - 1:
                return True
        return len(found.places) >= lines * partitions * averages

    def _take(self, key: tuple[int, ...]) -> StreamedSlice:
        found = self._open.pop(key)
        self._done.add(key)
        self._held -= sum(readout.nbytes for readout in found.readouts)
        path = Path(f"slice {key[-1]} of the stream")
        encoding = self._header.encoding[key[0]]
        lines = np.concatenate(found.lines)
        lines["number"] = np.arange(len(lines))
        lines = fill_gaps(lines)
        if ismrmrd_header.calibrates_apart(encoding):
            lines = lines[~lines["calibration"]]
        grid = grid_of(path, lines, encoding, undersampled=True)
        num_coils = int(lines["channels"][0])
        self._check_grid(path, key[0], grid, num_coils)
        volume = assemble(grid, lines, (found.readouts[number] for number in lines["number"]))
        depth, height, width = grid.shape
        if depth > 1:
            check_finite(path, volume)
            partitions_to_slices(volume)
        voxel = ismrmrd_header.voxel_size(encoding, height, width)
        source = MeasuredKspace(path, lambda index: volume[index], depth, (num_coils, height, width), voxel)
        extent = (voxel[0] * height, voxel[1] * width, voxel[2] * depth) if voxel else None
        return StreamedSlice(source, found.head, extent)

    def _check_grid(self, path: Path, number: int, grid: Grid, num_coils: int) -> None:
        form = (grid.shape, grid.line_offset, grid.first_sample)
        if form != self._grids.setdefault(number, form):
            raise InputError(f"{path}: its matrix is another than that of the slices before; send one scan at a time")
        size = int(np.prod(grid.shape, dtype=np.int64)) * num_coils * np.dtype(np.complex64).itemsize
        if size > LARGEST_BYTES:
            depth, height, width = grid.shape
            raise InputError(
                f"{path}: {depth}×{height}×{width} points of {num_coils} coils are {size >> 20} MiB; at most "
                f"{LARGEST_BYTES >> 20} are taken, reconstruct the scan from a file"
            )


def _span(limits: Any, name: str, otherwise: int) -> int:
    """How many values a counter has."""
    stated = getattr(limits, name, None)
    numbers = (getattr(stated, "minimum", None), getattr(stated, "maximum", None))
    if not all(isinstance(number, int) for number in numbers):
        return otherwise
    return max(1, int(numbers[1]) - int(numbers[0]) + 1)  # type: ignore[arg-type]
