"""Folders of files and of objects, and short names that tell them apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path

from larmor.storage.objects.urls import is_remote

Folder = tuple[str, ...]  # the parts of its path, or of its bucket and prefix


def folder_of(file: str) -> Folder:
    """Where a path or URL lies."""
    if is_remote(file):
        return tuple(file.partition("://")[2].split("/")[:-1])
    return Path(file).absolute().parts[1:-1]


def common_folder(files: Iterable[str]) -> Folder:
    """The lowest folder that holds all files."""
    return shared_start([folder_of(file) for file in files])


def shared_start(folders: Sequence[Folder]) -> Folder:
    """What all begin with."""
    pairs = zip(min(folders), max(folders), strict=False)  # what the first and the last in order share, all share
    return tuple(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def short_names(folders: Iterable[Folder]) -> dict[Folder, str]:
    """A name for each folder: its last part, and as many before it as tell it from the others; empty for a root."""
    shown = dict.fromkeys(folders, 1)
    while True:
        names = {folder: "-".join(folder[-count:]) for folder, count in shown.items()}
        count = Counter(names.values())
        alike = [folder for folder in shown if count[names[folder]] > 1 and shown[folder] < len(folder)]
        if not alike:
            return names
        for folder in alike:
            shown[folder] += 1
