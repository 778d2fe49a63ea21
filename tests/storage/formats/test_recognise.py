"""Every kind of scan is found wherever it lies, under a name and a subject; what is none is passed over or refused."""

from __future__ import annotations

import uuid
from pathlib import Path

import h5py
import numpy as np
import pytest

from larmor.storage.formats.recognise import find_sources, open_source
from larmor.storage.formats.source import SourceOptions, SourceRef
from larmor.storage.formats.staging import file_facts
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore
from tests.helpers import ellipsoid, random_kspace, write_heads, write_volume
from tests.storage.formats.dicom_files import make_scan, write_series
from tests.storage.formats.test_mrd import lines_of, xml
from tests.storage.formats.test_mrd import write as write_mrd

OPTIONS = SourceOptions((36, 32), 0.0)


def write_fastmri(path: Path, patient: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["kspace"] = random_kspace(3, (2, 16, 12))
        if patient:
            file.attrs["patient_id"] = patient
    return path


def write_bart(stem: Path) -> None:
    stem.with_suffix(".cfl").write_bytes(random_kspace(1, (1, 16, 12)).tobytes())
    stem.with_suffix(".hdr").write_text("# Dimensions\n16 12 1 1 1 1 1 1 1 1 1 1 1 1 1 1\n")


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """One folder with every kind of scan, and with files that are none."""
    folder = tmp_path / "zoo"
    write_heads(folder / "nifti", ["ann", "sub-01_ses-1_T1w", "sub-01_ses-2_T1w"])
    write_series(folder / "patient" / "t1", make_scan(patient="P1", uid="1.1"))
    write_series(folder / "patient" / "t2", make_scan(patient="P1", uid="1.2"))
    for name, patient in {"file1": "anna", "file2": "anna", "file3": None}.items():
        write_fastmri(folder / "fastmri" / f"{name}.h5", patient)
    lines = (line for number in (0, 1) for line in lines_of(random_kspace(2, (2, 16, 12))[number], repetition=number))
    write_mrd(folder / "raw.mrd", xml((16, 12, 1)), lines)
    write_bart(folder / "knee")
    np.save(folder / "array.npy", random_kspace(2))
    np.savez(folder / "many.npz", one=random_kspace(2), two=random_kspace(3))
    np.savez(folder / "single.npz", only=random_kspace(2))
    for name in ("splits.yaml", "ann.json", "picture.png", "notes.txt", "README", "orphan.hdr"):
        (folder / name).write_text("{}")
    (folder / ".hidden").mkdir()
    write_volume(folder / ".hidden" / "zed.nii", ellipsoid((9, 9, 9)))
    write_volume(folder / "nifti" / "._ann.nii", ellipsoid((9, 9, 9)))
    return folder


WANTED = {  # name: (format, subject)
    "ann": ("nifti", "ann"),
    "sub-01_ses-1_T1w": ("nifti", "sub-01"),
    "sub-01_ses-2_T1w": ("nifti", "sub-01"),
    "t1": ("dicom", "t1"),
    "t2": ("dicom", "t1"),
    "file1": ("fastmri", "file1"),
    "file2": ("fastmri", "file1"),
    "file3": ("fastmri", "file3"),
    "raw-repetition0": ("mrd", "raw"),
    "raw-repetition1": ("mrd", "raw"),
    "knee": ("bart", "knee"),
    "array": ("arrays", "array"),
    "many-one": ("arrays", "many"),
    "many-two": ("arrays", "many"),
    "single": ("arrays", "single"),
}


def overview(refs: list[SourceRef]) -> dict[str, tuple[str, str]]:
    assert [ref.name for ref in refs] == sorted(ref.name for ref in refs)
    return {ref.name: (ref.format, ref.subject) for ref in refs}


def test_a_folder_is_searched_for_every_kind(zoo: Path) -> None:
    refs = find_sources([str(zoo)])
    assert overview(refs) == WANTED
    assert [len(ref.files) for ref in refs if ref.format in ("bart", "dicom")] == [2, 11, 11]
    for ref in refs:
        with open_source(ref, OPTIONS) as source:
            assert source.num_slices > 0
            assert source.kspace(0).shape == source.slice_shape


def test_a_scan_that_is_named_twice_is_one(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(zoo)
    again = ["knee.hdr", "./knee.cfl", str(zoo / "array.npy"), "nifti/../array.npy"]
    refs = find_sources([str(zoo), *again])
    assert overview(refs) == WANTED
    assert overview(find_sources(again)) == {name: WANTED[name] for name in ("knee", "array")}


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("nifti/*.nii.gz", ["ann", "sub-01_ses-1_T1w", "sub-01_ses-2_T1w"]),
        ("**/file[12].h5", ["file1", "file2"]),
        ("pat*", ["t1", "t2"]),
        ("*.???", ["array", "knee", "many-one", "many-two", "raw-repetition0", "raw-repetition1", "single"]),
    ],
)
def test_a_pattern_names_files_and_folders(zoo: Path, pattern: str, names: list[str]) -> None:
    assert [ref.name for ref in find_sources([str(zoo / pattern)])] == names


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tmp_path: Path) -> None:
    path = write_volume(tmp_path / "scan[1].nii", ellipsoid((9, 9, 9)))
    assert [ref.name for ref in find_sources([str(path)])] == ["scan[1]"]


def test_dicom_files_without_a_suffix_are_found(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "scan", make_scan())
    for number, path in enumerate(paths):
        path.rename(path.with_name(f"MR.1.2.3.{number}" if number % 2 else f"IM{number}"))
    (ref,) = find_sources([str(tmp_path)])
    assert (ref.format, ref.name, len(ref.files)) == ("dicom", "scan", len(paths))


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("never.nii", "no such file or folder"),
        ("empty", "no volume in this folder; expected .nii.gz, .nii, .dcm"),
        ("empty/*", "no volume matches this pattern"),
        ("zoo/*.txt", "no volume matches this pattern"),
        ("zoo/notes.txt", "not a file of a known kind; expected .nii.gz, .nii, .dcm"),
        ("zoo/orphan.hdr", "is the header of zoo/orphan.cfl or zoo/orphan.img, which is not there"),
        ("zoo/README", "is no DICOM image; expected"),
        ("zoo/fake.dcm", "is no DICOM image; expected"),
    ],
)
def test_what_is_no_scan_is_refused_where_it_is_named(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argument: str, reason: str
) -> None:
    (tmp_path / "empty").mkdir()
    (zoo / "fake.dcm").write_text("no image")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        find_sources(["zoo/array.npy", argument])
    assert str(caught.value).startswith(f"{argument}: {reason}")


def test_a_file_that_cannot_be_looked_into_says_so_when_it_is_opened(tmp_path: Path) -> None:
    """So that all bad files are reported together, and can be left out."""
    (tmp_path / "bad.h5").write_text("no HDF5")
    (tmp_path / "bad.npz").write_text("no archive")
    for name in ("bad.h5", "bad.npz"):
        (ref,) = find_sources([str(tmp_path / name)])
        with pytest.raises(InputError, match=f"{tmp_path / name}: is not"), open_source(ref, OPTIONS):
            pass


@pytest.fixture
def bucket(store_environment: dict[str, str]) -> str:
    return f"s3://larmor/{uuid.uuid4().hex}"


def test_a_store_is_searched_for_every_kind(zoo: Path, bucket: str) -> None:
    ObjectStore(bucket).upload(zoo, "zoo")
    refs = find_sources([f"{bucket}/zoo"])
    assert overview(refs) == WANTED
    local = {ref.name: ref for ref in find_sources([str(zoo)])}
    for ref in refs:
        assert all(file.startswith(f"{bucket}/zoo/") for file in ref.files)
        with open_source(ref, OPTIONS) as source, open_source(local[ref.name], OPTIONS) as twin:
            assert np.array_equal(source.kspace(0), twin.kspace(0))
    assert [ref.name for ref in find_sources([f"{bucket}/zoo/**/file?.h5"])] == ["file1", "file2", "file3"]
    assert [ref.name for ref in find_sources([f"{bucket}/zoo/pat*"])] == ["t1", "t2"]
    assert [ref.name for ref in find_sources([f"{bucket}/zoo/knee.hdr", f"{bucket}/zoo/array.npy"])] == [
        "array",
        "knee",
    ]


def test_copies_of_objects_are_removed_and_errors_name_the_objects(bucket: str, tmp_path: Path) -> None:
    store = ObjectStore(bucket)
    np.save(tmp_path / "good.npy", random_kspace(2))
    store.upload(tmp_path, "in")
    store.write("in/bad.npy", b"no array")
    store.write("in/half.cfl", b"")
    copies = []
    refs = {ref.name: ref for ref in find_sources([f"{bucket}/in"])}
    with open_source(refs["good"], OPTIONS) as source:
        copies.append(Path(str(source.file)))  # type: ignore[attr-defined]
        assert copies[0].exists()
    assert not copies[0].parent.exists()
    for name, reason in {"bad": "is not a complete array", "half": "no such file"}.items():
        with (
            pytest.raises(InputError, match=f"^{bucket}/in/{name}.*{reason}") as caught,
            open_source(refs[name], OPTIONS),
        ):
            pass
        assert "larmor-source-" not in str(caught.value)


def test_what_is_not_in_a_store_is_refused(bucket: str) -> None:
    ObjectStore(bucket).write("in/notes.txt", b"")
    for argument, reason in {
        f"{bucket}/never": "no such object, and none below it",
        f"{bucket}/in": "no volume in this folder",
        f"{bucket}/in/*.nii": "no volume matches this pattern",
        f"{bucket}/in/notes.txt": "not a file of a known kind",
        "s3://larmor-nothere/x": "does not exist",
    }.items():
        with pytest.raises(InputError, match=reason):
            find_sources([argument])


@pytest.mark.parametrize("num_objects", [2, 30])
def test_the_state_of_objects_is_told_by_their_etags(bucket: str, num_objects: int) -> None:
    """Asked one by one, or by a list of the folder."""
    store = ObjectStore(bucket)
    names = [f"in/{number}.dcm" for number in range(num_objects)]
    for name in names:
        store.write(name, b"first")
    ref = SourceRef("dicom", "in", "in", (*(f"{bucket}/{name}" for name in names), f"{bucket}/in/gone.dcm"))
    before = file_facts(ref)
    assert file_facts(ref) == before
    assert before[-1] == {"file": "gone.dcm", "size": None}
    assert all(fact["size"] == 5 and fact["etag"] for fact in before[:-1])
    store.write(names[1], b"other")
    assert [one != other for one, other in zip(before, file_facts(ref), strict=True)] == [
        number == 1 for number in range(num_objects + 1)
    ]
