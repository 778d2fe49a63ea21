"""Which files the arguments of a command name, and which of them are passed over."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from larmor.storage.formats.remote_objects import is_there, list_objects, object_facts
from larmor.storage.formats.suffixes import EXPECTED, data_of, format_of, is_header, suffix_of
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.urls import is_remote

_NAMED = 3  # files of one kind that are passed over and named; the others are counted


@dataclass(frozen=True)
class Listing:
    """What an argument names: `files` that may hold scans by their names, others, and hidden ones.

    `is_one`: the argument is a file, not a folder or pattern.
    """

    argument: str
    files: tuple[str, ...]
    others: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    is_one: bool = False

    def refuse(self) -> None:
        """Raises `InputError`: there are no scans."""
        if self.is_one:
            raise InputError(f"{self.argument}: is no DICOM image; expected {EXPECTED}")
        place = "matches this pattern" if is_pattern(self.argument) else "in this folder"
        raise InputError(f"{self.argument}: no volume {place}; expected {EXPECTED}")


def list_argument(argument: str) -> Listing:
    """What a file, folder (searched whole), pattern or `s3://` URL names.

    Raises `InputError` if it is not there, or is a file of an unknown kind.
    """
    if is_remote(argument):
        objects, is_one = list_objects(argument, is_pattern=is_pattern(argument))
        found = [(name, _is_hidden(name.removeprefix(argument))) for name in objects]
    else:
        found, is_one = _list_files(argument)
    if is_one:
        return Listing(argument, (_named_file(argument, found[0][0]),), is_one=True)
    shown = [file for file, is_hidden in found if not is_hidden]
    return Listing(
        argument,
        files=tuple(file for file in shown if format_of(file)),
        others=tuple(file for file in shown if not format_of(file)),
        hidden=tuple(file for file, is_hidden in found if is_hidden),
    )


def _named_file(argument: str, file: str) -> str:
    if is_header(file):
        names = data_of(file)
        known = object_facts(names) if is_remote(file) else [os.path.exists(name) or None for name in names]
        there = [name for name, fact in zip(names, known, strict=True) if fact]
        if not there:
            raise InputError(
                f"{argument}: is the header of {' or '.join(names)}, which is not there; put it in the same folder"
            )
        return there[0]
    if format_of(file) is None:
        raise InputError(f"{argument}: not a file of a known kind; expected {EXPECTED}")
    return file


def _list_files(argument: str) -> tuple[list[tuple[str, bool]], bool]:
    """The files below a folder or matching a pattern, and whether each is hidden; or the one file, and True."""
    path = Path(argument).expanduser()
    if path.is_file():
        return [(str(path), False)], True
    if path.is_dir():
        return _below(path), False
    if not is_pattern(argument):
        raise InputError(f"{argument}: no such file or folder")
    found: list[tuple[str, bool]] = []
    for match in sorted(glob.glob(str(path), recursive=True)):
        found += _below(Path(match)) if os.path.isdir(match) else [(match, False)]
    return found, False


def _below(folder: Path) -> list[tuple[str, bool]]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [(str(path), _is_hidden(path.relative_to(folder).as_posix())) for path in paths]


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def is_pattern(argument: str) -> bool:
    """Whether an argument is no file or folder, and holds `*`, `?` or `[`."""
    if not any(character in argument for character in "*?["):
        return False
    return not (is_there(argument) if is_remote(argument) else os.path.exists(argument))


def describe_passed_over(files: Iterable[str], hidden: Iterable[str]) -> str:
    """One line about files that are skipped: each kind is counted, and its first ones are named."""
    kinds: dict[tuple[int, str, str], list[str]] = {}  # by rank and what one, and several, are called
    for file in files:
        if is_header(file):
            kind = (2, "header without its data", "headers without their data")
        elif format_of(file) == "dicom":
            kind = (1, "that is no DICOM image", "that are no DICOM images")
        else:
            kind = (0, suffix_of(file), suffix_of(file))
        kinds.setdefault(kind, []).append(file)
    if names := list(hidden):
        kinds[3, "hidden", "hidden"] = names
    ordered = sorted(kinds.items(), key=lambda item: (item[0][0], -len(item[1]), item[0]))
    return "skipped: " + ", ".join(
        f"{len(names):,} {one if len(names) == 1 else several} ({_first(names)})"
        for (_, one, several), names in ordered
    )


def _first(files: list[str]) -> str:
    names = [os.path.basename(file) for file in sorted(files)[:_NAMED]]
    return ", ".join([*names, "…"] if len(files) > _NAMED else names)
