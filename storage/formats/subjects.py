"""Who a scan shows: as the user says, or by its name; and names that look like several scans of one person."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from larmor.storage.formats.folder_names import folder_of
from larmor.storage.formats.source import SourceRef
from larmor.storage.objects.errors import InputError

HOW = "a regular expression of the person's part of a path, or the number of folders above a file"


@dataclass(frozen=True)
class Candidate:
    """A scan, and whether its header or its BIDS name says who it shows; else its subject is only its name."""

    ref: SourceRef
    is_known: bool


def bids_subject(name: str) -> str | None:
    """`sub-XXX` of a BIDS name such as `sub-XXX_ses-1_T1w`."""
    match = re.match(r"(sub-[0-9A-Za-z]+)(?:_|$)", name)
    return match[1] if match else None


def name_subjects(refs: Sequence[SourceRef], rule: str) -> list[SourceRef]:
    """The scans with their subjects as `--subject rule` says, see `HOW`.

    Of an expression that matches a path several times, the last match counts, and of a match its first group.

    Raises `InputError` if it is none, says nothing of a file, or divides the files of one scan.
    """
    subject_of = _by_folder(rule, int(rule)) if rule.isdecimal() else _by_pattern(rule)
    named = []
    for ref in refs:
        subjects = sorted({subject_of(file) for file in ref.files})
        if len(subjects) > 1:
            raise InputError(
                f"--subject {rule}: gives files of one scan to several subjects: {', '.join(subjects)} "
                f"({ref.files[0]}, …); choose another level or expression ({HOW})"
            )
        named.append(replace(ref, subject=subjects[0]))
    return named


def _by_folder(rule: str, level: int) -> Callable[[str], str]:
    if level < 1:
        raise InputError(f"--subject {rule}: a number of folders above a file is at least 1 ({HOW})")

    def subject_of(file: str) -> str:
        folder = folder_of(file)
        if level > len(folder):
            raise InputError(f"--subject {rule}: {file} lies in {len(folder)} folders; choose a smaller number")
        return folder[-level]

    return subject_of


def _by_pattern(rule: str) -> Callable[[str], str]:
    try:
        pattern = re.compile(rule)
    except re.error as error:
        raise InputError(f"--subject {rule}: is no regular expression ({error}); give {HOW}") from error

    def subject_of(file: str) -> str:
        matches = list(pattern.finditer(file))
        if not matches:
            raise InputError(f"--subject {rule}: does not match {file}; give {HOW}, or leave the file out")
        found = next((match[1] if pattern.groups else match[0] for match in reversed(matches) if match[0]), None)
        if not found:
            raise InputError(f"--subject {rule}: matches nothing in {file}; give {HOW}")
        return found

    return subject_of


def warn_of_alike(refs: Sequence[SourceRef]) -> str | None:
    """A warning if names look like several scans of one person that count as several: alike but for one word, and
    others alike but for the same words.
    """
    words = {ref.name: re.findall(r"[^-_. ]+", ref.name) for ref in refs}
    groups: dict[tuple[int, tuple[str, ...]], dict[str, SourceRef]] = {}
    for ref in refs:
        for place in range(len(words[ref.name])):
            rest = tuple(words[ref.name][:place] + words[ref.name][place + 1 :])
            if rest:
                groups.setdefault((place, rest), {})[words[ref.name][place]] = ref
    seen: set[tuple[int, str, str]] = set()
    for (place, _), group in groups.items():
        first, *others = sorted(group)
        # every pair is seen if the first of a group is paired with all others of it, and groups are the same
        pairs = {(place, first, other) for other in others}
        if alike := sorted(seen & pairs):
            one, other = group[first], group[alike[0][2]]
            return (
                f"warning: {one.name}, {other.name} and others look like several scans of one person, but count as "
                f"different subjects, who may come into different splits; name the subjects with --subject ({HOW})"
            )
        seen |= pairs
    return None
