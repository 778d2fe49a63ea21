"""Scans whose files are named alike in several folders: names that tell them apart, and who they show."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from larmor.storage.formats.folder_names import Folder, common_folder, shared_start, short_names
from larmor.storage.formats.source import SourceRef
from larmor.storage.formats.subjects import Candidate

# folders of these names hold a contrast, session or split, not a person
_KINDS = (
    *("t1", "t2", "pd", "flair", "swi", "dwi", "dti", "adc", "asl", "bold", "fmri", "mra", "tof", "mprage", "mp2rage"),
    *("space", "tse", "gre", "anat", "func", "perf", "fmap", "restore", "brain", "scan", "scans", "mr", "mri", "nifti"),
    *("ses", "session", "visit", "run", "echo", "raw", "image", "images", "data", "train", "val", "validation", "test"),
)
_KIND = re.compile(rf"({'|'.join(_KINDS)})(w|c|ce|gd|star|rho|map)?\d*")
_NAMED = 3


def tell_apart(found: Sequence[Candidate], say: Callable[[str], object]) -> list[Candidate]:
    """The scans, those of one name renamed: the folders in which they differ stand before it.

    Of these, those not known to show somebody show the person for whom a folder is named: the uppermost in which they
    differ, unless all such are named for contrasts or sessions; other scans in that folder show the same person.
    Better two persons are taken for one, who then train together, than one for two. `say` is told.
    """
    by_name: dict[str, list[Candidate]] = {}
    for one in found:
        by_name.setdefault(one.ref.name, []).append(one)
    alike = [group for group in by_name.values() if len({common_folder(one.ref.files) for one in group}) > 1]
    if not alike:
        return list(found)
    names: dict[SourceRef, str] = {}
    persons: set[Folder] = set()
    for group in alike:
        folders = [common_folder(one.ref.files) for one in group]
        names |= {one.ref: label for one, label in zip(group, _labels(folders), strict=True)}
        persons |= {person for one, person in zip(group, _persons(folders), strict=True) if person and not one.is_known}
    subjects = short_names(persons)

    def renamed(one: Candidate) -> Candidate:
        label, folder = names.get(one.ref, ""), common_folder(one.ref.files)
        # the uppermost, should one person's folder lie in another's
        above = next((folder[:depth] for depth in range(len(folder) + 1) if folder[:depth] in persons), None)
        subject = one.ref.subject if one.is_known or above is None else subjects[above]
        ref = replace(one.ref, name=f"{label}-{one.ref.name}" if label else one.ref.name, subject=subject)
        return Candidate(ref, one.is_known or above is not None or one.ref in names)

    told = [renamed(one) for one in found]
    if guessed := {now.ref.subject for one, now in zip(found, told, strict=True) if now.is_known and not one.is_known}:
        say(_describe(guessed, bool(persons)))
    return told


def _describe(subjects: Iterable[str], by_folder: bool) -> str:
    shown = sorted(subjects)
    more = ", …" * (len(shown) > _NAMED)
    return (
        "note: files in several folders are named alike; subjects are named for their "
        f"{'folders' if by_folder else 'files'} ({', '.join(shown[:_NAMED])}{more}); if these are not the "
        "subjects, name them with --subject"
    )


def _labels(folders: Sequence[Folder]) -> list[str]:
    """What tells the folders apart: without the parts that all begin or end with."""
    start = len(shared_start(folders))
    rests = [folder[start:] for folder in folders]
    end = len(shared_start([rest[::-1] for rest in rests]))
    return ["-".join(rest[: len(rest) - end]) for rest in rests]


def _persons(folders: Sequence[Folder]) -> list[Folder | None]:
    """For each folder the one above it, or itself, that is named for a person; None where there is none."""
    start = len(shared_start(folders))
    for depth in range(start, max(map(len, folders))):
        names = {folder[depth] for folder in folders if len(folder) > depth}
        if len(names) > 1 - (depth == start) and not all(map(_is_kind, names)):
            return [folder[: depth + 1] if len(folder) > depth else None for folder in folders]
    return [None] * len(folders)


def _is_kind(name: str) -> bool:
    words = [word for word in re.split(r"[^0-9a-z]+", name.lower()) if word and not word.isdigit()]
    return bool(words) and all(_KIND.fullmatch(word) for word in words)
