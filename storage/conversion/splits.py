"""Which subject belongs to which split. A subject is never in two splits; only `test` may have none."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import yaml

from larmor.storage.dataset.dataset import SPLITS
from larmor.storage.formats.folder_names import common_folder
from larmor.storage.formats.source import SourceRef
from larmor.storage.objects.errors import InputError

_FOLDER = re.compile(r"(?:.*[_-])?(?:(train)(?:ing)?|(val)(?:id|idation)?|(test))(?:_batch_\d+)?", re.IGNORECASE)


def assign_splits(subjects: Iterable[str], held_out: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Subject → split. `held_out` names the subjects of `validation` and `test`; the others train.

    A subject that is given several times counts once: all its volumes go the same way.

    Without any in either, about a tenth of the subjects (at least one) goes to each, chosen by a hash of the name,
    so that adding a subject moves few others. Raises `InputError` if a named subject is not there, is named
    twice, or none is named and there are fewer than three.
    """
    subjects = list(dict.fromkeys(subjects))
    if not any(held_out.values()):
        if len(subjects) < 3:
            raise InputError(
                f"{len(subjects)} subject(s) cannot be divided into train, validation and test; give at least 3, "
                "name them with --validation and --test, or name the subjects with --subject"
            )
        ordered = sorted(subjects, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
        count = max(1, len(ordered) // 10)
        held_out = {"test": ordered[:count], "validation": ordered[count : 2 * count]}
    assigned: dict[str, str] = {}
    for split, names in held_out.items():
        if split not in SPLITS:
            raise InputError(f"'{split}' is not a split; the splits are {', '.join(SPLITS)}")
        for name in names:
            if name not in subjects:
                raise InputError(f"{split} subject '{name}' is not among the sources: {', '.join(sorted(subjects))}")
            if name in assigned:
                raise InputError(f"subject '{name}' is named for {assigned[name]} and for {split}; choose one")
            assigned[name] = split
    return {name: assigned.get(name, "train") for name in subjects}


def wanted_splits(split_of: Mapping[str, str]) -> list[str]:
    """The splits that a data set must have: those of its subjects, and in any case the ones that a training needs."""
    return [split for split in SPLITS if split != "test" or split in split_of.values()]


def splits_of_folders(refs: Sequence[SourceRef]) -> dict[str, list[str]]:
    """Split → subjects, where scans lie in folders named for splits, such as fastMRI's `multicoil_train` and `…_val`.

    The lowest such folder above a scan counts. Empty where there are no two such splits.

    Raises `InputError` if some scans lie elsewhere, or those of one subject in folders of two splits.
    """
    split_of = {ref: _split_of_folder(ref) for ref in refs}
    if len({split for split in split_of.values() if split}) < 2:
        return {}
    subjects: dict[str, str] = {}
    for ref, split in split_of.items():
        if split is None:
            raise InputError(
                f"{ref.files[0]}: lies in no folder named for a split (…_train, …_val, …_test), as others do; move it, "
                "or name the held-out subjects with --validation and --test, or --splits"
            )
        if (other := subjects.setdefault(ref.subject, split)) != split:
            raise InputError(
                f"subject '{ref.subject}' has scans in folders of {other} and of {split} ({ref.files[0]}), but no "
                "subject may be in two splits; leave scans out, or name the held-out subjects with --validation and "
                "--test"
            )
    return {split: [name for name, its in subjects.items() if its == split] for split in SPLITS}


def _split_of_folder(ref: SourceRef) -> str | None:
    matches = (_FOLDER.fullmatch(part) for part in reversed(common_folder(ref.files)))
    match = next((match for match in matches if match), None)
    return None if match is None else next(split for split, found in zip(SPLITS, match.groups(), strict=True) if found)


def read_splits_file(path: Path) -> dict[str, list[str]]:
    """A YAML file such as `{test: [nondef3], validation: [csi3]}`."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not YAML ({error})") from error
    if not isinstance(content, dict) or not all(isinstance(names, list) for names in content.values()):
        raise InputError(f"{path}: expected a mapping of split to a list of subjects, such as 'test: [csi3]'")
    return {str(split): [str(name) for name in names] for split, names in content.items()}
