"""An evaluation as files, so that a grid of them can be filled in several sittings."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from larmor.recon.evaluation.evaluate import Evaluation, Row
from larmor.recon.inference.figures import Example
from larmor.recon.inference.inference import Physics
from larmor.recon.recipe.mask_config import MaskConfig
from larmor.recon.recipe.signal import SignalConfig

Facts = Mapping[str, object]  # what the figures depend on beside methods and data, such as the code's hash
_TARGET = "target"
_WHITE = 2**16 - 1  # example images are shown in [0, 1], and kept as uint16


def save_evaluation(result: Evaluation, path: Path, facts: Facts) -> None:
    """Write figures and `facts` as JSON, whole or not at all, and the example images beside it as .npz."""
    content = {
        "facts": facts,
        "size": list(result.physics.crop),
        "mask": result.physics.mask.model_dump(),
        "signal": result.physics.signal.model_dump(),
        "stack": result.physics.stack,
        "preset": result.preset,
        "methods": list(result.methods),
        "subject_of": dict(result.subject_of),
        "num_constant": result.num_constant,
        "every": result.every,
        "slices": [dataclasses.asdict(row) for row in result.slices],
        "volumes": [dataclasses.asdict(row) for row in result.volumes],
        "examples": [example.title for example in result.examples],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    images = {
        f"{number}/{name}": np.round(image.clip(0, 1) * _WHITE).astype(np.uint16)
        for number, example in enumerate(result.examples)
        for name, image in {_TARGET: example.target, **example.images}.items()
    }
    np.savez_compressed(path.with_suffix(".npz"), **images)  # type: ignore[arg-type]
    unfinished = path.with_suffix(".partial")
    unfinished.write_text(json.dumps(content))
    unfinished.rename(path)


def saved_facts(path: Path) -> Facts | None:
    """The facts that were given to `save_evaluation`; None if there is no such file."""
    return json.loads(path.read_text())["facts"] if path.is_file() else None


def load_evaluation(path: Path) -> Evaluation:
    """The evaluation in the files of `save_evaluation`."""
    content = json.loads(path.read_text())
    height, width = content["size"]
    physics = Physics(
        (height, width),
        MaskConfig.model_validate(content["mask"]),
        SignalConfig.model_validate(content["signal"]),
        content.get("stack", 1),
    )
    slices, volumes = ([Row(**row) for row in content[part]] for part in ("slices", "volumes"))
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as images:
        shown = {name: images[name].astype(np.float32) / _WHITE for name in images.files}
    examples = [
        Example(title, shown[f"{number}/{_TARGET}"], {name: shown[f"{number}/{name}"] for name in content["methods"]})
        for number, title in enumerate(content["examples"])
    ]
    return Evaluation(
        physics,
        content["preset"],
        tuple(content["methods"]),
        slices,
        volumes,
        examples,
        content["subject_of"],
        num_constant=content.get("num_constant", 0),
        every=content.get("every", 1),
    )
