"""Files as their names say that they are compressed: plain, by gzip (`.gz`, `.mgz`) or by bzip2."""

from __future__ import annotations

import bz2
import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

_OPENERS: dict[str, Any] = {".gz": gzip.open, ".mgz": gzip.open, ".bz2": bz2.open}


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The content, unpacked as it is read. Who leaves without an error has read to the end, where a checksum stands."""
    opener = _OPENERS.get(path.suffix.lower())
    with opener(path) if opener else path.open("rb") as file:
        yield file
        while opener and file.read(2**20):
            pass
