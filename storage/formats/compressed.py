"""Files as their names say that they are compressed: plain, by gzip (`.gz`, `.mgz`) or by bzip2."""

from __future__ import annotations

import bz2
import gzip
from pathlib import Path
from typing import IO, Any

_OPENERS: dict[str, Any] = {".gz": gzip.open, ".mgz": gzip.open, ".bz2": bz2.open}


def open_unpacked(path: Path) -> IO[bytes]:
    """The content, unpacked as it is read."""
    opener = _OPENERS.get(path.suffix.lower(), Path.open)
    file: IO[bytes] = opener(path, "rb")
    return file


def read_to_end(path: Path, file: IO[bytes]) -> None:
    """Read what is left of a compressed file, at whose end a checksum stands, which raises as reading does."""
    while path.suffix.lower() in _OPENERS and file.read(2**20):
        pass
