"""Names that a store, an archive or a header gave, as paths on this machine: never out of their folder."""

from __future__ import annotations

from pathlib import Path

from larmor.storage.objects.errors import InputError


def inside(folder: Path, name: str) -> Path:
    """The path of the file `name`, with forward slashes, below `folder`.

    Raises `InputError` for a name that leads elsewhere (`..`, an absolute path) or is not a file's.
    """
    if leads_out(name) or any(part in ("", ".") for part in name.split("/")):
        raise InputError(f"{name!r}: is not the name of a file below {folder}; do not trust its author")
    return folder / name


def leads_out(name: str) -> bool:
    """Whether a relative path, with forward slashes, may lie outside of the folder that it is relative to."""
    return name.startswith("/") or "\0" in name or ".." in name.split("/")
