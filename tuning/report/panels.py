"""Slices of the validation split as the best checkpoint of a run reconstructs them, as a PNG."""

from __future__ import annotations

import base64
import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from larmor.cluster.runs.run_folder import RunFolder
from larmor.storage.objects.errors import InputError

if TYPE_CHECKING:
    from larmor.recon.inference.slices_page import Stack

_NUM_SLICES = 3
TrustCode = Sequence[str | Path] | None  # where code that a model may run lies


def best_panels(run: RunFolder, metric: str, trust_code: TrustCode = None) -> tuple[str, str, Stack | None]:
    """Target, zero-filled, reconstruction and errors: (PNG as base64, caption, the slices to scroll); ("", reason,
    None) if they cannot be made."""
    with tempfile.TemporaryDirectory(prefix="larmor-") as scratch:
        picture = Path(scratch) / "panels.png"
        try:
            caption, stack = _write(run, metric, Path(scratch) / "model", picture, trust_code)
        except InputError as error:
            return "", f"No pictures: {error}.", None
        return base64.b64encode(picture.read_bytes()).decode(), caption, stack


def _write(run: RunFolder, metric: str, folder: Path, picture: Path, trust_code: TrustCode) -> tuple[str, Stack]:
    import torch

    from larmor.cluster.runs.pull import pull_run
    from larmor.recon.inference.figures import Example, comparison
    from larmor.recon.inference.inference import network_method, reconstruct_split
    from larmor.recon.inference.slices_page import example_stack
    from larmor.recon.models.model import load_model
    from larmor.storage.loading.config import open_reader
    from larmor.storage.loading.stacks import stack_starts

    pulled = pull_run(run, metric, folder)
    model = load_model(folder, trust_code=trust_code)
    data = model.recipe.data.model_copy(update={"disk_cache_bytes": 0, "memory_cache_bytes": 0})
    with contextlib.closing(open_reader(data, data.validation_split, **model.recipe.signal.beside)) as reader:
        info = reader.info
        starts = stack_starts(info, model.physics.stack)
        shown = starts[np.unique(np.linspace(0.25, 0.75, _NUM_SLICES) * (len(starts) - 1)).astype(int)]
        places = (shown[:, None] + np.arange(model.physics.stack)).reshape(-1)
        methods = {"reconstruction": network_method(model.generator)}
        (batch,) = reconstruct_split(methods, reader, places.tolist(), model.physics, len(places), torch.device("cpu"))
    examples = [
        Example(
            f"{info.volumes[int(info.volume[index])]}, slice {int(info.index[index])}",
            batch.target[place],
            {name: images[place] for name, images in batch.images.items()},
        )
        for place, index in enumerate(batch.indices)
        if index in shown
    ]
    comparison(examples, picture)
    caption = (
        f"Split {data.validation_split}, step {pulled.checkpoint.step} of {run.url}. Titles: PSNR and SSIM of the "
        "slice, preset paper."
    )
    return caption, example_stack(f"step {pulled.checkpoint.step}", examples)
