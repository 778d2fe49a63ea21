"""ISMRMRD (MRD) HDF5: Cartesian raw data, line by line, as the scanner acquired them.

Source: https://ismrmrd.readthedocs.io and the `ismrmrd` package.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from larmor.storage.formats import ismrmrd_header
from larmor.storage.formats.hdf5 import mrd_groups, open_file
from larmor.storage.formats.measured import MeasuredKspace, only_file
from larmor.storage.formats.mrd_lines import Grid, assemble, check_finite, grid_of, read_lines, split_parts
from larmor.storage.formats.partitions import partitions_to_slices
from larmor.storage.formats.source import Source, SourceOptions, SourceRef
from larmor.storage.objects.errors import InputError

SUFFIXES = (".h5", ".hdf5", ".mrd", ".ismrmrd")
LINES_PER_READ = 32


def list_parts(path: Path) -> list[str]:
    """[""] for one scan, else a label like `contrast1-repetition0` for each combination in the file.

    Reads the acquisitions' headers. Raises `InputError` for a file that is not ISMRMRD or is truncated.
    """
    with open_file(path) as file:
        return list(split_parts(read_lines(path, _group(path, file)["data"])))


def open_source(ref: SourceRef, files: Sequence[Path], options: SourceOptions) -> Source:
    """The slices of one scan; `ref.part` chooses among those of `list_parts`. Of `options` only `undersampled` applies.

    (height, width) is (readout, first phase encoding), with the readout's oversampling. Averages are
    averaged. Calibration lines of the scan itself are lines like the others. With a second phase encoding (3-D)
    each stack is transformed to slices, as a whole.

    Raises `InputError` for a file or a part that cannot be read, or k-space that is not Cartesian, complete (unless
    it may be undersampled, in two dimensions) and free of reversed readouts.
    """
    path = only_file(files)
    file = open_file(path)
    try:
        return _source(path, file, ref.part, options.undersampled)
    except InputError:
        file.close()
        raise
    except (OSError, RuntimeError) as error:  # what h5py raises for damaged metadata
        file.close()
        raise InputError(f"{path}: cannot be read ({error}); truncated? fetch it again") from error


def _source(path: Path, file: h5py.File, part: str, undersampled: bool) -> Source:
    group = _group(path, file)
    parts = split_parts(read_lines(path, group["data"]))
    if part not in parts:
        known = ", ".join(parts) if "" not in parts else "none: the file has one scan"
        raise InputError(f"{path}: has no part '{part}'; choose one of {known}")
    lines = parts[part]
    header = _header(path, group)
    number = int(lines["encoding"][0])
    if number >= len(header.encoding):
        raise InputError(f"{path}: its acquisitions refer to encoding {number}; the header has {len(header.encoding)}")
    encoding = header.encoding[number]
    notes = []
    if ismrmrd_header.calibrates_apart(encoding) and lines["calibration"].any():
        notes.append(
            "its calibration lines are of another scan, as the header says (calibrationMode), and are not used"
        )
        lines = lines[~lines["calibration"]]
    grid = grid_of(path, lines, encoding, undersampled)
    scan = _Scan(path, group["data"], lines, grid)
    depth, height, width = grid.shape
    about = ismrmrd_header.facts(header, number)
    about["num_averages"] = len(np.unique(lines["average"]))
    about["measured_lines"] = [len(np.unique(lines["step1"])), len(np.unique(lines["step2"]))]
    voxel_size = ismrmrd_header.voxel_size(encoding, height, width)

    def release() -> None:
        scan.volume.clear()
        file.close()

    return MeasuredKspace(
        path,
        scan.kspace,
        len(scan.slices) * depth,
        (int(lines["channels"][0]), height, width),
        voxel_size,
        about,
        _positions(lines, scan.slices) if depth == 1 else (),
        release,
        notes=notes,
    )


def _group(path: Path, file: h5py.File) -> h5py.Group:
    groups = mrd_groups(file)
    if "dataset" in groups:
        return file["dataset"]
    if len(groups) != 1:
        raise InputError(f"{path}: has {len(groups)} groups with acquisitions ({', '.join(groups)}); one is expected")
    return file[groups[0]]


def _header(path: Path, group: h5py.Group) -> Any:
    try:
        return ismrmrd_header.parse(np.asarray(group["xml"]).reshape(-1)[0])
    except (ismrmrd_header.HeaderError, IndexError) as error:
        raise InputError(f"{path}: its XML header is not ISMRMRD ({error}); export the file again") from error


def _positions(lines: np.ndarray, slices: np.ndarray) -> Sequence[float]:
    """Of each slice in mm from the first along the normal; empty where the headers do not tell them apart."""
    found = np.array([lines["position"][lines["slice"] == number][0] for number in slices], np.float64)
    if not np.isfinite(found).all() or len(np.unique(found)) < len(found) or len(found) < 2:
        return ()
    return (found - found.min()).tolist()


@dataclass
class _Scan:
    """Reads k-space from the lines of one part. `volume` keeps the stack of a 3-D scan that was read last."""

    path: Path
    data: h5py.Dataset
    lines: np.ndarray
    grid: Grid
    volume: dict[int, np.ndarray] = field(default_factory=dict)

    @property
    def slices(self) -> np.ndarray:
        return np.unique(self.lines["slice"])

    def kspace(self, index: int) -> np.ndarray:
        """(coil, height, width) complex64."""
        stack, partition = divmod(index, self.grid.shape[0])
        number = int(self.slices[stack])
        if self.grid.shape[0] == 1:
            return self._assemble(number)[0]
        if number not in self.volume:
            self.volume.clear()
            volume = self._assemble(number)
            check_finite(self.path, volume)
            partitions_to_slices(volume)
            self.volume[number] = volume
        return self.volume[number][partition]

    def _assemble(self, number: int) -> np.ndarray:
        """(partition, coil, height, width) k-space of slice `number`, averages averaged."""
        lines = self.lines[self.lines["slice"] == number]
        return assemble(self.grid, lines, self._readouts(lines))

    def _readouts(self, lines: np.ndarray) -> Iterator[np.ndarray]:
        num_coils, samples = int(lines["channels"][0]), int(lines["samples"][0])
        readouts = self.data.fields("data")
        for start in range(0, len(lines), LINES_PER_READ):
            for values in readouts[lines[start : start + LINES_PER_READ]["number"]]:
                yield values.view(np.complex64).reshape(num_coils, samples)
