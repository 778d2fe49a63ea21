"""Where Larmor keeps its own files on this machine: `LARMOR_HOME`, or the user's folders of the platform."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def data_home() -> Path:
    """The folder of what is kept: the embedded store, a cluster's token."""
    return _given_home() or platformdirs.user_data_path("larmor")


def cache_home() -> Path:
    """The folder of what can be fetched again."""
    return _given_home() or platformdirs.user_cache_path("larmor")


def _given_home() -> Path | None:
    home = os.environ.get("LARMOR_HOME")
    return Path(home).expanduser() if home else None
