"""The experiments that come with Larmor. Importing this file is cheap: the help of the command line lists them."""

from __future__ import annotations

import importlib.resources
from pathlib import Path


def shipped_experiments() -> dict[str, Path]:
    """Name → file of the experiments that come with Larmor."""
    folder = Path(str(importlib.resources.files("larmor.cluster.experiments")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
