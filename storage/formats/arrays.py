"""NumPy's .npy and .npz: k-space if complex, magnitude images if real."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from larmor.storage.formats.centred_fft import to_kspace
from larmor.storage.formats.kspace_energy import notes_on_stack
from larmor.storage.formats.measured import MeasuredKspace, only_file
from larmor.storage.formats.source import Facts, Source, SourceOptions, SourceRef
from larmor.storage.objects.errors import InputError

SUFFIXES = (".npy", ".npz")
_COLOURS = (3, 4)  # channels of a colour image


@dataclass
class MagnitudeImages(MeasuredKspace):
    """k-space that was made from images, which is whole."""

    images: np.ndarray = field(kw_only=True)

    def kept_slices(self) -> Sequence[int]:
        """The slices that show something: the image is not constant. Raises `InputError` as `kspace` does."""
        kept = []
        for index in range(self.num_slices):
            self.kspace(index)
            if self.images[index].min() < self.images[index].max():
                kept.append(index)
        return kept


def list_parts(path: Path) -> list[str]:
    """The arrays of an .npz file by name, sorted; [""] for a single array and for .npy.

    Raises `InputError` for a file that is missing, not an .npz archive, or empty.
    """
    if path.suffix.lower() != ".npz":
        return [""]
    members = _members(path)
    return sorted(members) if len(members) > 1 else [""]


def open_source(ref: SourceRef, files: Sequence[Path], options: SourceOptions) -> Source:
    """The slices of one array; `ref.part` names it in an .npz file that has several. `options` do not apply.

    Complex arrays are centred k-space, (slice, coil, height, width), (slice, height, width) or (height, width);
    real ones are magnitude images, (slice, height, width) or (height, width), and become k-space by the
    centred orthonormal FFT. Complex ones get a note if their energy lies elsewhere than that of such k-space.
    Memory: one slice; an .npz member is unpacked to a temporary file.

    Raises `InputError` for a truncated file, another type or shape, and a part that is not there.
    """
    path = only_file(files)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    array = _map_member(path, ref.part) if path.suffix.lower() == ".npz" else _map(path, path)
    if array.dtype.kind not in "ciuf":
        raise InputError(
            f"{path}: holds {array.dtype}; complex numbers (k-space) or real ones (magnitude images) are expected"
        )
    is_kspace = array.dtype.kind == "c"
    if array.ndim not in ((2, 3, 4) if is_kspace else (2, 3)) or array.size == 0:
        expected = "(slice, coil, height, width), (slice, height, width)" if is_kspace else "(slice, height, width)"
        raise InputError(
            f"{path}: has shape {array.shape} of {array.dtype}; {expected} or (height, width) is expected, "
            "reorder its axes"
        )
    if not is_kspace and array.ndim == 3 and array.shape[2] in _COLOURS and min(array.shape[:2]) > array.shape[2]:
        raise InputError(
            f"{path}: has shape {array.shape}, whose last axis looks like colours; grey images are expected, "
            "(slice, height, width) or (height, width)"
        )
    stack = array[None] if array.ndim == 2 else array
    # a magnitude is not negative: what is would come back with the other sign
    offset = 0.0 if is_kspace else min(0.0, float(stack.min()))
    slice_shape = (stack.shape[1] if stack.ndim == 4 else 1, stack.shape[-2], stack.shape[-1])

    def read(index: int) -> np.ndarray:
        if is_kspace:
            return np.asarray(stack[index]).reshape(slice_shape)
        image = np.asarray(stack[index], dtype=np.float32)
        if not np.isfinite(image).all():  # said here, since the transform spreads one bad pixel
            raise InputError(f"{path}: slice {index} has pixels that are not finite float32 numbers; repair the file")
        return to_kspace(image - np.float32(offset) if offset else image)[None]

    if is_kspace:
        return MeasuredKspace(
            path, read, len(stack), slice_shape, about={"content": "k-space"}, notes=notes_on_stack(stack)
        )
    about: Facts = {"content": "magnitude images"}
    return MagnitudeImages(path, read, len(stack), slice_shape, about=about, images=stack, offset=offset)


def _map(path: Path, named: Path) -> np.ndarray:
    """The array of the .npy file `path`, read when touched; errors name the file `named`."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(
            f"{named}: is not a complete array of numbers ({error}); truncated, or an array of objects? "
            "save it again with numpy.save"
        ) from error
    if not isinstance(array, np.ndarray):  # np.load goes by the content
        array.close()
        raise InputError(f"{named}: is an .npz archive by another name; rename it, or save with numpy.save")
    return array


def _members(path: Path) -> dict[str, str]:
    """Name of each array → its file in the archive."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            found = {name.removesuffix(".npy"): name for name in archive.namelist() if name.endswith(".npy")}
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"{path}: is not a complete .npz archive ({error}); truncated? fetch it again") from error
    if not found:
        raise InputError(f"{path}: has no array in it; save it again with numpy.savez")
    return found


def _map_member(path: Path, part: str) -> np.ndarray:
    members = _members(path)
    if not part and len(members) == 1:
        part = next(iter(members))
    if part not in members:
        raise InputError(f"{path}: has no array '{part}'; choose one of {', '.join(sorted(members))}")
    # numpy can map a file, not the inside of an archive; the mapping outlives the file's name
    with tempfile.NamedTemporaryFile(prefix="larmor-array-", suffix=".npy") as unpacked:
        try:
            with zipfile.ZipFile(path) as archive, archive.open(members[part]) as packed:
                shutil.copyfileobj(packed, unpacked, 2**20)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
            raise InputError(f"{path}: '{part}' cannot be unpacked ({error}); fetch the file again") from error
        unpacked.flush()
        return _map(Path(unpacked.name), path)
