"""Files on disk that appear whole or not at all."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def write_atomically(target: Path, data: bytes, overwrite: bool) -> None:
    """Put `data` in place as `target`, making its folder.

    Raises `FileExistsError` if it is there, unless `overwrite`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial-{uuid.uuid4().hex[:8]}")
    try:
        partial.write_bytes(data)
        if overwrite:
            partial.replace(target)
        else:
            os.link(partial, target)  # fails if the target exists, unlike rename
    finally:
        partial.unlink(missing_ok=True)
