"""A trained model in one call: of a directory, of a run, or the best of a sweep."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any


def load_model(
    place: str | Path,
    metric: str | None = None,
    trial: str | None = None,
    device: str = "cpu",
    prefer: str | None = None,
) -> Any:
    """The generator of a model directory, or the best one of a run or a sweep by its URL: a `torch.nn.Module`.

    It is ready to use (evaluation mode, on `device`), called with zero-filled images (batch, channels, height, width)
    float32 whose largest magnitude is 1; one with data consistency also takes the measured k-space and the mask, as
    `samples.Sample` has them. From a URL it is pulled, verified and not kept; `metric`, `trial` and `prefer`
    choose as `larmor pull` does. Raises `errors.InputError`.
    """
    from larmor.recon.models import model

    if (Path(place) / "config.yaml").is_file() and not (Path(place) / "checkpoints").exists():
        return model.load_model(Path(place), device).generator
    from larmor.cluster.runs.pull import pull_run
    from larmor.tuning.search.choice import choose_run

    choice = choose_run(str(place), metric, trial, prefer)
    with tempfile.TemporaryDirectory(prefix="larmor-") as scratch:
        pull_run(choice.run, choice.metric, Path(scratch) / "model", about=choice.about)
        return model.load_model(Path(scratch) / "model", device).generator
