"""NIfTI files give the same slices however much of them is in memory, and the subjects their names say."""

from __future__ import annotations

import bz2
import gzip
import tempfile
import tracemalloc
from pathlib import Path
from typing import IO, Any

import nibabel
import numpy as np
import pytest

from larmor.storage.formats import nifti, volume_array
from larmor.storage.formats.source import SourceOptions, SourceRef
from larmor.storage.formats.volumes import VolumeSource
from larmor.storage.objects.errors import InputError
from tests.helpers import ellipsoid, write_volume

SHAPE = (23, 17, 29)
OPTIONS = SourceOptions((32, 28), 0.1)


def open_file(path: Path, options: SourceOptions = OPTIONS) -> VolumeSource:
    return nifti.open_source(SourceRef("nifti", "head", "head", (str(path),)), [path], options)


def mapped(data: np.ndarray | None) -> bool:
    """Whether the memory behind an array is a file's."""
    while data is not None and not isinstance(data, np.memmap):
        data = data.base if isinstance(data.base, np.ndarray) else None
    return data is not None


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Every volume is too large for memory and read in slabs of a few planes; returns the temporary folder."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(volume_array, "MAX_VOLUME_IN_MEMORY", 0)
    monkeypatch.setattr(volume_array, "SLAB_BYTES", 3 * 8 * SHAPE[0] * SHAPE[1])
    return folder


def scaled(path: Path, dtype: str, slope: float, intercept: float, last_axis: bool) -> Path:
    rng = np.random.default_rng(0)
    stored = rng.integers(0, 200, SHAPE + (1,) * last_axis).astype(dtype)
    stored[3:18, 2:14, 4:22] //= 3
    affine = np.array([[0, 1.3, 0, 4], [-1.0, 0, 0, 2], [0, 0, 0.9, -5], [0, 0, 0, 1]])
    image = nibabel.Nifti1Image(stored, affine)
    image.header.set_slope_inter(slope, intercept)
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("suffix", nifti.SUFFIXES)
@pytest.mark.parametrize("dtype", ["u1", "<i2", ">f4", "<f8"])
@pytest.mark.parametrize("last_axis", [False, True])
@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (0.37, -11)])
def test_slabs_give_what_nibabel_reads_at_once(
    tmp_path: Path, little_memory: Path, suffix: str, dtype: str, last_axis: bool, slope: float, intercept: float
) -> None:
    path = scaled(tmp_path / f"head{suffix}", dtype, slope, intercept, last_axis)
    image: Any = nibabel.load(path)
    image = image.slicer[..., 0] if last_axis else image
    canonical = nibabel.as_closest_canonical(image)
    volume = nifti.read_volume(path)
    np.testing.assert_array_equal(volume.data, np.asarray(canonical.dataobj, np.float32))
    np.testing.assert_allclose(volume.affine, canonical.affine, rtol=1e-7)
    np.testing.assert_allclose(volume.voxel_size, canonical.header.get_zooms()[:3], rtol=1e-6)


@pytest.mark.parametrize("suffix", nifti.SUFFIXES)
def test_on_disk_or_in_memory_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, little_memory: Path, suffix: str
) -> None:
    path = scaled(tmp_path / f"head{suffix}", "<i2", 0.5, 3, last_axis=False)
    on_disk = nifti.read_volume(path)
    assert mapped(on_disk.data)
    assert list(little_memory.iterdir()) == [], "nothing to clean up, whatever happens"
    from_disk = open_file(path)
    monkeypatch.setattr(volume_array, "MAX_VOLUME_IN_MEMORY", 4 * int(np.prod(SHAPE)))
    assert not mapped(nifti.read_volume(path).data)
    from_memory = open_file(path)
    assert from_disk.kept_slices() == from_memory.kept_slices()
    for index in from_memory.kept_slices():
        assert np.array_equal(from_disk.kspace(index), from_memory.kspace(index))


@pytest.mark.parametrize("suffix", nifti.SUFFIXES)
def test_memory_does_not_grow_with_the_volume(tmp_path: Path, little_memory: Path, suffix: str) -> None:
    shape = (128, 120, 144)
    rng = np.random.default_rng(0)
    path = write_volume(tmp_path / f"head{suffix}", rng.integers(0, 900, shape, dtype=np.int16), np.diag([-1, 1, 1, 1]))
    open_file(path).close()  # imports
    tracemalloc.start()
    try:
        source = open_file(path, SourceOptions((64, 64), 0.0))
        for index in source.kept_slices():
            source.kspace(index)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * np.prod(shape) / 2.5


@pytest.mark.parametrize("place", [-8, -5, -1])
def test_a_wrong_checksum_is_noticed(tmp_path: Path, little_memory: Path, place: int) -> None:
    path = write_volume(tmp_path / "head.nii.gz", ellipsoid(SHAPE))
    content = bytearray(path.read_bytes())
    content[place] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"head\.nii\.gz: cannot be read to its end"):
        open_file(path)


def test_a_file_that_promises_more_than_it_holds(tmp_path: Path, little_memory: Path) -> None:
    whole = write_volume(tmp_path / "whole.nii", ellipsoid(SHAPE)).read_bytes()
    path = tmp_path / "head.nii.gz"
    path.write_bytes(gzip.compress(whole[:-100]))
    with pytest.raises(InputError, match=r"head\.nii\.gz: cannot be read to its end"):
        open_file(path)


def test_a_full_disk_is_said(tmp_path: Path, little_memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_volume(tmp_path / "head.nii", ellipsoid(SHAPE))

    def no_room(**_: object) -> IO[bytes]:
        return Path("/dev/full").open("wb")

    monkeypatch.setattr(tempfile, "TemporaryFile", no_room)
    with pytest.raises(InputError, match=r"head\.nii: needs .* GiB of temporary space in .*TMPDIR"):
        open_file(path)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_counted_over_all_slabs(tmp_path: Path, little_memory: Path, bad: float) -> None:
    data = ellipsoid(SHAPE)
    data[3, 3, [0, 11, 28]] = bad
    with pytest.raises(InputError, match=f"3 of {data.size} voxels are not finite"):
        open_file(write_volume(tmp_path / "head.nii", data))


TURNED = np.array(
    [[0, -1.3, 0, 4], [-1.0, 0, 0, 2], [0, 0, -0.9, -5], [0, 0, 0, 1]]
)  # by 180°: the quaternion's w is 0


def with_header(path: Path, affine: np.ndarray = TURNED, **fields: float | tuple[float, ...]) -> Path:
    """A volume placed by its quaternion, with other values in its header."""
    image = nibabel.Nifti1Image(ellipsoid(SHAPE), affine)
    image.set_qform(affine, code=1)
    image.set_sform(None, code=0)
    for name, value in fields.items():
        image.header[name] = value
    content = image.header.binaryblock + bytes(4) + np.asarray(image.dataobj).tobytes(order="F")
    pack: Any = {".gz": gzip.compress, ".bz2": bz2.compress}.get(path.suffix, bytes)
    path.write_bytes(pack(content))
    return path


@pytest.mark.parametrize("suffix", nifti.SUFFIXES)
@pytest.mark.parametrize("excess", [5e-7, 5e-6, 8e-5])
def test_a_quaternion_a_hair_too_long_is_normalised(tmp_path: Path, suffix: str, excess: float) -> None:
    whole = nifti.read_volume(with_header(tmp_path / "whole.nii", vox_offset=352))
    header: Any = nibabel.load(tmp_path / "whole.nii").header
    longer = {name: float(header[name]) * (1 + excess) ** 0.5 for name in ("quatern_b", "quatern_c", "quatern_d")}
    path = with_header(tmp_path / f"head{suffix}", vox_offset=352, **longer)
    with pytest.raises(ValueError, match="w2 should be positive"):
        nibabel.load(path)
    found = nifti.read_volume(path)
    np.testing.assert_allclose(found.affine, whole.affine, atol=1e-5)
    np.testing.assert_array_equal(found.data, whole.data)
    assert whole.notes == ()
    assert found.notes == ("the quaternion in the header is longer than 1 by rounding and was normalised",)


def test_a_quaternion_that_is_none_is_no_truncated_file(tmp_path: Path) -> None:
    path = with_header(tmp_path / "head.nii", vox_offset=352, quatern_b=1.2)
    with pytest.raises(InputError, match=r"head\.nii: its header is invalid .*quaternion"):
        open_file(path)
    unused = with_header(tmp_path / "other.nii", vox_offset=352, quatern_b=1.2, sform_code=1)
    assert list(open_file(unused).notes) == [], "the matrix counts, where there is one"


def test_a_volume_without_orientation_says_so(tmp_path: Path) -> None:
    path = with_header(tmp_path / "head.nii", vox_offset=352, qform_code=0)
    (note,) = open_file(path).notes
    assert "states no orientation (qform_code and sform_code are 0)" in note
    assert "right to left, posterior to anterior and inferior to superior" in note
    turned: Any = nibabel.load(path)
    assert nibabel.aff2axcodes(turned.affine) == ("L", "A", "S")
    assert list(open_file(with_header(tmp_path / "turned.nii", vox_offset=352)).notes) == []


def test_a_size_of_zero_is_said_and_not_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = with_header(tmp_path / "head.nii", vox_offset=352, pixdim=(1, 1.3, 0, 0.9, 1, 1, 1, 1))
    source = open_file(path)
    assert [note for note in source.notes if "voxel size of 0 along axis 1" in note and "1 mm is assumed" in note]
    assert sorted(np.array(source.about["voxel_size_mm"])) == pytest.approx([0.9, 1, 1.3])
    assert caplog.records == []


def test_what_nibabel_repairs_is_said_and_not_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = with_header(tmp_path / "head.nii", vox_offset=352, pixdim=(1, 1.3, -1, 0.9, 1, 1, 1, 1))
    assert [note for note in open_file(path).notes if "the header is faulty: pixdim" in note]
    assert caplog.records == []


@pytest.mark.parametrize(("unit", "factor"), [("mm", 1), ("micron", 1e-3), ("meter", 1e3), ("unknown", 1)])
@pytest.mark.parametrize("by_sform", [False, True])
def test_sizes_are_in_mm_whatever_the_unit(tmp_path: Path, unit: str, factor: float, by_sform: bool) -> None:
    code: Any = nibabel.nifti1.unit_codes[unit]
    affine = TURNED / np.array([[factor], [factor], [factor], [1]])
    rows: dict[str, Any] = (
        {f"srow_{axis}": tuple(affine[number]) for number, axis in enumerate("xyz")} if by_sform else {}
    )
    path = with_header(tmp_path / "head.nii", affine, vox_offset=352, xyzt_units=code, sform_code=int(by_sform), **rows)
    volume, plain = nifti.read_volume(path), nifti.read_volume(with_header(tmp_path / "mm.nii", vox_offset=352))
    assert volume.voxel_size == pytest.approx(plain.voxel_size)
    np.testing.assert_allclose(volume.affine, plain.affine, rtol=1e-5, atol=1e-5)
    assert [("converted to mm" in note) for note in volume.notes] == [True] * (factor != 1)


def test_voxels_do_not_begin_in_the_header(tmp_path: Path) -> None:
    """nibabel would take the header for the first voxels, and every voxel behind it for another place."""
    whole = nifti.read_volume(with_header(tmp_path / "whole.nii", vox_offset=352))
    found = nifti.read_volume(with_header(tmp_path / "head.nii", vox_offset=0))
    np.testing.assert_array_equal(found.data, whole.data)
    (note,) = found.notes
    assert "begin at byte 0" in note
    assert "byte 352 is taken" in note


def test_a_unit_that_is_none_is_mm(tmp_path: Path) -> None:
    volume = nifti.read_volume(with_header(tmp_path / "head.nii", vox_offset=352, xyzt_units=255))
    assert volume.voxel_size == nifti.read_volume(with_header(tmp_path / "mm.nii", vox_offset=352)).voxel_size


def test_the_name_is_the_file_name() -> None:
    assert nifti.subject_of(Path("a/b/sub-01.T1.nii.gz")) == "sub-01.T1"
    assert nifti.subject_of(Path("sub-02.nii")) == "sub-02"
