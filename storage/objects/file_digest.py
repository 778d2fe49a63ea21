"""The checksum of a file on disk."""

from __future__ import annotations

import hashlib
from pathlib import Path


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Hexadecimal digest of the file's bytes, by SHA-256 unless told otherwise."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
