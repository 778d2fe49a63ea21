"""Volumes in canonical orientation, the upright coronal slices cut from them, and their k-space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy import ndimage

from larmor.storage.formats.centred_fft import to_kspace
from larmor.storage.formats.grid import Grid
from larmor.storage.formats.source import Facts, SourceOptions

_LEAST_SINGULAR = 0.05  # of an interpolation, as a fraction of the largest


@dataclass(frozen=True)
class Volume:
    """One magnitude volume in canonical orientation.

    `data` is float32 (left→right, posterior→anterior, inferior→superior), in the file's own intensity
    unit, finite and not constant; `voxel_size` is in mm, in the same order; `affine` maps its voxel
    indices to RAS+ mm; `notes` are sentences about its file, see `Source`. `native_axis` is the axis along which the
    file's slices follow each other; `grid` is the file's own array, if there is one file of it; `order` says which
    canonical axis each of `data` is.
    """

    data: np.ndarray
    voxel_size: tuple[float, float, float]
    affine: np.ndarray
    notes: tuple[str, ...] = ()
    native_axis: int = 1
    grid: Grid | None = None
    order: tuple[int, int, int] = (0, 1, 2)

    def with_slices_along(self, axis: int) -> Volume:
        """The same volume with `axis` in the second place, where slices are cut; the other two stay in order."""
        order = [*(other for other in range(3) if other != axis)]
        order.insert(1, axis)
        sizes = self.voxel_size
        return replace(
            self,
            data=self.data.transpose(order),
            voxel_size=(sizes[order[0]], sizes[order[1]], sizes[order[2]]),
            affine=self.affine[:, [*order, 3]],
            native_axis=order.index(self.native_axis),
            order=(self.order[order[0]], self.order[order[1]], self.order[order[2]]),
        )

    def on_grid(self, data: np.ndarray) -> np.ndarray:
        """An array like `data` as a view in the order and shape of the file."""
        assert self.grid is not None
        return self.grid.from_canonical(data.transpose(np.argsort(self.order)))


@dataclass(frozen=True)
class CoronalSlice:
    """`image` (height, width) float32, superior at the top, the subject's right at the left.

    `position` is the distance of the slice from the volume's posterior face in mm, `index` its voxel index.
    """

    image: np.ndarray
    index: int
    position: float


def canonical_volume(
    data: np.ndarray, affine: np.ndarray, notes: tuple[str, ...] = (), grid: Grid | None = None
) -> Volume:
    """Turn an array (i, j, k) with its `affine` (4, 4) to RAS+ mm to the canonical orientation, as a view.

    `grid` is the file's, if it says more than these.

    Raises `nibabel.orientations.OrientationError` or `numpy.linalg.LinAlgError` for an affine that is none.
    """
    from nibabel.affines import voxel_sizes
    from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

    orientation = io_orientation(affine)
    turned = apply_orientation(data, orientation)
    canonical = affine @ inv_ornt_aff(orientation, data.shape)
    # affines are stored in float32: without rounding, pixels that are square would look almost square
    x_size, y_size, z_size = (float(f"{size:.6g}") for size in voxel_sizes(canonical))
    own = grid or Grid(data.shape, affine)
    return Volume(turned, (x_size, y_size, z_size), canonical, notes, int(orientation[2, 0]), own)


@dataclass(frozen=True)
class _Pixels:
    """Where `count` pixels lie along an axis of voxels: the first at `first`, one each `step`, in voxels."""

    count: int
    first: float
    step: float

    @staticmethod
    def along(num_voxels: int, ratio: float) -> _Pixels:
        """As many pixels, `ratio` of which are one voxel long, as the voxels have room for, about the same centre."""
        count = round(num_voxels * ratio)
        return _Pixels(count, (num_voxels - 1) / 2 - (count - 1) / 2 / ratio, 1 / ratio)

    def back(self, num_voxels: int) -> np.ndarray:
        """(num_voxels, count): the voxels whose linear interpolation comes nearest to given pixels.

        What interpolation nearly cancels is left out: it would come back as noise.
        """
        interpolation = ndimage.affine_transform(
            np.eye(num_voxels), (self.step, 1), (self.first, 0), (self.count, num_voxels), order=1, mode="nearest"
        )
        return np.linalg.pinv(interpolation, rcond=_LEAST_SINGULAR)


def _pixels_of(volume: Volume) -> tuple[_Pixels, _Pixels]:
    """The square pixels of a slice along its height and its width: at the finer of the two sizes of its voxels."""
    x_size, _, z_size = volume.voxel_size
    width, _, height = volume.data.shape
    pixel = min(x_size, z_size)
    return _Pixels.along(height, z_size / pixel), _Pixels.along(width, x_size / pixel)


def whole_matrix(volume: Volume) -> tuple[int, int]:
    """(height, width) of slices that show the whole field of view."""
    rows, columns = _pixels_of(volume)
    return rows.count, columns.count


def coronal_slice(volume: Volume, index: int, matrix: tuple[int, int], floor: float) -> CoronalSlice:
    """Slice `index` above the intensity `floor`, on square pixels, centred in `matrix` (height, width).

    Pixels become square at the finer of the two in-plane sizes; larger slices are cropped, smaller ones
    padded with 0.
    """
    x_size, y_size, z_size = volume.voxel_size
    image = volume.data[::-1, index, ::-1].T - np.float32(floor)  # rows run superior → inferior, columns right → left
    if x_size != z_size:
        rows, columns = _pixels_of(volume)
        # beyond the outermost voxels' centres there is half a voxel of theirs
        image = ndimage.affine_transform(
            image,
            (rows.step, columns.step),
            (rows.first, columns.first),
            (rows.count, columns.count),
            order=1,
            mode="nearest",
        )
    image = centre_fit(image, matrix)
    return CoronalSlice(np.ascontiguousarray(image, np.float32), index, index * y_size)


def foreground_threshold(volume: Volume) -> float:
    """Otsu's threshold of every second voxel along each axis, above the volume's least intensity.

    The histogram is summed plane by plane, so that no copy of the volume is made.
    """
    from skimage.filters import threshold_otsu

    floor = volume.data.min()
    sample = volume.data[::2, ::2, ::2]
    low, high = sample.min() - floor, sample.max() - floor
    if low == high:
        return float(low)
    planes = np.moveaxis(sample, int(np.argmax(np.abs(sample.strides))), 0)  # each lies together in a file
    counts, edges = np.zeros(256, np.int64), np.zeros(257, np.float32)
    for plane in planes:
        part, edges = np.histogram(plane - floor, bins=256, range=(low, high))
        counts += part
    return float(threshold_otsu(hist=(counts, (edges[:-1] + edges[1:]) / 2)))


class VolumeSource:
    """The coronal or native slices of a volume as a `Source`; one slice at a time is in memory beside the volume.

    `voxel_size` is the size of the stored pixels (square) and the slice distance; `about` holds the
    volume's own `voxel_size_mm` (left–right, posterior–anterior, inferior–superior) and what is given.
    """

    def __init__(self, volume: Volume, options: SourceOptions, about: Facts | None = None) -> None:
        self.about: Facts = {"voxel_size_mm": list(volume.voxel_size), **(about or {})}
        self.plane: str = options.plane
        if (axis := _cut_along(volume, options)) != 1:
            volume = volume.with_slices_along(axis)
        self._volume: Volume | None = volume
        self._options = options
        self._matrix = whole_matrix(volume) if options.whole else options.matrix
        self.num_slices: int = volume.data.shape[1]
        self.slice_shape = (1, *self._matrix)
        pixel = min(volume.voxel_size[0], volume.voxel_size[2])
        self.voxel_size: tuple[float, float, float] | None = (pixel, pixel, volume.voxel_size[1])
        self.notes: Sequence[str] = volume.notes

    def kept_slices(self) -> Sequence[int]:
        """The slices with at least the share `min_foreground` of their pixels above the foreground threshold.

        The threshold is Otsu's, since the air of a real scan is noise, never exactly zero.
        """
        return self._kept

    def position(self, index: int) -> float:
        """Distance of a slice from the volume's first face (of coronal slices the posterior one) in mm."""
        assert self.voxel_size is not None
        return index * self.voxel_size[2]

    def kspace(self, index: int) -> np.ndarray:
        """(1, height, width) complex64, centred, orthonormal FFT of the slice."""
        return image_to_kspace(self.cut(index).image)[None]

    def cut(self, index: int) -> CoronalSlice:
        """The image of one slice."""
        return coronal_slice(self._open_volume, index, self._matrix, self.offset)

    def affine(self, matrix: tuple[int, int]) -> np.ndarray:
        """That of all slices cut to `matrix`, see `slice_affine`."""
        return slice_affine(self._open_volume, matrix)

    @property
    def grid(self) -> Grid | None:
        """The file's own array; None for a part of one."""
        return self._open_volume.grid

    @property
    def letters(self) -> tuple[str, str, str, str]:
        """The directions at the top, the bottom, the left and the right of a slice."""
        columns, _, rows = self._open_volume.order
        return "RAS"[rows], "LPI"[rows], "RAS"[columns], "LPI"[columns]

    def to_voxels(self, images: np.ndarray) -> np.ndarray:
        """Slices (n, height, width) of the whole field of view → (n, rows, columns) of the volume's own voxels."""
        return images if self._back is None else self._back[0] @ images @ self._back[1].T

    @cached_property
    def _back(self) -> tuple[np.ndarray, np.ndarray] | None:
        width, _, height = self._open_volume.data.shape
        rows, columns = _pixels_of(self._open_volume)
        if (rows.count, columns.count) == (height, width):
            return None
        return rows.back(height).astype(np.float32), columns.back(width).astype(np.float32)

    def on_grid(self, slices: np.ndarray) -> np.ndarray:
        """All slices on the volume's own voxels (see `to_voxels`) as a view in the order and shape of the file."""
        return self._open_volume.on_grid(slices[:, ::-1, ::-1].transpose(2, 0, 1))

    def close(self) -> None:
        """Release the volume."""
        self._volume = None

    @property
    def _open_volume(self) -> Volume:
        assert self._volume is not None, "the source is closed"
        return self._volume

    @cached_property
    def offset(self) -> float:
        """The volume's least intensity, which is taken off."""
        return float(self._open_volume.data.min())

    @cached_property
    def _kept(self) -> list[int]:
        return [index for index in range(self.num_slices) if self.shows(index)]

    def shows(self, index: int) -> bool:
        """Whether a slice has enough foreground (see `kept_slices`)."""
        return float((self.cut(index).image > self._threshold).mean()) >= self._options.min_foreground

    @cached_property
    def _threshold(self) -> float:
        return foreground_threshold(self._open_volume)


def _cut_along(volume: Volume, options: SourceOptions) -> int:
    """The axis of the slices: a single image is cut in its own plane, whatever is wanted."""
    if options.single and 1 in volume.data.shape:
        return volume.native_axis if volume.data.shape[volume.native_axis] == 1 else volume.data.shape.index(1)
    return volume.native_axis if options.plane == "native" else 1


def image_to_kspace(image: np.ndarray) -> np.ndarray:
    """Centred orthonormal FFT of (…, height, width) → complex64; zero frequency at [n // 2]."""
    return to_kspace(image).astype(np.complex64, copy=False)


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
        pixels = _Pixels.along(volume.data.shape[axis], size / pixel)
        # both centres are pixel n // 2, counted from the other end since the slices are flipped
        before = wanted // 2 - pixels.count // 2
        first = (pixels.count - 1) - (wanted - 1 - before)
        to_source[axis, axis] = pixels.step
        to_source[axis, 3] = pixels.first + first * pixels.step
    return volume.affine @ to_source
