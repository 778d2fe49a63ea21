"""The example of docs/own_parts.md, as a user has it: a folder with a package and an experiment."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

PAGE = Path(__file__).resolve().parents[1] / "docs" / "own_parts.md"


def write_lab(folder: Path) -> Path:
    """`folder`/mylab and `folder`/own.yaml; returns the latter."""
    page = PAGE.read_text()
    code, experiment = (re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)[0] for language in ("python", "yaml"))
    (folder / "mylab").mkdir(parents=True)
    (folder / "mylab" / "__init__.py").touch()
    (folder / "mylab" / "parts.py").write_text(code)
    assert {"code", "system", "mask", "training", "sweep"} <= set(yaml.safe_load(experiment))
    (folder / "own.yaml").write_text(experiment)
    return folder / "own.yaml"
