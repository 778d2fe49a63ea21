"""NIfTI volumes in, upright coronal slices out."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from storage.errors import InputError

NIFTI_SUFFIXES = (".nii", ".nii.gz")


@dataclass(frozen=True)
class Volume:
    """One magnitude volume in canonical orientation.

    `data` is float32 (left→right, posterior→anterior, inferior→superior), in the file's own intensity
    unit; `voxel_size` is in mm, in the same order; `affine` maps its voxel indices to RAS+ mm.
    """

    subject: str
    data: np.ndarray
    voxel_size: tuple[float, float, float]
    affine: np.ndarray
    provenance: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CoronalSlice:
    """`image` (height, width) float32, superior at the top, the subject's right at the left.

    `position` is the distance of the slice from the volume's posterior face in mm, `index` its voxel index.
    """

    image: np.ndarray
    index: int
    position: float


def subject_of(path: Path) -> str:
    """The subject's name: the file name without its NIfTI suffix."""
    name = path.name
    for suffix in (".nii.gz", ".nii"):
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    raise InputError(f"{path}: not a NIfTI file name; expected one of {', '.join(NIFTI_SUFFIXES)}")


def read_volume(path: Path) -> Volume:
    """Read one 3-D NIfTI file, check it, and turn it to the canonical orientation (RAS+).

    Raises `InputError` for a file that is missing, is not NIfTI, is cut short, has an impossible header, is
    not 3-D, holds non-finite values or anything but one real number per voxel, or is constant.
    """
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.orientations import OrientationError
    from nibabel.spatialimages import HeaderDataError

    subject = subject_of(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        image: Any = nibabel.load(path)
        shape = tuple(size for size in image.shape)
        if len(shape) == 4 and shape[3] == 1:
            image, shape = image.slicer[..., 0], shape[:3]
        if len(shape) != 3:
            raise InputError(f"{path}: has shape {shape}; one 3-D volume is expected")
        if image.get_data_dtype().kind not in "iuf":
            raise InputError(f"{path}: has voxels of type {image.get_data_dtype()}; one real number each is expected")
        canonical: Any = nibabel.as_closest_canonical(image)
        data = np.asarray(canonical.dataobj, dtype=np.float32)
        _check_gzip(path)
    except InputError:
        raise
    except ImageFileError as error:
        raise InputError(f"{path}: is not what its name says ({error}); a NIfTI file is expected") from error
    except (HeaderDataError, OrientationError, np.linalg.LinAlgError, OverflowError) as error:
        raise InputError(f"{path}: its header makes no sense ({error}); export the volume again") from error
    except (EOFError, zlib.error, OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read to its end ({error}); truncated? fetch or export it again") from error
    bad = int(data.size - np.isfinite(data).sum())
    if bad:
        raise InputError(f"{path}: {bad} of {data.size} voxels are not finite (NaN or infinite); repair the volume")
    if data.size == 0 or float(data.min()) == float(data.max()):
        raise InputError(f"{path}: every voxel has the same value; there is no image in it")
    zooms = tuple(float(size) for size in canonical.header.get_zooms()[:3])
    return Volume(subject, data, zooms, np.asarray(canonical.affine), _provenance(path))  # type: ignore[arg-type]


def _check_gzip(path: Path) -> None:
    """Read a compressed file to its end, where its checksum stands; nibabel stops at the last voxel."""
    if path.name.endswith(".gz"):
        with gzip.open(path) as file:
            while file.read(2**22):
                pass


def _provenance(path: Path) -> dict[str, Any]:
    """File name, checksum, and what `larmor fetch` wrote beside the file (source, licence)."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    record: dict[str, Any] = {"file": path.name, "sha256": digest, "licence": "not stated"}
    beside = path.with_name(f"{subject_of(path)}.json")
    if beside.is_file():
        try:
            stated = json.loads(beside.read_text())
        except json.JSONDecodeError as error:
            raise InputError(f"{beside}: is not JSON ({error}); correct or remove it") from error
        known = ("package", "version", "member", "licence", "source", "synthetic")
        record.update({key: stated[key] for key in known if key in stated})
    return record


def coronal_slices(volume: Volume, matrix: tuple[int, int], min_foreground: float) -> list[CoronalSlice]:
    """The coronal slices with enough foreground, on square pixels, centred in `matrix` (height, width).

    A slice is kept if at least the fraction `min_foreground` of its pixels lies above the volume's
    foreground threshold (Otsu), since the air of a real scan is noise, never exactly zero. Pixels become
    square at the finer of the two in-plane sizes; larger slices are cropped, smaller ones padded with 0.
    """
    return list(_foreground_slices(volume, matrix, min_foreground))


def has_foreground(volume: Volume, matrix: tuple[int, int], min_foreground: float) -> bool:
    """Whether `coronal_slices` would keep any slice; stops at the first."""
    return any(True for _ in _foreground_slices(volume, matrix, min_foreground))


def _foreground_slices(volume: Volume, matrix: tuple[int, int], min_foreground: float) -> Iterator[CoronalSlice]:
    from skimage.filters import threshold_otsu

    x_size, y_size, z_size = volume.voxel_size
    pixel = min(x_size, z_size)
    zoom = (z_size / pixel, x_size / pixel)
    data = volume.data - volume.data.min()
    threshold = float(threshold_otsu(data[::2, ::2, ::2]))
    for index in range(data.shape[1]):
        image = data[::-1, index, ::-1].T  # rows run superior → inferior, columns right → left
        if zoom != (1.0, 1.0):
            image = ndimage.zoom(image, zoom, order=1)
        image = centre_fit(image, matrix)
        if float((image > threshold).mean()) >= min_foreground:
            yield CoronalSlice(np.ascontiguousarray(image, np.float32), index, index * y_size)


def centre_fit(image: np.ndarray, matrix: tuple[int, int]) -> np.ndarray:
    """Crop or pad the last two axes of `image` about their centre to `matrix`.

    The centre of an axis of length n is index n // 2, the same pixel that the centred FFT puts in the middle.
    """
    for axis, size in zip((-2, -1), matrix, strict=True):
        before = size // 2 - image.shape[axis] // 2
        after = size - image.shape[axis] - before
        image = np.take(image, range(max(0, -before), image.shape[axis] - max(0, -after)), axis=axis)
        pad = [(0, 0)] * image.ndim
        pad[axis] = (max(0, before), max(0, after))
        image = np.pad(image, pad)
    return image


def slice_affine(volume: Volume, matrix: tuple[int, int]) -> np.ndarray:
    """The affine (4, 4) of the stack of all coronal slices cut to `matrix`, as a volume (x, y, z) in RAS+ order.

    Voxel (i, j, k) of that stack is column W − 1 − i and row H − 1 − k of slice j.
    """
    x_size, _, z_size = volume.voxel_size
    pixel = min(x_size, z_size)
    to_source = np.eye(4)
    for axis, size, wanted in ((0, x_size, matrix[1]), (2, z_size, matrix[0])):
        count = volume.data.shape[axis]
        zoomed = round(count * size / pixel)
        # interpolation keeps the first and the last voxel in place
        step = (count - 1) / max(zoomed - 1, 1)
        # both centres are pixel n // 2, counted from the other end since the slices are flipped
        before = wanted // 2 - zoomed // 2
        first = (zoomed - 1) - (wanted - 1 - before)
        to_source[axis, axis] = step
        to_source[axis, 3] = first * step
    return volume.affine @ to_source
