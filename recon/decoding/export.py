"""A model that decodes, for other programs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from larmor.recon.decoding.model import DecodingModel
from larmor.recon.models.export import Exported, Program, check_suffix, quiet, write_program
from larmor.storage.formats.provenance import larmor_version

_LARGEST = 4096  # trials of a batch


def export_decoding_model(model: DecodingModel, path: Path) -> Exported:
    """Write `path`, ONNX or `torch.export` by its suffix: trials (batch, volume, voxel) → images.

    The file is read back, and must agree with the model to 1e-4 on random trials, in batches of one and more. Raises
    `InputError` as `recon.models.export.write_program` does.
    """
    check_suffix(path)
    network, shape = model.network.cpu(), (model.shape.num_volumes, model.shape.num_voxels)
    batch = torch.export.Dim("batch", min=1, max=_LARGEST)
    with torch.no_grad(), quiet():
        program = torch.export.export(network, (torch.zeros(2, *shape),), dynamic_shapes=({0: batch},))

    def errors_of(run: Program) -> list[float]:
        trials = [torch.randn(size, *shape, generator=torch.Generator().manual_seed(size)) for size in (1, 3)]
        return [float(np.abs(run({"bold": part}) - model.decode(part.numpy())).max()) for part in trials]

    about = {
        "larmor": larmor_version(),
        "system": model.recipe.system,
        "inputs": {"bold": ("batch", *shape)},
        "output": "decoded images (batch, 1, height, width) in [0, 1]",
        "units": "BOLD without its linear trend, mean 0 and deviation 1 within each run",
        "model": model.record,
    }
    errors = write_program(program, path, about, errors_of)
    return Exported(path, {"bold": ("batch", *shape)}, max(errors), len(errors))
