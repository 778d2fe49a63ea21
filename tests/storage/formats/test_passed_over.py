"""No file vanishes without a line: suffixes count in any case, and what is passed over is named and counted."""

from __future__ import annotations

import gzip
import uuid
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from larmor.storage.formats.recognise import find_sources, open_source
from larmor.storage.formats.source import SourceOptions
from larmor.storage.objects.object_store import ObjectStore
from tests.helpers import ellipsoid, random_kspace, write_volume
from tests.storage.formats.dicom_files import SHAPE, base, make_scan, write_series
from tests.storage.formats.test_recognise import write_bart, write_fastmri

OPTIONS = SourceOptions((36, 32), 0.0)


@pytest.fixture
def bucket(store_environment: dict[str, str]) -> str:
    return f"s3://larmor/{uuid.uuid4().hex}"


def write_shouting(folder: Path) -> None:
    """A scan of every kind with its suffix in capitals."""
    folder.mkdir()
    write_volume(folder / "one.nii", ellipsoid((16, 12, 16))).rename(folder / "one.NII")
    content = write_volume(folder / "two.nii", ellipsoid((16, 12, 16))).read_bytes()
    (folder / "two.nii").unlink()
    (folder / "two.nii.GZ").write_bytes(gzip.compress(content))
    write_fastmri(folder / "three.H5")
    write_bart(folder / "four")
    for suffix in (".cfl", ".hdr"):
        (folder / f"four{suffix}").rename(folder / f"four{suffix.upper()}")
    np.save(folder / "five.npy", random_kspace(2))
    (folder / "five.npy").rename(folder / "five.NPY")
    np.savez(folder / "six.npz", one=random_kspace(2), two=random_kspace(3))
    (folder / "six.npz").rename(folder / "six.NPZ")


def test_suffixes_count_in_any_case(tmp_path: Path, bucket: str) -> None:
    write_shouting(tmp_path / "in")
    ObjectStore(bucket).upload(tmp_path / "in", "in")
    wanted = ["five", "four", "one", "six-one", "six-two", "three", "two"]
    for place in (str(tmp_path / "in"), f"{bucket}/in"):
        said: list[str] = []
        refs = find_sources([place], said.append)
        assert [ref.name for ref in refs] == wanted
        assert said == []
        for ref in refs:
            with open_source(ref, OPTIONS) as source:
                assert source.kspace(0).shape == source.slice_shape


@pytest.mark.parametrize("suffix", [".DCM", ".dicom", ".DICOM", ".MR", ".mr", ".IMA", "", ".1.2.840"])
@pytest.mark.parametrize("preamble", [True, False])
def test_dicom_is_found_whatever_it_is_called(tmp_path: Path, bucket: str, suffix: str, preamble: bool) -> None:
    twin = find_sources([str(write_series(tmp_path / "twin", make_scan())[0].parent)])[0]
    for path in write_series(tmp_path / "in" / "scan", make_scan()):
        if not preamble:
            header = dcmread(path)
            syntax = header.file_meta.TransferSyntaxUID
            del header.file_meta
            header.preamble = None
            header.save_as(path, implicit_vr=syntax.is_implicit_VR, little_endian=True, enforce_file_format=False)
            assert path.read_bytes()[:2] == b"\x08\x00"
        path.rename(path.with_name(f"IM{path.stem}{suffix}"))
    write_volume(tmp_path / "in" / "head.nii", ellipsoid((16, 12, 16)))
    ObjectStore(bucket).upload(tmp_path / "in", "in")
    for place in (str(tmp_path / "in"), f"{bucket}/in"):
        refs = {ref.name: ref for ref in find_sources([place])}
        assert sorted(refs) == ["head", "scan"]
        assert len(refs["scan"].files) == SHAPE[2]
        with open_source(refs["scan"], OPTIONS) as source, open_source(twin, OPTIONS) as other:
            assert np.array_equal(source.kspace(2), other.kspace(2))


def test_what_is_passed_over_is_named_and_counted(tmp_path: Path, bucket: str) -> None:
    folder = tmp_path / "in"
    write_volume(folder / "ann.nii", ellipsoid((16, 12, 16)))
    (folder / "ann.json").write_text("{}")  # is read with ann
    for name in ("a.txt", "b.TXT", "c.txt", "d.txt", "e.txt", "bob.json", "README", "orphan.hdr", ".DS_Store"):
        (folder / name).write_text("hello " * 40)
    report = base(make_scan(), "1.2.840.10008.5.1.4.1.1.88.11")
    del report.Rows
    report.save_as(folder / "report.dcm", enforce_file_format=True)
    ObjectStore(bucket).upload(folder, "in")
    wanted = (
        "skipped: 5 .txt (a.txt, b.TXT, c.txt, …), 1 .json (bob.json), 2 that are no DICOM images (README, "
        "report.dcm), 1 header without its data (orphan.hdr), 1 hidden (.DS_Store)"
    )
    for place in (str(folder), f"{bucket}/in", f"{folder}/*"):
        said: list[str] = []
        assert [ref.name for ref in find_sources([place], said.append)] == ["ann"]
        assert said[0] == (wanted if "*" not in place else wanted.replace(", 1 hidden (.DS_Store)", ""))
        assert len(said) == 1


def test_a_file_that_is_read_otherwise_is_not_passed_over(tmp_path: Path) -> None:
    write_volume(tmp_path / "ann.nii", ellipsoid((16, 12, 16)))
    (tmp_path / "notes.txt").write_text("")
    said: list[str] = []
    find_sources([str(tmp_path / "ann.nii"), str(tmp_path / "*.nii"), str(tmp_path / "ann.nii")], said.append)
    assert said == []
