"""Who a scan shows: by BIDS names, by folders, or as the user says; no scan of one person in two splits unawares."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path

import pytest

from larmor.storage.formats.recognise import find_sources
from larmor.storage.formats.subjects import bids_subject
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore
from tests.helpers import ellipsoid, write_volume
from tests.storage.formats.dicom_files import make_scan, write_series
from tests.storage.formats.test_recognise import write_fastmri

HEAD = ellipsoid((9, 9, 9))
IXI = [
    f"IXI0{number:02}-{place}-08{number:02}-{kind}"
    for number, place in enumerate(("Guys", "HH", "IOP"), 10)
    for kind in ("T1", "T2", "PD")
]


def write(folder: Path, *names: str) -> Path:
    for name in names:
        write_volume(folder / f"{name}.nii", HEAD)
    return folder


def subjects(folder: Path | str, said: list[str] | None = None, subject: str | None = None) -> dict[str, str]:
    refs = find_sources([str(folder)], (said if said is not None else []).append, subject)
    return {ref.name: ref.subject for ref in refs}


@pytest.mark.parametrize("pattern", [r"IXI\d+", r"(IXI\d+)-\w+", r"IXI(?P<who>\d+)"])
def test_a_pattern_says_who_is_who(tmp_path: Path, pattern: str) -> None:
    found = subjects(write(tmp_path / "IXI-T1-2", *IXI), None, pattern)
    assert found == {name: name[:6] if "who" not in pattern else name[3:6] for name in IXI}


def test_of_several_matches_the_last_counts(tmp_path: Path) -> None:
    found = subjects(write(tmp_path / "p1", "p7_p8_T1", "p9_T1"), None, r"p\d")
    assert found == {"p7_p8_T1": "p8", "p9_T1": "p9"}


@pytest.mark.parametrize(("level", "wanted"), [("2", {"ann", "bob"}), ("1", {"T1w", "T2w"}), ("3", {"in"})])
def test_a_number_is_a_folder_above_the_file(
    tmp_path: Path, store_environment: dict[str, str], level: str, wanted: set[str]
) -> None:
    write(tmp_path / "in", "ann/T1w/a1", "ann/T2w/a2", "bob/T1w/b1", "bob/T2w/b2")
    write_series(tmp_path / "in" / "bob" / "T1w" / "..", make_scan())
    write_series(tmp_path / "in" / "bob" / "T2w", make_scan(uid="1.9"))
    for path in (tmp_path / "in" / "bob").glob("*.dcm"):
        path.unlink()
    url = f"s3://larmor/{uuid.uuid4().hex}"
    ObjectStore(url).upload(tmp_path / "in", "in")
    assert set(subjects(tmp_path / "in", None, level).values()) == wanted
    assert set(subjects(f"{url}/in", None, level).values()) == wanted


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("IXI[", r"--subject IXI\[: is no regular expression \(.*\); "),
        (r"OAS\d+", r"--subject OAS\\d\+: does not match .*IXI010-Guys-0810-PD.nii; "),
        ("99", r"--subject 99: .*IXI010-Guys-0810-PD.nii lies in \d+ folders"),
        ("0", r"--subject 0: .*at least 1"),
        ("x*", r"--subject x\*: matches nothing in .*IXI010"),
    ],
)
def test_what_says_nothing_is_refused(tmp_path: Path, pattern: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        subjects(write(tmp_path, *IXI), None, pattern)


def test_files_of_one_series_are_of_one_subject(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "ann", make_scan())
    (tmp_path / "bob").mkdir()
    paths[3].rename(tmp_path / "bob" / paths[3].name)
    with pytest.raises(InputError, match="--subject 1: gives files of one scan to several subjects: ann, bob"):
        subjects(tmp_path, None, "1")


WARNED = [
    IXI,
    ["p1_pre", "p1_post", "p2_pre", "p2_post", "p3_pre"],
    [f"OAS1_000{person}_MR1_mpr-{run}_anon" for person in (1, 2) for run in (1, 2, 3)],
    ["T1-ann", "T1-bob", "T2-ann", "T2-bob"],
]
NOT_WARNED = [
    ["phantom01", "phantom02", "phantom03"],
    ["head-1", "head-2", "head-3", "head-4"],
    ["csi1", "csi3", "nondef2", "petdeface01"],
    ["ann_2020", "bob_2021", "cid_2020"],
    ["sub-01_T1w", "sub-01_T2w", "sub-02_T1w", "sub-02_T2w"],
    ["file_brain_AXT2_200_2000092", "file_brain_AXT2_200_2000110", "file_brain_AXT1_201_6002725"],
    ["p1_pre", "p1_post", "p2_pre"],
]


@pytest.mark.parametrize("names", WARNED, ids=lambda names: names[0])
def test_names_like_several_scans_of_one_person_are_warned_of(tmp_path: Path, names: Sequence[str]) -> None:
    said: list[str] = []
    assert len(set(subjects(write(tmp_path, *names), said).values())) == len(names)
    (line,) = said
    assert line.startswith("warning: ")
    assert "--subject" in line
    assert sum(name in line for name in names) == 2
    said.clear()
    subjects(tmp_path, said, "^.*/(.*)$")
    assert said == []


@pytest.mark.parametrize("names", NOT_WARNED, ids=lambda names: names[0])
def test_other_names_are_not_warned_of(tmp_path: Path, names: Sequence[str]) -> None:
    said: list[str] = []
    subjects(write(tmp_path, *names), said)
    assert said == []


LAYOUTS = {
    "one scan each": {"100307/T1w": "100307", "100408/T1w": "100408", "100610/T1w": "100610"},
    "HCP": {f"{who}/{kind}/{kind}_restore": who for who in ("100307", "100408") for kind in ("T1w", "T2w")},
    "sessions": {"01/ses-1/T1": "01", "01/ses-2/T1": "01", "02/ses-1/T1": "02"},
    "contrasts first": {f"{kind}/{who}": who for who in ("01", "02") for kind in ("T1", "T2-FLAIR")},
    "sessions first": {f"ses-{number}/{who}": who for who in ("01", "02") for number in (1, 2)},
    "sites": {f"site{site}/{who}/T1": f"site{site}" for site in "AB" for who in ("01", "02")},
    "a file of its own name": {"ann/T1": "ann", "bob/T1": "bob", "ann/special": "ann", "cid": "cid"},
    "BIDS": {"a/sub-01_T1w": "sub-01", "b/sub-01_T1w": "sub-01", "b/sub-02_T1w": "sub-02"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_of_one_name_are_told_apart_by_their_folders(
    tmp_path: Path, store_environment: dict[str, str], layout: str
) -> None:
    """Never is a person divided; who stays together by caution can be told apart by `--subject`."""
    write(tmp_path / "in", *LAYOUTS[layout])
    url = f"s3://larmor/{uuid.uuid4().hex}"
    ObjectStore(url).upload(tmp_path / "in", "in")
    for place in (str(tmp_path / "in"), f"{url}/in"):
        said: list[str] = []
        refs = find_sources([place], said.append)
        who = {ref.files[0].removeprefix(f"{place}/").removesuffix(".nii"): ref.subject for ref in refs}
        assert who == LAYOUTS[layout]
        assert len({ref.name for ref in refs}) == len(refs)
        assert any("--subject" in line for line in said) == (layout not in ("BIDS",))


def test_names_are_as_short_as_they_tell_apart(tmp_path: Path) -> None:
    write(tmp_path / "in", "100307/T1w/brain", "100408/T1w/brain", "100408/T1w/mask")
    assert subjects(tmp_path / "in") == {"100307-brain": "100307", "100408-brain": "100408", "mask": "100408"}


def test_a_patient_id_comes_before_folders(tmp_path: Path) -> None:
    for folder, patient in {"one": "anna", "two": "anna", "three": "bob"}.items():
        write_fastmri(tmp_path / folder / "scan.h5", patient)
    found = subjects(tmp_path)
    assert found["one-scan"] == found["two-scan"] != found["three-scan"]


def test_one_name_in_one_folder_is_refused(tmp_path: Path) -> None:
    write_volume(tmp_path / "bob.nii", HEAD)
    write_volume(tmp_path / "bob.nii.gz", HEAD)
    with pytest.raises(InputError, match="volume bob comes from several files; give each file a name"):
        subjects(tmp_path)


@pytest.mark.parametrize(
    ("name", "subject"),
    [
        ("sub-01_ses-2_T1w", "sub-01"),
        ("sub-A7_T2w", "sub-A7"),
        ("sub-01", "sub-01"),
        ("sub-01.T1", "sub-01.T1"),
        ("sub-01-T1", "sub-01-T1"),
        ("sub-_T1w", "sub-_T1w"),
        ("mysub-01_T1w", "mysub-01_T1w"),
        ("ann_T1", "ann_T1"),
    ],
)
def test_the_subject_is_what_bids_says(name: str, subject: str) -> None:
    assert (bids_subject(name) or name) == subject
