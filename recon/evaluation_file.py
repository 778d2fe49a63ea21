"""An evaluation as a file, so that a grid of them can be filled in several sittings."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from recon.evaluate import Evaluation, Row
from recon.inference import Physics
from recon.masks import MaskConfig
from recon.signal import SignalConfig


def save_evaluation(result: Evaluation, path: Path, facts: dict[str, Any]) -> None:
    """Write everything but the example images as JSON, whole or not at all; `facts` are kept beside it."""
    content = {
        "facts": facts,
        "size": list(result.physics.crop),
        "mask": result.physics.mask.model_dump(),
        "signal": result.physics.signal.model_dump(),
        "preset": result.preset,
        "methods": list(result.methods),
        "subject_of": dict(result.subject_of),
        "slices": [dataclasses.asdict(row) for row in result.slices],
        "volumes": [dataclasses.asdict(row) for row in result.volumes],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".partial")
    unfinished.write_text(json.dumps(content))
    unfinished.rename(path)


def saved_facts(path: Path) -> dict[str, Any] | None:
    """The facts that were given to `save_evaluation`; None if there is no such file."""
    return json.loads(path.read_text())["facts"] if path.is_file() else None


def load_evaluation(path: Path) -> Evaluation:
    """The evaluation in a file of `save_evaluation`, without its examples."""
    content = json.loads(path.read_text())
    height, width = content["size"]
    physics = Physics(
        (height, width), MaskConfig.model_validate(content["mask"]), SignalConfig.model_validate(content["signal"])
    )
    slices, volumes = ([Row(**row) for row in content[part]] for part in ("slices", "volumes"))
    return Evaluation(physics, content["preset"], tuple(content["methods"]), slices, volumes, (), content["subject_of"])
