"""What stands beside a volume: where it comes from, and under which licence."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_about(folder: Path, subject: str, about: Mapping[str, Any]) -> Path:
    """Write what is known of a volume to `<subject>.json` beside it, with the version of Larmor."""
    try:
        version = importlib.metadata.version("larmor")
    except importlib.metadata.PackageNotFoundError:
        version = "not installed"
    path = folder / f"{subject}.json"
    path.write_text(json.dumps({**about, "larmor": version}, indent=2) + "\n", encoding="utf-8")
    return path
