"""The networks of TIGAN: fMRI or an image to a code, a code to an image, and the critic.

After Huang et al., IEEE TCDS 14:1104 (2022); of the sizes nothing is public, so they are ours. Group norm stands in
place of batch norm, so that a result does not depend on the other trials of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from larmor.recon.decoding.trials import SMALLEST, TrialShape
from larmor.recon.networks.trunk import norm_layer
from larmor.recon.recipe.decoding import DecodingConfig


class BoldEncoder(nn.Module):
    """The BOLD series (batch, volume, voxel) of a trial → its code: the last state of an LSTM, and a dense layer."""

    def __init__(self, num_voxels: int, config: DecodingConfig) -> None:
        super().__init__()
        self.lstm = nn.LSTM(num_voxels, config.units, batch_first=True)
        self.dense = nn.Linear(config.units, config.code)

    def forward(self, bold: Tensor) -> Tensor:
        states, _ = self.lstm(bold)
        code: Tensor = self.dense(states[:, -1])
        return code


class ImageEncoder(nn.Module):
    """An image (batch, 1, size, size) → `outputs` numbers: 4×4 convolutions of stride 2 down to 4×4, a dense layer."""

    def __init__(self, num_levels: int, width: int, outputs: int) -> None:
        super().__init__()
        channels = [1, *(width * 2**level for level in range(num_levels))]
        layers: list[nn.Module] = []
        for inner, outer in pairwise(channels):
            layers += [nn.Conv2d(inner, outer, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.dense = nn.Linear(channels[-1] * SMALLEST**2, outputs)

    def forward(self, image: Tensor) -> Tensor:
        found: Tensor = self.dense(self.body(image))
        return found


class ImageDecoder(nn.Module):
    """A code (batch, code) → an image (batch, 1, size, size) in [0, 1]: the mirror of `ImageEncoder`."""

    def __init__(self, num_levels: int, config: DecodingConfig) -> None:
        super().__init__()
        channels = [config.width * 2**level for level in reversed(range(num_levels))]
        self.dense = nn.Linear(config.code, channels[0] * SMALLEST**2)
        layers: list[nn.Module] = []
        for inner, outer in pairwise(channels):
            layers += [nn.ConvTranspose2d(inner, outer, 4, stride=2, padding=1, bias=False)]
            layers += [norm_layer("group", outer), nn.ReLU()]
        self.body = nn.Sequential(nn.ReLU(), *layers, nn.ConvTranspose2d(channels[-1], 1, 4, stride=2, padding=1))

    def forward(self, code: Tensor) -> Tensor:
        start = self.dense(code).unflatten(1, (-1, SMALLEST, SMALLEST))
        return torch.sigmoid(self.body(start))


class Tigan(nn.Module):
    """Trials → images (batch, 1, size, size). With the stimuli as well, as in training, what `unpacked` takes apart.

    One network for one engine: the image encoder is trained with it and helps the decoder, and is not used afterwards.
    """

    def __init__(self, shape: TrialShape, config: DecodingConfig) -> None:
        super().__init__()
        self.register_buffer("num_volumes", torch.tensor([float(shape.num_volumes)]))  # for who loads the weights
        self.bold = BoldEncoder(shape.num_voxels, config)
        self.image = ImageEncoder(shape.num_levels, config.width, config.code)
        self.decoder = ImageDecoder(shape.num_levels, config)

    def forward(self, bold: Tensor, stimulus: Tensor | None = None) -> Tensor:
        code = self.bold(bold)
        decoded: Tensor = self.decoder(code)
        if stimulus is None:
            return decoded
        image_code = self.image(stimulus)
        again = self.decoder(image_code)
        # one tensor, since that is what an engine gives and takes
        return torch.cat([decoded.flatten(1), again.flatten(1), image_code, code], dim=1)


@dataclass(frozen=True)
class Packed:
    """What `Tigan` makes of trials and their stimuli: the decoded images, the stimuli encoded and decoded again, and
    the codes (batch, code) of both."""

    decoded: Tensor
    again: Tensor
    image_code: Tensor
    bold_code: Tensor


def unpacked(output: Tensor, size: int) -> Packed:
    """The parts of `Tigan`'s output in training, for stimuli of `size`."""
    pixels = size**2
    code = (output.shape[1] - 2 * pixels) // 2
    decoded, again, image_code, bold_code = output.split([pixels, pixels, code, code], dim=1)
    decoded, again = (image.unflatten(1, (1, size, size)) for image in (decoded, again))
    return Packed(decoded, again, image_code, bold_code)


def build_critic(shape: TrialShape, config: DecodingConfig) -> nn.Module:
    """Stimuli or decoded images → scores (batch, 1)."""
    return ImageEncoder(shape.num_levels, config.width, 1)


def shape_of(weights: Mapping[str, Tensor]) -> TrialShape:
    """The shape of the trials that these weights of `Tigan` were trained on. Raises `KeyError` for other weights."""
    num_voxels = weights["bold.lstm.weight_ih_l0"].shape[1]
    num_levels = sum(name.startswith("image.body.") and name.endswith(".weight") for name in weights)
    return TrialShape(int(weights["num_volumes"].item()), num_voxels, SMALLEST * 2**num_levels)
