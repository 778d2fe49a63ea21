"""Which subject belongs to which split. A subject is never in two splits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import yaml

from storage.dataset import SPLITS
from storage.errors import InputError


def assign_splits(subjects: Iterable[str], held_out: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Subject → split. `held_out` names the subjects of `validation` and `test`; the others train.

    A subject that is given several times counts once: all its volumes go the same way.

    Without any, about a tenth of the subjects (at least one) goes to each, chosen by a hash of the name,
    so that adding a subject moves few others. Raises `InputError` if a named subject is not there, is named
    twice, or none is named and there are fewer than three.
    """
    subjects = list(dict.fromkeys(subjects))
    if not any(held_out.values()):
        if len(subjects) < 3:
            raise InputError(
                f"{len(subjects)} subject(s) cannot be divided into train, validation and test; give at least 3, "
                "name them with --validation and --test, or say who is who with --subject"
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
