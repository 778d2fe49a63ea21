"""Volumes in any orientation give the same upright coronal slices, and every place keeps its position."""

from __future__ import annotations

import struct
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nibabel.orientations import axcodes2ornt, ornt_transform
from skimage.filters import threshold_otsu

from larmor.recon.models.results import write_nifti
from larmor.storage.formats.nifti import read_volume
from larmor.storage.formats.source import SourceOptions
from larmor.storage.formats.volumes import (
    VolumeSource,
    canonical_volume,
    centre_fit,
    foreground_threshold,
    image_to_kspace,
    slice_affine,
)
from larmor.storage.objects.errors import InputError
from tests.helpers import centre_of_mass, cut_slices, ellipsoid, property_test, write_volume

SHAPE = (12, 9, 15)  # right, anterior, superior


def in_orientation(data: np.ndarray, affine: np.ndarray, codes: str) -> nibabel.Nifti1Image:
    """A RAS+ volume stored with other axes; every voxel keeps its place in the world."""
    image = nibabel.Nifti1Image(data, affine)
    turned = image.as_reoriented(ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes)))
    assert "".join(nibabel.aff2axcodes(turned.affine)) == codes
    return turned


def oblique_affine(voxel_size: tuple[float, float, float], degrees: float = 12) -> np.ndarray:
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(voxel_size)
    affine[:3, 3] = (-31, 17, 5)
    return affine


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "LAS", "ASL", "SRP", "IPL"])
def test_every_orientation_gives_the_same_upright_slices(tmp_path: Path, codes: str) -> None:
    data = np.full(SHAPE, 10, np.float32)
    data[-1, -1, -1] = 100  # right, anterior, superior
    data[0, 0, 0] = 50  # left, posterior, inferior
    data[-1, 0, 0] = 75  # right, posterior, inferior
    path = tmp_path / "head.nii.gz"
    nibabel.save(in_orientation(data, np.diag([2.0, 3, 2, 1]), codes), path)
    volume = read_volume(path)
    assert volume.voxel_size == (2, 3, 2)
    assert np.array_equal(volume.data, data)
    slices = cut_slices(volume, (SHAPE[2], SHAPE[0]), min_foreground=0)
    assert [item.index for item in slices] == list(range(SHAPE[1]))
    assert [item.position for item in slices] == [3 * index for index in range(SHAPE[1])]
    posterior, anterior = slices[0].image, slices[-1].image
    assert np.argwhere(anterior > 0).tolist() == [[0, 0]], "superior at the top, the subject's right at the left"
    assert anterior[0, 0] == 90
    assert posterior[-1, -1] == 40
    assert posterior[-1, 0] == 65
    assert np.count_nonzero(posterior) == 2


@pytest.mark.parametrize("voxel_size", [(1, 2, 3), (3, 1, 1), (0.8, 1.5, 2.4), (1, 5, 1)])
def test_voxels_become_square_pixels(tmp_path: Path, voxel_size: tuple[float, float, float]) -> None:
    """A ball stays round, at the finer of the two sizes."""
    radius, shape = 20, [round(54 / size) for size in voxel_size]
    grid = np.meshgrid(
        *((np.arange(n) - (n - 1) / 2) * size for n, size in zip(shape, voxel_size, strict=True)), indexing="ij"
    )
    ball = (sum(axis**2 for axis in grid) < radius**2).astype(np.float32)
    volume = read_volume(write_volume(tmp_path / "ball.nii", ball, np.diag([*voxel_size, 1.0])))
    pixel = min(voxel_size[0], voxel_size[2])
    image = max(cut_slices(volume, (96, 96), 0), key=lambda item: item.image.sum()).image
    coarse = max(voxel_size[0], voxel_size[2])
    for axis in (0, 1):
        extent = np.count_nonzero(image.max(axis=axis) > 0.5) * pixel
        assert abs(extent - 2 * radius) <= 2 * coarse
    assert abs(image.sum() * pixel**2 / (np.pi * radius**2) - 1) < 0.12


@pytest.mark.parametrize("voxel_size", [(0.45, 3, 5), (0.9, 1, 6), (6, 1, 0.7), (1, 1, 1.2), (1, 1, 1)])
@pytest.mark.parametrize("count", [24, 25])
def test_pixels_have_the_size_that_is_stated(voxel_size: tuple[float, float, float], count: int) -> None:
    """Of a ramp in mm, thick slices or not, each pixel is one pixel size more than the one before."""
    shape = [count] * 3
    axes = np.meshgrid(*(np.arange(n) * size for n, size in zip(shape, voxel_size, strict=True)), indexing="ij")
    for axis, along in ((0, 1), (2, 0)):
        volume = canonical_volume(axes[axis].astype(np.float32), np.diag([*voxel_size, 1.0]))
        source = VolumeSource(volume, SourceOptions((48, 48), 0.0))
        assert source.voxel_size is not None
        pixel = source.voxel_size[along]
        steps = np.diff(source.cut(5).image, axis=along)[20:28, 20:28]
        np.testing.assert_allclose(steps, -pixel, rtol=1e-4)
        assert np.linalg.norm(source.affine((48, 48))[:3, axis]) == pytest.approx(pixel, rel=1e-6)


@property_test
@given(st.tuples(st.integers(1, 20), st.integers(1, 20)), st.tuples(st.integers(1, 20), st.integers(1, 20)))
def test_fitting_keeps_the_centre_of_the_fft(size: tuple[int, int], matrix: tuple[int, int]) -> None:
    image = 1 + np.arange(size[0] * size[1], dtype=np.float32).reshape(size)
    fitted = centre_fit(image, matrix)
    assert fitted.shape == matrix
    for row in range(matrix[0]):
        for column in range(matrix[1]):
            y, x = row - matrix[0] // 2 + size[0] // 2, column - matrix[1] // 2 + size[1] // 2
            inside = 0 <= y < size[0] and 0 <= x < size[1]
            assert fitted[row, column] == (image[y, x] if inside else 0)
    point = np.zeros(size, np.float32)
    point[size[0] // 2, size[1] // 2] = 1
    expected = np.full(matrix, (matrix[0] * matrix[1]) ** -0.5)
    assert np.allclose(image_to_kspace(centre_fit(point, matrix)), expected, atol=1e-6), "no phase: the very centre"


def test_fitting_leaves_other_axes_alone() -> None:
    stack = np.arange(3 * 5 * 7).reshape(3, 5, 7)
    assert np.array_equal(centre_fit(stack, (4, 9)), np.stack([centre_fit(image, (4, 9)) for image in stack]))


@pytest.mark.parametrize("codes", ["RAS", "PIR", "LPS"])
@pytest.mark.parametrize("voxel_size", [(1, 1, 1), (1, 1.5, 1.7), (2.1, 1, 0.9)])
@pytest.mark.parametrize("matrix", [(24, 20), (33, 31), (64, 80), (24, 81)])
@pytest.mark.parametrize("shape", [(27, 20, 31), (28, 20, 30)])
def test_a_marked_place_keeps_its_position(
    tmp_path: Path,
    shape: tuple[int, int, int],
    matrix: tuple[int, int],
    voxel_size: tuple[float, float, float],
    codes: str,
) -> None:
    """Through orientation, interpolation, crop or padding, and the layout of `write_nifti`."""
    marked = np.array([shape[0] // 2 + 1, 7, shape[2] // 2 - 2])
    grid = np.meshgrid(*(np.arange(size) for size in shape), indexing="ij")
    distance = sum((axis - place) ** 2 for axis, place in zip(grid, marked, strict=True))
    blob = np.exp(-0.5 * distance / 0.8**2).astype(np.float32) * (distance < 10)
    affine = oblique_affine(voxel_size)
    nibabel.save(in_orientation(blob, affine, codes), tmp_path / "blob.nii.gz")
    volume = read_volume(tmp_path / "blob.nii.gz")
    images = np.stack([item.image for item in cut_slices(volume, matrix, min_foreground=0)])
    write_nifti(images, slice_affine(volume, matrix), tmp_path / "back.nii.gz")
    back: Any = nibabel.load(tmp_path / "back.nii.gz")
    assert back.shape == (matrix[1], shape[1], matrix[0])
    assert "".join(nibabel.aff2axcodes(back.affine)) == "RAS"
    found = centre_of_mass(np.asarray(back.dataobj), back.affine)
    assert np.linalg.norm(found - (affine[:3, :3] @ marked + affine[:3, 3])) < 0.03


def test_slices_of_air_are_left_out(tmp_path: Path) -> None:
    data = np.random.default_rng(0).uniform(0, 8, (20, 12, 20)).astype(np.float32)  # air is noise
    data[4:16, 3:9, 4:16] += 100
    volume = read_volume(write_volume(tmp_path / "head.nii", data))
    kept = cut_slices(volume, (20, 20), min_foreground=0.3)
    assert [item.index for item in kept] == [3, 4, 5, 6, 7, 8]
    assert cut_slices(volume, (20, 20), min_foreground=0.4) == []


def with_header(place: int, layout: str, *values: float) -> Callable[[Path], None]:
    """A NIfTI file whose header holds other values at one place."""

    def make(path: Path) -> None:
        write_volume(path, ellipsoid(SHAPE))
        content = bytearray(path.read_bytes())
        struct.pack_into(f"<{layout}", content, place, *values)
        path.write_bytes(content)

    return make


def cut_to(part: float) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        write_volume(path, ellipsoid(SHAPE))
        content = path.read_bytes()
        path.write_bytes(content[: int(part * len(content))])

    return make


def one_voxel(value: float) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        data = ellipsoid(SHAPE)
        data[3, 3, 3] = value
        write_volume(path, data)

    return make


def of(data: np.ndarray) -> Callable[[Path], None]:
    return lambda path: write_volume(path, data)  # type: ignore[return-value]


COLOUR = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
BAD_VOLUMES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing": ("head.nii.gz", lambda path: None, "no such file"),
    "a folder": ("head.nii.gz", lambda path: path.mkdir(), "no such file"),
    "another name": ("head.mgz", lambda path: path.write_bytes(b"1"), "not a NIfTI file name"),
    "text": ("head.nii.gz", lambda path: path.write_text("hello " * 100), "does not match its suffix"),
    "plain text": ("head.nii", lambda path: path.write_text("hello " * 100), "does not match its suffix"),
    "empty": ("head.nii.gz", lambda path: path.write_bytes(b""), "does not match its suffix"),
    "cut .nii.gz": ("head.nii.gz", cut_to(0.6), "cannot be read to its end.*truncated"),
    "cut .nii": ("head.nii", cut_to(0.9), "cannot be read to its end.*truncated"),
    "cut in the header": ("head.nii", cut_to(0.03), "does not match its suffix"),
    "NaN": ("head.nii.gz", one_voxel(np.nan), "1 of 1620 voxels are not finite"),
    "infinite": ("head.nii", one_voxel(-np.inf), "1 of 1620 voxels are not finite"),
    "constant": ("head.nii.gz", of(np.full(SHAPE, 7, np.float32)), "every voxel has the same value"),
    "no voxels": ("head.nii", with_header(42, "h", 0), "its header is invalid"),
    "4-D": ("head.nii.gz", of(np.ones((5, 5, 5, 2), np.float32)), r"has shape \(5, 5, 5, 2\); one 3-D volume"),
    "2-D": ("head.nii.gz", of(np.ones((5, 5), np.float32)), r"has shape \(5, 5\); one 3-D volume"),
    "complex": ("head.nii.gz", of(ellipsoid(SHAPE) * np.complex64(1j)), "voxels of type complex64; one real number"),
    "colour": ("head.nii.gz", of(COLOUR), "one real number each is expected"),
    "unknown type": ("head.nii", with_header(70, "h", 999), "its header is invalid"),
    "negative size": ("head.nii", with_header(42, "h", -9), "its header is invalid"),
    "flat orientation": (
        "head.nii",
        with_header(252, "hh6f4f4f4f", 0, 1, *[0] * 6, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0),
        "its header is invalid",
    ),
    "orientation NaN": ("head.nii", with_header(280, "12f", *[np.nan] * 12), "its header is invalid"),
}


@pytest.mark.parametrize("case", BAD_VOLUMES)
def test_bad_volumes_are_refused_with_the_reason(tmp_path: Path, case: str) -> None:
    name, make, reason = BAD_VOLUMES[case]
    make(tmp_path / name)
    with pytest.raises(InputError, match=f"(?s){tmp_path / name}: .*{reason}"):
        read_volume(tmp_path / name)


def test_a_fourth_axis_of_one_is_no_obstacle(tmp_path: Path) -> None:
    data = ellipsoid(SHAPE)
    assert np.array_equal(read_volume(write_volume(tmp_path / "head.nii", data[..., None])).data, data)


@pytest.mark.parametrize("codes", ["RAS", "PIR", "ASL"])
@pytest.mark.parametrize("kind", ["ellipsoid", "noise", "integers", "one bright voxel"])
def test_the_threshold_is_otsus_of_every_second_voxel(codes: str, kind: str) -> None:
    rng = np.random.default_rng(3)
    shape = (26, 31, 22)
    data = {
        "ellipsoid": ellipsoid(shape) - 7,
        "noise": rng.normal(1e4, 300, shape),
        "integers": rng.integers(0, 4000, shape) ** 2,
        "one bright voxel": np.eye(1, int(np.prod(shape)), 1).reshape(shape),
    }[kind]
    image = in_orientation(data.astype(np.float32), np.eye(4), codes)
    volume = canonical_volume(np.asarray(image.dataobj), image.affine)
    wanted = threshold_otsu((volume.data - volume.data.min())[::2, ::2, ::2])
    assert foreground_threshold(volume) == wanted


@pytest.mark.parametrize("voxel_size", [(1.0, 1.0, 1.0), (1.5, 2.0, 1.0)])
@pytest.mark.parametrize("least", [0.0, 0.3])
def test_a_source_gives_the_kspace_of_the_slices(voxel_size: tuple[float, float, float], least: float) -> None:
    volume = canonical_volume(ellipsoid((20, 11, 24)) + 9, np.diag([*voxel_size, 1.0]))
    wanted = cut_slices(volume, (26, 18), least)
    source = VolumeSource(volume, SourceOptions((26, 18), least), {"modality": "MR"})
    assert source.num_slices == 11
    assert list(source.kept_slices()) == [item.index for item in wanted]
    assert len(wanted) == (11 if least == 0 else len(wanted)) > 3
    assert source.plane == "coronal"
    assert source.slice_shape == (1, 26, 18)
    assert source.voxel_size == (1.0, 1.0, voxel_size[1]), "square pixels of the finer size"
    assert source.about == {"voxel_size_mm": list(voxel_size), "modality": "MR"}
    for item in wanted:
        kspace = source.kspace(item.index)
        assert (kspace.shape, kspace.dtype) == (source.slice_shape, np.complex64)
        back = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace[0]), norm="ortho"))
        assert np.abs(back - item.image).max() <= 1e-5 * item.image.max()
        assert source.position(item.index) == item.position
    source.close()


def test_a_closed_source_keeps_no_volume() -> None:
    volume = canonical_volume(ellipsoid(SHAPE), np.eye(4))
    reference = weakref.ref(volume)
    source = VolumeSource(volume, SourceOptions())
    source.kept_slices()
    source.close()
    del volume
    assert reference() is None
