"""The first pass of a conversion: every scan is read once, so that nothing is written for sources that are bad."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from larmor.storage.conversion.journal import Journal
from larmor.storage.dataset.layout import SliceShape, StoredVolume
from larmor.storage.formats.centred_fft import to_image
from larmor.storage.formats.guides import check_grid
from larmor.storage.formats.provenance import provenance
from larmor.storage.formats.recognise import open_files
from larmor.storage.formats.sensitivity import KERNEL_WIDTH
from larmor.storage.formats.source import Source, SourceOptions, SourceRef
from larmor.storage.formats.staging import staged
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.parallel import run_in_threads
from larmor.storage.objects.store_errors import StoreAway


@dataclass(frozen=True)
class Examined:
    """One source: the slices worth storing, with (minimum, maximum) of their images in `scales`, less `offset`; or why
    not.

    `left_out` says what is wrong with a bad source; the other fields are empty then. `resumed` if an
    interrupted conversion had read it before.
    """

    shape: SliceShape = (0, 0, 0)
    num_slices: int = 0
    indices: tuple[int, ...] = ()
    positions: tuple[float, ...] = ()
    scales: tuple[tuple[float, float], ...] = ()
    offset: float = 0.0
    provenance: Mapping[str, Any] = field(default_factory=dict)
    left_out: str = ""
    resumed: bool = False

    def volume(self, ref: SourceRef) -> StoredVolume:
        """As which `ref` is stored."""
        return StoredVolume(ref.name, ref.subject, self.shape, self.indices, self.positions, self.scales, self.offset)

    def record(self) -> dict[str, Any]:
        """For the journal."""
        return {name: value for name, value in vars(self).items() if name != "resumed"}

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> Examined:
        return Examined(
            shape=tuple(record["shape"]),
            num_slices=record["num_slices"],
            indices=tuple(record["indices"]),
            positions=tuple(record["positions"]),
            scales=tuple((low, high) for low, high in record["scales"]),
            offset=record.get("offset", 0.0),
            provenance=record["provenance"],
            left_out=record["left_out"],
            resumed=True,
        )


@dataclass(frozen=True)
class PassOptions:
    """What both passes need: how sources are opened, and by how many threads.

    `skip_invalid` leaves bad sources out; with `sensitivity_maps` slices must be large enough for them.
    """

    source: SourceOptions
    skip_invalid: bool
    sensitivity_maps: bool
    num_threads: int


def examine_sources(
    refs: Sequence[SourceRef], journal: Journal, options: PassOptions, done: Callable[[int], None]
) -> list[Examined]:
    """What every source holds, in the order of `refs`; what the journal knows is not read again.

    Memory: `num_threads` open sources, and a slice of each.

    Raises `InputError` that names every bad source, unless `skip_invalid`; `StoreAway` if a store is gone.
    """

    def work(number: int) -> Examined:
        record = journal.read(f"sources/{number}")
        if record is not None:
            return Examined.from_record(record)
        try:
            found = examine(refs[number], options)
        except StoreAway:
            raise  # the source may be good
        except InputError as error:
            found = Examined(left_out=str(error))
        if not found.left_out or options.skip_invalid:
            journal.write(f"sources/{number}", found.record())
        return found

    found = run_in_threads(work, range(len(refs)), options.num_threads, done)
    errors = list(dict.fromkeys(one.left_out for one in found if one.left_out))  # the slices of a series share one
    if errors and not options.skip_invalid:
        raise InputError("\n".join([*errors, "nothing was written; repair the sources or pass --skip-invalid"]))
    return found


def examine(ref: SourceRef, options: PassOptions) -> Examined:
    """Read one source. Raises `InputError` that names its file if it is bad."""
    with staged(ref) as local, local.naming():
        source = open_files(ref, local.files, options.source)
        try:
            _check_shape(ref, source, options.sensitivity_maps)
            kept = [int(index) for index in source.kept_slices()]
            about = provenance(ref, source, local.files)
            if ref.guide is not None:
                about["guide"] = _examine_guide(ref, ref.guide, source, kept, options)
            return Examined(
                shape=source.slice_shape,
                num_slices=source.num_slices,
                indices=tuple(kept),
                positions=tuple(float(source.position(index)) for index in kept),
                scales=tuple(image_scale(read_slice(ref, source, index)) for index in kept),
                offset=source.offset,
                provenance=about,
            )
        finally:
            source.close()


def _examine_guide(
    ref: SourceRef, guide: SourceRef, source: Source, kept: Sequence[int], options: PassOptions
) -> dict[str, Any]:
    """Read the guide of a scan, too: what is stored about it. Raises `InputError` for one that does not fit."""
    with staged(guide) as local, local.naming():
        found = open_files(guide, local.files, options.source)
        try:
            check_grid(ref, source, found)
            for index in kept:
                read_slice(guide, found, index)
            return provenance(guide, found, local.files)
        finally:
            found.close()


def _check_shape(ref: SourceRef, source: Source, sensitivity_maps: bool) -> None:
    num_coils, *matrix = source.slice_shape
    if sensitivity_maps and num_coils > 1 and min(matrix) < KERNEL_WIDTH:
        raise InputError(
            f"{ref.files[0]}: has k-space of {matrix[0]}×{matrix[1]}; sensitivity maps need at least {KERNEL_WIDTH} "
            "each way, leave out --sensitivity-maps or the file"
        )


def read_slice(ref: SourceRef, source: Source, index: int) -> np.ndarray:
    """One slice (coil, height, width) complex64. Raises `InputError` if it is not finite or of another shape."""
    kspace = source.kspace(index)
    if kspace.shape != source.slice_shape:
        raise InputError(f"{ref.files[0]}: slice {index} has shape {kspace.shape}, others {source.slice_shape}")
    if not np.isfinite(kspace).all():
        raise InputError(f"{ref.files[0]}: slice {index} has values that are not finite; repair or leave out the file")
    return kspace


def image_scale(kspace: np.ndarray) -> tuple[float, float]:
    """Minimum and maximum of the slice's image: root of the sum of the coils' squares, float32."""
    squares = np.zeros(kspace.shape[1:], np.float32)
    for coil in kspace:  # one at a time, to hold no second slice
        image = to_image(coil)
        squares += image.real**2 + image.imag**2
    return float(np.sqrt(squares.min())), float(np.sqrt(squares.max()))
