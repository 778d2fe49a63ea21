"""What travels with a job: Larmor's own source and the experiment. The cluster brings the dependencies."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

from pydantic import BaseModel

from cluster.experiment import dump_yaml

PACKED = ("storage", "recon", "cluster", "tuning", "larmor")


def write_package(folder: Path, experiment: BaseModel) -> None:
    """Make `folder` a working directory in which `python -m larmor train experiment.yaml` runs this very Larmor."""
    for name in PACKED:
        found = importlib.util.find_spec(name)
        assert found is not None
        assert found.origin is not None
        source = Path(found.origin)
        if source.name == "__init__.py":
            shutil.copytree(source.parent, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / source.name)
    (folder / "experiment.yaml").write_text(dump_yaml(experiment))
