"""What tells persons and series apart keeps them apart, in folders as in S3; what belongs to none says so once."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import generate_uid

from larmor.storage.formats.recognise import find_sources, open_source
from larmor.storage.formats.source import SourceOptions, SourceRef
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore
from tests.storage.formats.dicom_files import SHAPE, Scan, make_scan, write_series

OPTIONS = SourceOptions((24, 20), 0.0)
Search = Callable[[Path], list[SourceRef]]


@pytest.fixture(params=["folder", "S3"])
def search(request: pytest.FixtureRequest) -> Search:
    """Find the scans of a folder, there or in S3."""
    if request.param == "folder":
        return lambda folder: find_sources([str(folder)])
    request.getfixturevalue("store_environment")
    url = f"s3://larmor/{uuid.uuid4().hex}"

    def upload(folder: Path) -> list[SourceRef]:
        ObjectStore(url).upload(folder, folder.name)
        return find_sources([f"{url}/{folder.name}"])

    return upload


def edit(paths: list[Path], **values: Any) -> list[Path]:
    """Set elements of every file; None removes one."""
    for path in paths:
        header = dcmread(path)
        for keyword, value in values.items():
            if value is None:
                header.pop(keyword, None)
            else:
                setattr(header, keyword, value() if callable(value) else value)
        header.save_as(path)
    return paths


def write_two(folder: Path, **told: tuple[Any, Any]) -> tuple[Scan, Scan]:
    """Two scans of one geometry in one folder, their slices at unequal places, alike but for what is `told`."""
    one, two = make_scan(), replace(make_scan(), intercept=500.0)
    edit(write_series(folder, one, prefix="a"), **{name: values[0] for name, values in told.items()})
    paths = edit(write_series(folder, two, prefix="b"), **{name: values[1] for name, values in told.items()})
    for path in paths:  # between those of the other
        header = dcmread(path)
        header.ImagePositionPatient[2] += 1.25
        header.save_as(path)
    return one, two


NO_UID = {"SeriesInstanceUID": (None, None)}
BARE = {**NO_UID, "StudyInstanceUID": (None, None), "SeriesNumber": (None, None), "PatientID": (None, None)}
TOLD: dict[str, dict[str, tuple[Any, Any]]] = {
    "series UID": {"SeriesInstanceUID": ("1.2.3.4", "1.2.3.5")},
    "patient, one series UID": {"PatientID": ("P1", "P2")},
    "patient": {**NO_UID, "PatientID": ("P1", "P2")},
    "study": {**NO_UID, "StudyInstanceUID": ("1.2.3", "1.2.4")},
    "series number": {**NO_UID, "SeriesNumber": (3, 4)},
    "echo": {"EchoNumbers": (1, 2)},
    "echo time": {"EchoTime": (4.6, 9.2)},
    "image type": {"ImageType": (["ORIGINAL", "PRIMARY", "M"], ["DERIVED", "PRIMARY", "M"])},
    "name of the sequence alone": {**BARE, "ProtocolName": ("t1_mprage", "t2_space")},
    "birth date alone": {**BARE, "PatientBirthDate": ("19700101", "19710101")},
}


@pytest.mark.parametrize("case", TOLD)
def test_two_scans_in_one_folder_stay_two(tmp_path: Path, search: Search, case: str) -> None:
    scans = write_two(tmp_path / "scans", **TOLD[case])
    refs = search(tmp_path / "scans")
    assert [len(ref.files) for ref in refs] == [SHAPE[2], SHAPE[2]]
    for ref, scan in zip(refs, scans, strict=True):
        with open_source(ref, OPTIONS) as source:
            assert source.num_slices == SHAPE[1], "coronal slices of an axial scan"
            assert np.abs(source.kspace(3)).max() > 0
        names = {Path(file).name[0] for file in ref.files}
        assert names == {"a" if scan is scans[0] else "b"}


@pytest.mark.parametrize(
    ("told", "subjects"),
    [
        ({"PatientID": ("P1", "P2")}, 2),
        ({"SeriesInstanceUID": ("1.1", "1.2")}, 1),
        ({"SeriesInstanceUID": ("1.1", "1.2"), "PatientID": (None, None)}, 1),
        ({"StudyInstanceUID": ("1.1", "1.2"), "PatientID": (None, None)}, 2),
        (BARE | {"ProtocolName": ("t1", "t2")}, 1),
    ],
)
def test_without_a_patient_the_study_is_the_person_and_else_the_folder(
    tmp_path: Path, search: Search, told: dict[str, tuple[Any, Any]], subjects: int
) -> None:
    write_two(tmp_path / "scans", **told)
    assert len({ref.subject for ref in search(tmp_path / "scans")}) == subjects


def test_folders_and_objects_give_the_same(tmp_path: Path, store_environment: dict[str, str]) -> None:
    write_series(tmp_path / "ann" / "t1", make_scan(patient="P1", uid="1.1"))
    write_series(tmp_path / "ann" / "t2", make_scan(patient="P1", uid="1.2"))
    write_two(tmp_path / "mixed", PatientID=("P1", "P3"))
    paths = write_series(tmp_path / "split" / "one", make_scan(patient="P4", uid="1.4"))
    (tmp_path / "split" / "two").mkdir()
    for number, path in enumerate(paths[:5]):  # of the same names as others of the series
        path.rename(tmp_path / "split" / "two" / paths[-1 - number].name)
    url = f"s3://larmor/{uuid.uuid4().hex}"
    ObjectStore(url).upload(tmp_path, "in")
    local, remote = find_sources([str(tmp_path)]), find_sources([f"{url}/in"])
    assert [(ref.name, ref.subject) for ref in local] == [(ref.name, ref.subject) for ref in remote]
    assert [ref.name for ref in local] == ["mixed-1", "mixed-1-2", "split", "t1", "t2"]
    for ref, twin in zip(local, remote, strict=True):
        assert [file.removeprefix(f"{url}/in") for file in twin.files] == [
            file.removeprefix(str(tmp_path)) for file in ref.files
        ]
        with open_source(ref, OPTIONS) as source, open_source(twin, OPTIONS) as other:
            assert np.array_equal(source.kspace(2), other.kspace(2))


def test_what_changed_after_the_search_is_compared_again(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "scan", make_scan())
    (ref,) = find_sources([str(tmp_path)])
    edit(paths[4:5], PatientID="P9", EchoNumbers=2)
    with (
        pytest.raises(InputError, match=f"{tmp_path}.*different PatientID, EchoNumbers") as caught,
        open_source(ref, OPTIONS),
    ):
        pass
    assert "P9" not in str(caught.value)


def told_once(refs: list[SourceRef], num_files: int) -> str:
    (ref,) = refs
    assert len(ref.files) == num_files
    with pytest.raises(InputError) as caught, open_source(ref, OPTIONS):
        pass
    return str(caught.value)


def test_a_series_uid_for_each_slice_is_told_once(tmp_path: Path, search: Search) -> None:
    edit(write_series(tmp_path / "canon", make_scan()), SeriesInstanceUID=generate_uid)
    message = told_once(search(tmp_path / "canon"), SHAPE[2])
    assert f"{SHAPE[2]} files" in message
    assert "different SeriesInstanceUID" in message
    assert "one image each" in message


def test_a_mosaic_is_called_one(tmp_path: Path, search: Search) -> None:
    paths = edit(write_series(tmp_path / "fmri", make_scan()), ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"])
    edit(paths, ImagePositionPatient=[0, 0, 0])
    message = told_once(search(tmp_path / "fmri"), SHAPE[2])
    assert "mosaic" in message
    assert "dcm2niix" in message


def test_phases_are_no_magnitudes(tmp_path: Path) -> None:
    edit(write_series(tmp_path / "phase", make_scan()), ImageType=["ORIGINAL", "PRIMARY", "P", "ND"])
    assert "phases" in told_once(find_sources([str(tmp_path)]), SHAPE[2])


def test_copies_are_called_copies(tmp_path: Path, search: Search) -> None:
    for path in write_series(tmp_path / "in" / "scan", make_scan()):
        (tmp_path / "in" / "again").mkdir(exist_ok=True)
        (tmp_path / "in" / "again" / path.name).write_bytes(path.read_bytes())
    message = told_once(search(tmp_path / "in"), 2 * SHAPE[2])
    assert f"{SHAPE[2]} of {2 * SHAPE[2]} images are copies" in message
    assert "again/000.dcm" in message
    assert "scan/000.dcm" in message


def test_long_headers_are_read_to_the_size(tmp_path: Path, search: Search) -> None:
    paths = write_series(tmp_path / "scan", make_scan())
    for path in paths:
        header = dcmread(path)
        header.private_block(0x0009, "ACME", create=True).add_new(1, "OB", bytes(40_000))
        header.save_as(path)
    (ref,) = search(tmp_path / "scan")
    assert len(ref.files) == SHAPE[2]
