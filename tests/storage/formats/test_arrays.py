"""NumPy arrays: complex ones are k-space, real ones images; the rest is refused."""

from __future__ import annotations

import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from larmor.storage.formats import arrays
from larmor.storage.formats.centred_fft import to_image
from larmor.storage.formats.source import Source, SourceOptions, SourceRef
from larmor.storage.objects.errors import InputError


def random_kspace(*shape: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)


def saved(path: Path, array: Any) -> Path:
    np.save(path, array)
    return path


def opened(path: Path, part: str = "") -> Source:
    return arrays.open_source(SourceRef("arrays", "a", "s", (str(path),), part), [path], SourceOptions())


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(4, 3, 8, 6), (4, 8, 6), (8, 6)])
def test_complex_arrays_are_kspace_as_it_is(tmp_path: Path, dtype: Any, order: Any, shape: tuple[int, ...]) -> None:
    kspace = random_kspace(*shape)
    source = opened(saved(tmp_path / "a.npy", np.asarray(kspace, dtype, order)))
    num_coils = shape[1] if len(shape) == 4 else 1
    expected = kspace.reshape(-1, num_coils, 8, 6)
    assert (source.num_slices, source.slice_shape) == (len(expected), (num_coils, 8, 6))
    assert (source.voxel_size, source.plane, source.about) == (None, "acquired", {"content": "k-space"})
    for index in source.kept_slices():
        np.testing.assert_array_equal(source.kspace(index), expected[index])
        assert source.kspace(index).dtype == np.complex64


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.uint16, np.int64])
def test_real_arrays_are_images(tmp_path: Path, dtype: Any) -> None:
    stored = np.random.default_rng(0).integers(0, 2000, (4, 9, 12)).astype(dtype)
    stored[2] = 7
    source = opened(saved(tmp_path / "a.npy", stored))
    assert (source.num_slices, source.slice_shape) == (4, (1, 9, 12))
    assert source.kept_slices() == [0, 1, 3], "a constant image shows nothing"
    for index in range(4):
        image = stored[index].astype(np.float64)
        shifted = np.fft.fft2(np.fft.ifftshift(image), norm="ortho")
        expected = np.fft.fftshift(shifted)
        assert np.linalg.norm(source.kspace(index)[0] - expected) <= 1e-6 * np.linalg.norm(expected)
        assert np.linalg.norm(to_image(source.kspace(index))[0] - image) <= 1e-6 * np.linalg.norm(image)


def test_empty_kspace_is_not_kept(tmp_path: Path) -> None:
    kspace = random_kspace(4, 8, 8)
    kspace[1] = 0
    assert opened(saved(tmp_path / "a.npy", kspace)).kept_slices() == [0, 2, 3]


def test_kspace_with_gaps_is_refused(tmp_path: Path) -> None:
    kspace = random_kspace(2, 8, 8)
    kspace[1, 1::2] = 0
    with pytest.raises(InputError, match="slice 1 is undersampled: 3 of 7 k-space rows"):
        opened(saved(tmp_path / "a.npy", kspace)).kept_slices()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_each_array_of_an_archive_is_a_part(tmp_path: Path, save: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "unpacked").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "unpacked"))
    first, second = random_kspace(2, 3, 8, 6), np.random.default_rng(0).normal(size=(3, 8, 6))
    save(tmp_path / "a.npz", scan=first, images=second)
    assert arrays.list_parts(tmp_path / "a.npz") == ["images", "scan"]
    np.testing.assert_array_equal(opened(tmp_path / "a.npz", "scan").kspace(1), first[1])
    source = opened(tmp_path / "a.npz", "images")
    assert source.offset == pytest.approx(second.min()), "an image has no values below 0"
    np.testing.assert_allclose(to_image(source.kspace(2))[0].real + source.offset, second[2], atol=1e-5)
    assert list((tmp_path / "unpacked").iterdir()) == []
    for part in ("", "other"):
        with pytest.raises(InputError, match=f"no array '{part}'; choose one of images, scan"):
            opened(tmp_path / "a.npz", part)


def test_a_single_array_needs_no_name(tmp_path: Path) -> None:
    kspace = random_kspace(2, 8, 6)
    np.savez(tmp_path / "a.npz", kspace)
    assert arrays.list_parts(tmp_path / "a.npz") == [""]
    assert arrays.list_parts(saved(tmp_path / "a.npy", kspace)) == [""]
    np.testing.assert_array_equal(opened(tmp_path / "a.npz").kspace(1)[0], kspace[1])


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_one_slice_is_read_at_a_time(tmp_path: Path, name: str) -> None:
    kspace = random_kspace(150, 4, 64, 64)
    path = tmp_path / name
    np.save(path, kspace) if path.suffix == ".npy" else np.savez(path, kspace)
    size = kspace.nbytes
    del kspace
    tracemalloc.start()
    assert len(opened(path).kept_slices()) == 150
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size / 4  # unpacking copies in blocks of 1 MiB


def test_the_slice_that_is_not_finite_is_named(tmp_path: Path) -> None:
    kspace = random_kspace(5, 8, 8).astype(np.complex128)
    kspace[3, 1, 1] = 1e300
    image = np.ones((5, 8, 8))
    image[3, 0, 0] = np.nan
    for name, array in (("kspace.npy", kspace), ("image.npy", image)):
        with pytest.raises(InputError, match=rf"{name}: slice 3 has"):
            opened(saved(tmp_path / name, array)).kept_slices()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([["a", "b"]]), "holds <U1"),
        (np.ones((2, 8, 8), bool), "holds bool"),
        (np.zeros((2, 8), "datetime64[s]"), "holds datetime64"),
        (np.zeros((2, 8), [("a", "f4")]), r"holds \[\('a', '<f4'\)\]"),
        (np.array([[{"a": 1}]], dtype=object), "not a complete array of numbers"),
        (np.ones((2, 3, 8, 8)), r"shape \(2, 3, 8, 8\) of float64"),
        (random_kspace(1, 2, 3, 8, 8), r"shape \(1, 2, 3, 8, 8\)"),
        (random_kspace(8), r"shape \(8,\)"),
        (np.ones(()), r"shape \(\)"),
        (random_kspace(0, 8, 8), r"shape \(0, 8, 8\)"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.savez(tmp_path / "a.npz", array)
    for path in (saved(tmp_path / "a.npy", array), tmp_path / "a.npz"):
        with pytest.raises(InputError, match=message) as caught:
            opened(path)
        assert str(path) in str(caught.value)


def test_files_that_are_not_whole(tmp_path: Path) -> None:
    npy = saved(tmp_path / "whole.npy", random_kspace(2, 8, 8)).read_bytes()
    np.savez_compressed(tmp_path / "whole.npz", random_kspace(2, 8, 8))
    npz = (tmp_path / "whole.npz").read_bytes()
    damaged = npz[:200] + bytes(byte ^ 255 for byte in npz[200:300]) + npz[300:]
    for name, content in (
        ("cut.npy", npy[:-9]),
        ("head.npy", npy[:20]),
        ("text.npy", b"not an array"),
        ("empty.npy", b""),
        ("cut.npz", npz[:-30]),
        ("text.npz", b"no archive"),
        ("damaged.npz", damaged),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            opened(tmp_path / name)
    np.savez(tmp_path / "none.npz")
    for name in ("none.npz", "missing.npz"):
        with pytest.raises(InputError, match=name):
            arrays.list_parts(tmp_path / name)
    with pytest.raises(InputError, match="no such file"):
        opened(tmp_path / "missing.npy")
