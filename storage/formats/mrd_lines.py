"""Which acquisitions of an ISMRMRD file are image lines, and where in k-space each belongs.

Source: https://ismrmrd.readthedocs.io (MRD raw data: flags, encoding counters, encoding limits).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from larmor.storage.formats import ismrmrd_header
from larmor.storage.formats.partitions import new_volume
from larmor.storage.objects.errors import InputError

PART_COUNTERS = ("encoding", "contrast", "phase", "repetition", "set")
LINE = np.dtype(
    [(name, np.int64) for name in ("number", "samples", "center", "discard_pre", "discard_post", "channels")]
    + [(name, np.int32) for name in (*PART_COUNTERS, "slice", "step1", "step2", "average")]
    + [("reversed", np.bool_), ("calibration", np.bool_), ("position", np.float32)]
)
LIKE = [*PART_COUNTERS, "slice", "samples", "center", "discard_pre", "discard_post", "channels", "reversed"]
PLACE = [*PART_COUNTERS, "slice", "step1", "step2"]
HEADERS_PER_READ = 1024
NOT_IMAGE_FLAGS = (
    *("NOISE_MEASUREMENT", "NAVIGATION_DATA", "PHASECORR_DATA", "HPFEEDBACK_DATA", "DUMMYSCAN_DATA"),
    *("RTFEEDBACK_DATA", "SURFACECOILCORRECTIONSCAN_DATA", "PHASE_STABILIZATION_REFERENCE", "PHASE_STABILIZATION"),
)


@dataclass(frozen=True)
class Grid:
    """Where the lines of one part lie: k-space sizes, and what to add to a counter to get its index.

    `first_sample` is the index of a readout's first kept sample; `kept` cuts the discarded ones.
    """

    shape: tuple[int, int, int]  # (depth, height, width): partitions, readout, lines
    partition_offset: int
    line_offset: int
    first_sample: int
    kept: slice


def read_lines(path: Path, data: h5py.Dataset) -> np.ndarray:
    """The image lines (n,) of type `LINE`, in the order of the file. Reads headers only, a block at a time.

    `position` is that of the slice along its normal, in mm. Lines for calibration alone (`calibration`) are there
    where no image line is (see `fill_gaps`).

    Raises `InputError` if the dataset holds no acquisitions or none that makes an image.
    """
    if data.ndim != 1 or data.dtype.names is None or "head" not in data.dtype.names:
        raise InputError(f"{path}: its dataset 'data' holds no ISMRMRD acquisitions; export the file again")
    heads = data.fields("head")
    blocks = []
    for start in range(0, len(data), HEADERS_PER_READ):
        head = heads[start : start + HEADERS_PER_READ]
        blocks.append(image_lines(head, start))
    lines = fill_gaps(np.concatenate(blocks) if blocks else np.empty(0, LINE))
    if not len(lines):
        raise InputError(f"{path}: none of its {len(data)} acquisitions is an image line; is it a noise scan?")
    return lines


def image_lines(head: np.ndarray, start: int) -> np.ndarray:
    """The acquisitions with the headers `head`, numbered from `start`, that are of an image or calibrate it."""
    return _lines_of(head, start)[_is_image(head["flags"])]


def has_flag(flags: np.ndarray, name: str) -> np.ndarray:
    """Whether `ACQ_<name>` of the `ismrmrd` package is set."""
    import ismrmrd

    number = getattr(ismrmrd, f"ACQ_{name}")  # counted from 1
    return (flags >> np.uint64(number - 1)) & np.uint64(1) != 0


def _lines_of(head: np.ndarray, start: int) -> np.ndarray:
    lines = np.empty(len(head), LINE)
    lines["number"] = np.arange(start, start + len(head))
    lines["samples"] = head["number_of_samples"]
    lines["center"] = head["center_sample"]
    lines["channels"] = head["active_channels"]
    lines["encoding"] = head["encoding_space_ref"]
    lines["step1"] = head["idx"]["kspace_encode_step_1"]
    lines["step2"] = head["idx"]["kspace_encode_step_2"]
    for name in ("discard_pre", "discard_post"):
        lines[name] = head[name]
    for name in ("contrast", "phase", "repetition", "set", "slice", "average"):
        lines[name] = head["idx"][name]
    lines["reversed"] = has_flag(head["flags"], "IS_REVERSE")
    lines["calibration"] = _is_calibration_only(head["flags"])
    lines["position"] = (head["position"] * head["slice_dir"]).sum(axis=1)
    return lines


def _is_image(flags: np.ndarray) -> np.ndarray:
    return ~np.logical_or.reduce([has_flag(flags, f"IS_{name}") for name in NOT_IMAGE_FLAGS])


def _is_calibration_only(flags: np.ndarray) -> np.ndarray:
    return has_flag(flags, "IS_PARALLEL_CALIBRATION") & ~has_flag(flags, "IS_PARALLEL_CALIBRATION_AND_IMAGING")


def fill_gaps(lines: np.ndarray) -> np.ndarray:
    """The image lines, and of those for calibration alone what fills gaps between them.

    A scan accelerated by parallel imaging measures its centre whole: there, lines that are not of the regular
    pattern are for calibration, but as good as the others. Those that fit no image line (another readout, counter
    or slice) are of something else. Of several at one place the first counts.
    """
    image, calibration = lines[~lines["calibration"]], lines[lines["calibration"]]
    if not len(image) or not len(calibration):
        return image
    alike, taken = set(image[LIKE].tolist()), set(image[PLACE].tolist())
    chosen = []
    for number, (like, place) in enumerate(zip(calibration[LIKE].tolist(), calibration[PLACE].tolist(), strict=True)):
        if like in alike and place not in taken:
            taken.add(place)
            chosen.append(number)
    found = calibration[chosen]
    for name in ("step1", "step2"):
        found = found[(found[name] >= image[name].min()) & (found[name] <= image[name].max())]
    return np.sort(np.concatenate([image, found]), order="number")


def split_parts(lines: np.ndarray) -> dict[str, np.ndarray]:
    """Label → lines of each scan in the file, "" if there is one; labels name the counters that vary."""
    varying = [name for name in PART_COUNTERS if lines[name].min() < lines[name].max()]
    if not varying:
        return {"": lines}
    keys = np.stack([lines[name] for name in varying], axis=1)
    found, which = np.unique(keys, axis=0, return_inverse=True)
    which = which.reshape(-1)
    labels = ["-".join(f"{name}{number}" for name, number in zip(varying, key, strict=True)) for key in found]
    return {label: lines[which == number] for number, label in enumerate(labels)}


def grid_of(path: Path, lines: np.ndarray, encoding: Any, undersampled: bool = False) -> Grid:
    """Where the lines of one part belong, so that zero frequency is at [n // 2] of each axis.

    Axes are as long as the encoded matrix, longer where the centre of a complete readout or of the limits
    lies elsewhere: nothing measured is cut off, the rest stays zero.

    Raises `InputError` for reversed or uneven readouts, a trajectory that is not Cartesian, and lines that
    are repeated, outside the encoding limits, or missing (in two dimensions unless they may be `undersampled`; a
    volume with missing lines has no k-space of its slices).
    """
    if ismrmrd_header.trajectory(encoding) != "cartesian":
        raise InputError(
            f"{path}: its trajectory is {ismrmrd_header.trajectory(encoding)}; only Cartesian scans can be used"
        )
    if lines["reversed"].any():
        raise InputError(
            f"{path}: {int(lines['reversed'].sum())} of {len(lines)} readouts are reversed (echo-planar); they need "
            "a phase correction that Larmor does not do, use data that are corrected"
        )
    matrix, limits = encoding.encodedSpace.matrixSize, encoding.encodingLimits
    first_sample, height, kept = _readout(path, lines, matrix.x)
    low1, center1, high1 = _limits(path, limits, "kspace_encoding_step_1", matrix.y, lines["step1"])
    low2, center2, high2 = _limits(path, limits, "kspace_encoding_step_2", matrix.z, lines["step2"])
    _check_lines(path, lines, (low1, high1), (low2, high2), undersampled and high2 == low2)
    width = padded(center1 - low1, high1 + 1 - center1, matrix.y)
    depth = padded(center2 - low2, high2 + 1 - center2, matrix.z) if high2 > low2 else 1
    return Grid(
        (depth, height, width),
        partition_offset=depth // 2 - center2 if depth > 1 else -low2,
        line_offset=width // 2 - center1,
        first_sample=first_sample,
        kept=kept,
    )


def assemble(grid: Grid, lines: np.ndarray, readouts: Iterable[np.ndarray]) -> np.ndarray:
    """(partition, coil, height, width) k-space of the lines of one slice, averages averaged.

    `readouts` are the samples (coil, sample) complex64 of each line.
    """
    depth, height, width = grid.shape
    volume = new_volume((depth, int(lines["channels"][0]), height, width))
    count = np.zeros((depth, width), np.float32)
    for line, values in zip(lines, readouts, strict=True):
        readout = values[:, grid.kept]
        z, y = line["step2"] + grid.partition_offset, line["step1"] + grid.line_offset
        x = slice(grid.first_sample, grid.first_sample + readout.shape[1])
        volume[z, :, x, y] += readout
        count[z, y] += 1
    if count.max() > 1:
        for z in range(depth):
            volume[z] /= np.maximum(count[z], 1)
    return volume


def check_finite(path: Path, volume: np.ndarray) -> None:
    """Before the transform to slices, which would spread one bad value over all of them."""
    for z, kspace in enumerate(volume):
        if not np.isfinite(kspace).all():
            raise InputError(f"{path}: partition {z} has values that are not finite; repair the file")


def padded(before: int, after: int, size: int) -> int:
    """The least n ≥ `size` that has `before` samples left of [n // 2], and `after` from it on."""
    return max(size, 2 * before, 2 * after - 1)


def _readout(path: Path, lines: np.ndarray, matrix: int) -> tuple[int, int, slice]:
    """Index of the first kept sample, length of the axis, and the kept samples of a readout."""
    for name in ("samples", "center", "discard_pre", "discard_post", "channels"):
        if lines[name].min() != lines[name].max():
            raise InputError(
                f"{path}: '{name}' runs from {lines[name].min()} to {lines[name].max()} within one scan; all "
                "readouts must be alike, export the scan without the others"
            )
    samples, center, before, after = (
        int(lines[name][0]) for name in ("samples", "center", "discard_pre", "discard_post")
    )
    # writers that leave the field out leave 0, and no Cartesian readout starts in its own centre
    if center == 0 and samples >= matrix:
        center = samples // 2
    if not before <= center < samples - after:
        raise InputError(
            f"{path}: the centre sample {center} lies outside the samples {before} to {samples - after - 1} of its "
            "readouts; correct 'center_sample' in the acquisition headers"
        )
    height = padded(center - before, samples - after - center, matrix)
    return height // 2 - (center - before), height, slice(before, samples - after)


def _limits(path: Path, limits: Any, name: str, matrix: int, counters: np.ndarray) -> tuple[int, int, int]:
    """(minimum, centre, maximum) of a counter; without stated limits the whole matrix, centred."""
    stated = getattr(limits, name, None)
    low, high = int(counters.min()), int(counters.max())
    if stated is None:
        # a single partition with a thick matrix is a slice, not one line of a volume
        return (low, low, low) if low == high and name.endswith("2") else (0, matrix // 2, max(matrix - 1, high))
    if low < stated.minimum or high > stated.maximum or not stated.minimum <= stated.center <= stated.maximum:
        raise InputError(
            f"{path}: '{name}' runs from {low} to {high}; the header's limits are {stated.minimum} to "
            f"{stated.maximum} with the centre {stated.center}, correct them"
        )
    return int(stated.minimum), int(stated.center), int(stated.maximum)


def _check_lines(
    path: Path, lines: np.ndarray, limits1: tuple[int, int], limits2: tuple[int, int], undersampled: bool
) -> None:
    num_lines = (limits1[1] - limits1[0] + 1) * (limits2[1] - limits2[0] + 1)
    for number in np.unique(lines["slice"]):
        one = lines[lines["slice"] == number]
        place = one["step2"].astype(np.int64) * (limits1[1] + 1) + one["step1"]
        _check_unique(path, number, zip(place.tolist(), one["average"].tolist(), strict=True))
        present = len(np.unique(place))
        if present < num_lines and not undersampled:
            raise InputError(
                f"{path}: slice {number} is undersampled: {present} of {num_lines} lines within the encoding limits "
                "are there; no fully sampled target can be made from it, use a fully sampled scan"
            )


def _check_unique(path: Path, number: int, places: Iterable[tuple[int, int]]) -> None:
    """Lines that differ in none of the known counters may be different images: do not average them."""
    everything = list(places)
    repeated = len(everything) - len(set(everything))
    if repeated:
        raise InputError(
            f"{path}: slice {number} has {repeated} lines twice that no counter but 'segment' or a user counter "
            "tells apart; export one of the series, or number them as averages"
        )
