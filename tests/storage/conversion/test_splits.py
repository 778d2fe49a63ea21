"""No subject is in two splits."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from larmor.storage.conversion.splits import assign_splits, read_splits_file, splits_of_folders
from larmor.storage.formats.source import SourceRef
from larmor.storage.objects.errors import InputError
from tests.helpers import property_test

names = st.lists(st.text("abcdef0123456789", min_size=1, max_size=6), min_size=3, max_size=60, unique=True)


@property_test
@given(names)
def test_without_names_every_split_gets_subjects(subjects: list[str]) -> None:
    assigned = assign_splits(subjects, {})
    assert list(assigned) == subjects
    held_out = max(1, len(subjects) // 10)
    for split, count in {"test": held_out, "validation": held_out, "train": len(subjects) - 2 * held_out}.items():
        assert list(assigned.values()).count(split) == count


@property_test
@given(names)
def test_the_choice_does_not_depend_on_the_order(subjects: list[str]) -> None:
    assert assign_splits(subjects[::-1], {}) == assign_splits(subjects, {})


def test_a_new_subject_moves_at_most_one_in_each_split() -> None:
    subjects = [f"head{number}" for number in range(15)]
    before, after = assign_splits(subjects, {}), assign_splits([*subjects, "another"], {})
    assert sum(before[name] != after[name] for name in subjects) <= 2


def test_named_subjects_are_held_out_and_the_others_train() -> None:
    assigned = assign_splits(list("abcde"), {"test": ["c"], "validation": ["a", "e"]})
    assert assigned == {"a": "validation", "b": "train", "c": "test", "d": "train", "e": "validation"}


@property_test
@given(names, st.integers(2, 4))
def test_a_subject_with_several_volumes_counts_once(subjects: list[str], times: int) -> None:
    assert assign_splits(subjects * times, {}) == assign_splits(subjects, {})


@pytest.mark.parametrize(
    ("subjects", "held_out", "reason"),
    [
        (["a", "b", "a"], {}, "2 subject.s. cannot be divided"),
        (["a", "b"], {}, "2 subject.s. cannot be divided into train, validation and test; give at least 3"),
        ([], {"test": []}, "0 subject.s. cannot be divided"),
        (["b", "c", "a"], {"test": ["d"]}, "test subject 'd' is not among the sources: a, b, c"),
        (["a", "b", "c"], {"test": ["a"], "validation": ["a"]}, "subject 'a' is named for test and for validation"),
        (["a", "b", "c"], {"tset": ["a"]}, "'tset' is not a split; the splits are train, validation, test"),
    ],
)
def test_what_cannot_be_divided_is_refused(subjects: list[str], held_out: dict[str, list[str]], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        assign_splits(subjects, held_out)


def test_a_splits_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "splits.yaml"
    path.write_text("test: [head3, 17]\nvalidation:\n- head1\n")
    assert read_splits_file(path) == {"test": ["head3", "17"], "validation": ["head1"]}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no such file"),
        ("test: [a", "is not YAML"),
        ("- a\n- b", "expected a mapping of split to a list"),
        ("test: head3", "expected a mapping of split to a list"),
        ("", "expected a mapping of split to a list"),
    ],
)
def test_a_wrong_splits_file_is_refused(tmp_path: Path, content: str | None, reason: str) -> None:
    path = tmp_path / "splits.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=f"{path}: {reason}"):
        read_splits_file(path)


def at(*files: str, subject: str | None = None) -> list[SourceRef]:
    return [SourceRef("fastmri", file, subject or Path(file).stem, (file,)) for file in files]


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        (["singlecoil_train/a.h5", "singlecoil_train/b.h5", "singlecoil_val/c.h5"], "ttv"),
        (
            ["s3://bucket/multicoil_val/a.h5", "s3://bucket/multicoil_train/b.h5", "s3://bucket/multicoil_test/c.h5"],
            "vtx",
        ),
        (["data/Train/deep/a.npy", "data/validation/b.npy"], "tv"),
        (["/home/test/train/a.npy", "/home/test/val/b.npy"], "tv"),
        (["/home/test/a.npy", "/home/test/b.npy"], ""),
        (["strain/a.npy", "interval/b.npy"], ""),
        (["a.npy", "b.npy"], ""),
    ],
)
def test_folders_named_for_splits_are_the_splits(files: list[str], wanted: str) -> None:
    names = {"t": "train", "v": "validation", "x": "test"}
    found = {name: split for split, subjects in splits_of_folders(at(*files)).items() for name in subjects}
    assert found == {Path(file).stem: names[letter] for file, letter in zip(files, wanted, strict=False)}


def test_folders_that_divide_a_person_or_leave_a_scan_out_are_refused() -> None:
    with pytest.raises(InputError, match=r"subject 'ann' has scans in folders of train and of validation.*x_val/b.h5"):
        splits_of_folders(at("x_train/a.h5", "x_val/b.h5", subject="ann"))
    with pytest.raises(InputError, match=r"other/c.h5: lies in no folder named for a split"):
        splits_of_folders(at("x_train/a.h5", "x_val/b.h5", "other/c.h5"))
