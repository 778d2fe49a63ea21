"""BART pairs give the images that BART's own unitary transform gives."""

from __future__ import annotations

import shutil
import subprocess
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from larmor.storage.formats import bart, partitions
from larmor.storage.formats.centred_fft import to_image
from larmor.storage.formats.source import Source, SourceOptions, SourceRef
from larmor.storage.objects.errors import InputError

needs_bart = pytest.mark.skipif(shutil.which("bart") is None, reason="the BART toolbox is not installed")


def write(stem: Path, array: np.ndarray) -> Path:
    """`array` in BART's order of dimensions."""
    sizes = [*array.shape, *[1] * (16 - array.ndim)]
    stem.with_suffix(".hdr").write_text(
        f"# Dimensions\n{' '.join(map(str, sizes))} \n# Command\nfft in Hofmann \n# Files\n >/home/hofmann/x\n"
    )
    path = stem.with_suffix(".cfl")
    array.astype(np.complex64).T.tofile(path)
    return path


def random_kspace(*shape: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)


def opened(*files: Path) -> Source:
    return bart.open_source(SourceRef("bart", "a", "s", ()), files, SourceOptions())


def images(source: Source) -> np.ndarray:
    return np.stack([to_image(source.kspace(index)) for index in range(source.num_slices)])


@needs_bart
@pytest.mark.parametrize("size", ["32", "33"])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_images_are_those_of_bart(tmp_path: Path, size: str, dimensions: int) -> None:
    def run(*arguments: str) -> None:
        subprocess.run(["bart", *arguments], cwd=tmp_path, check=True, capture_output=True)

    run("phantom", "-k", "-s", "4", "-x", size, *(["-3"] if dimensions == 3 else []), "kspace")
    run("fft", "-u", "-i", "3" if dimensions == 2 else "7", "kspace", "images")
    source = opened(tmp_path / "kspace.cfl")
    expected = bart.read_cfl(tmp_path / "images").squeeze(axis=tuple(range(4, 16))).transpose(2, 3, 0, 1)
    assert source.num_slices == (1 if dimensions == 2 else int(size))
    assert source.slice_shape == (4, int(size), int(size))
    assert source.kept_slices() == list(range(source.num_slices))
    assert np.linalg.norm(images(source) - expected) <= 1e-6 * np.linalg.norm(expected)


@needs_bart
def test_bart_reads_what_is_written(tmp_path: Path) -> None:
    array = random_kspace(6, 5, 1, 3)
    bart.write_cfl(tmp_path / "a.b", array)
    subprocess.run(["bart", "scale", "2", "a.b", "twice"], cwd=tmp_path, check=True, capture_output=True)
    np.testing.assert_array_equal(bart.read_cfl(tmp_path / "twice").reshape(array.shape), 2 * array)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    array = random_kspace(6, 5, 1, 3)
    bart.write_cfl(tmp_path / "a.b", array)
    found = bart.read_cfl(tmp_path / "a.b")
    assert found.shape == (6, 5, 1, 3, *[1] * 12)
    np.testing.assert_array_equal(found.reshape(array.shape), array)


@pytest.mark.parametrize("given", [(".cfl",), (".hdr",), (".cfl", ".hdr")])
def test_slices_lie_along_dimension_13(tmp_path: Path, given: tuple[str, ...]) -> None:
    kspace = random_kspace(10, 8, 1, 3, *[1] * 9, 5)
    kspace[..., 2] = 0
    write(tmp_path / "a", kspace)
    source = opened(*(tmp_path / f"a{suffix}" for suffix in given))
    assert (source.num_slices, source.slice_shape, source.plane) == (5, (3, 10, 8), "acquired")
    assert (source.voxel_size, source.about) == (None, {})
    assert source.kept_slices() == [0, 1, 3, 4]
    for index in range(5):
        expected = kspace[:, :, 0, :, ..., index].reshape(10, 8, 3).transpose(2, 0, 1)
        np.testing.assert_array_equal(source.kspace(index), expected)
        assert source.kspace(index).dtype == np.complex64


@pytest.mark.parametrize("in_memory", [True, False])
def test_partitions_become_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: bool) -> None:
    if not in_memory:
        monkeypatch.setattr(partitions, "LARGEST_IN_MEMORY", 0)
        monkeypatch.setattr(partitions, "BLOCK", 1)
    kspace = random_kspace(6, 7, 5, 2, *[1] * 9, 2)
    source = opened(write(tmp_path / "a", kspace))
    assert source.num_slices == 10
    expected = to_image(kspace, axes=(0, 1, 2)).reshape(6, 7, 5, 2, 2).transpose(4, 2, 3, 0, 1)
    found = images(source).reshape(expected.shape)
    assert np.linalg.norm(found - expected) <= 1e-6 * np.linalg.norm(expected)
    source.close()


def test_one_slice_is_read_at_a_time(tmp_path: Path) -> None:
    kspace = random_kspace(64, 64, 1, 4, *[1] * 9, 40)
    path = write(tmp_path / "a", kspace)
    one = kspace[..., 0].nbytes
    del kspace
    tracemalloc.start()
    assert len(opened(path).kept_slices()) == 40
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * one


def test_values_that_are_not_finite_are_named(tmp_path: Path) -> None:
    flat = random_kspace(4, 4, 1, 2, *[1] * 9, 5)
    flat[0, 0, ..., 3] = np.nan
    with pytest.raises(InputError, match=r"flat\.cfl: slice 3 has 2 of 32"):
        opened(write(tmp_path / "flat", flat)).kept_slices()
    thick = random_kspace(4, 4, 5, 2)
    thick[0, 0, 3] = np.inf
    with pytest.raises(InputError, match=r"thick\.cfl: partition 3"):
        opened(write(tmp_path / "thick", thick)).kspace(0)


@pytest.mark.parametrize(("dimension", "name"), [(4, "maps"), (5, "TE"), (10, "time"), (14, "average")])
def test_other_dimensions_are_refused_by_name(tmp_path: Path, dimension: int, name: str) -> None:
    shape = [4] * 4 + [1] * 12
    shape[dimension] = 2
    with pytest.raises(InputError, match=rf"dimension {dimension} \({name}\) is 2"):
        opened(write(tmp_path / "a", random_kspace(*shape)))


@pytest.mark.parametrize("text", ["", "# Dimensions", "# Dimensions\n4 four", "# Dimensions\n4 0 1", "\xff\x00"])
def test_headers_that_make_no_sense(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "a", random_kspace(4, 4))
    path.with_suffix(".hdr").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=r"a\.hdr"):
        opened(path)


def test_files_that_do_not_fit_together(tmp_path: Path) -> None:
    path = write(tmp_path / "a", random_kspace(4, 4))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match=r"has 120 bytes, its header's dimensions .* need 128"):
        opened(path)
    path.unlink()
    with pytest.raises(InputError, match=r"a\.cfl: no such file"):
        opened(tmp_path / "a.hdr")
    other = write(tmp_path / "b", random_kspace(4, 4))
    with pytest.raises(InputError, match="2 BART pairs"):
        opened(tmp_path / "a.hdr", other)
    other.with_suffix(".hdr").unlink()
    with pytest.raises(InputError, match=r"b\.hdr: no such file"):
        opened(other)


def test_pairs_are_found_for_paths_and_urls() -> None:
    assert bart.pair("s3://bucket/a.b.hdr") == bart.pair("s3://bucket/a.b.cfl")
    assert bart.pair("s3://bucket/a.b.hdr") == ("s3://bucket/a.b.cfl", "s3://bucket/a.b.hdr")
    with pytest.raises(InputError, match=r"a\.img"):
        bart.pair("a.img")
