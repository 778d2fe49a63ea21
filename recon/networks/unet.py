"""The U-Net of Hyun et al., without its k-space correction, which is `data_consistency: hard`."""

from __future__ import annotations

from torch import Tensor, nn

from larmor.recon.networks.trunk import num_groups, pad_to_multiple
from larmor.recon.recipe.settings import Norm


class UNetGenerator(nn.Module):
    """(batch, channels, height, width) zero-filled → the same shape, = input + network(input); MONAI's BasicUNet.

    Any size: the image is extended to a multiple of 16 and cut back. `width=64` is the published 64 to 1024 channels.
    The last layer starts at zero, so that an untrained generator returns its input.
    """

    def __init__(self, width: int, channels: int, norm: Norm) -> None:
        from monai.networks.nets.basic_unet import BasicUNet  # here: it takes seconds and half a gigabyte

        super().__init__()
        self.multiple = 16  # of which height and width are made
        norms = {"group": {"num_groups": num_groups(width)}, "instance": {"affine": True}}
        self.network = BasicUNet(
            spatial_dims=2,
            in_channels=channels,
            out_channels=channels,
            features=(width, 2 * width, 4 * width, 8 * width, 16 * width, width),
            norm=(norm, norms[norm]),
            bias=False,  # the normalisation that follows would cancel it
        )
        last = self.network.final_conv
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, zero_filled: Tensor, *_measurement: Tensor | None) -> Tensor:
        image, (height, width) = pad_to_multiple(zero_filled, self.multiple)
        return zero_filled + self.network(image)[..., :height, :width]
