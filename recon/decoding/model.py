"""A pulled model that decodes: its network with the configuration it was trained with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from larmor.recon.decoding.networks import Tigan, shape_of
from larmor.recon.decoding.trials import TrialShape, shape_of_trials
from larmor.recon.engines.device import choose_device
from larmor.recon.models.model import load_weights, read_recipe
from larmor.recon.recipe.decoding import DECODERS, DecodingConfig
from larmor.recon.recipe.recipe import Recipe
from larmor.storage.dataset.trials import Trials
from larmor.storage.objects.errors import InputError


@dataclass(frozen=True)
class DecodingModel:
    """A network ready to use, called with trials (batch, volume, voxel); what it was trained with and where it lies."""

    network: Tigan
    shape: TrialShape
    recipe: Recipe
    config: DecodingConfig
    record: dict[str, Any]
    folder: Path

    @torch.no_grad()
    def decode(self, bold: np.ndarray) -> np.ndarray:
        """(trial, 1, size, size) images of trials (trial, volume, voxel)."""
        device = next(self.network.parameters()).device
        return np.asarray(self.network(torch.from_numpy(bold).to(device)).cpu().numpy())


def load_decoding_model(folder: Path, device: torch.device | str = "cpu") -> DecodingModel:
    """Read a model directory made by `larmor pull`.

    Raises `InputError` as `recon.models.model.load_model` does, and for a model that reconstructs.
    """
    recipe, record = read_recipe(folder)
    if (config := recipe.decoding) is None:
        raise InputError(
            f"{folder}: system={recipe.system} reconstructs images and decodes no fMRI; evaluate it with `larmor "
            f"evaluate`. Systems that decode: {', '.join(DECODERS)}"
        )
    shapes: list[TrialShape] = []

    def build(weights: dict[str, Tensor]) -> Tigan:
        shapes.append(shape_of(weights))
        return Tigan(shapes[0], config)

    network = load_weights(folder, record, build).eval().to(choose_device(device))
    return DecodingModel(network, shapes[0], recipe, config, record, folder)


def check_fits(model: DecodingModel, trials: Trials) -> None:
    """Raises `InputError` for trials of another shape than the model was trained on."""
    found = shape_of_trials(trials)
    if found != model.shape:
        raise InputError(
            f"{model.folder}: was trained on {_described(model.shape)}, and the data set has {_described(found)}; "
            "train on trials of this shape"
        )


def _described(shape: TrialShape) -> str:
    return f"{shape.num_volumes} volumes of {shape.num_voxels} voxels with stimuli of {shape.size}×{shape.size}"
