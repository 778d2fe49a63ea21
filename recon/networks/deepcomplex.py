"""DeepcomplexMRI's block: complex convolutions over the images of all coils (Wang et al., 2020)."""

from __future__ import annotations

from torch import Tensor, nn

from larmor.recon.networks.complex_conv import ComplexConv2d

_INNER = 3  # convolutions between the first and the last one


class DeepComplexBlock(nn.Module):
    """(batch, 2 · coil, height, width), real parts first → the same shape, = input + five complex convolutions; any
    size.

    ReLU on real and imaginary parts alike, none after the last convolution. With `width=32` and twelve coils a block
    has 69,400 parameters, the published network of ten blocks, each followed by data consistency, 694,000. There is no
    normalisation, and no sensitivity map: the convolutions learn what the coils see, in their order.

    Source: the authors' code, CedricChing/DeepMRI.
    """

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.multiple = 1  # of which height and width are made
        coils = channels // 2
        layers: list[nn.Module] = [ComplexConv2d(coils, width), nn.ReLU()]
        for _ in range(_INNER):
            layers += [ComplexConv2d(width, width), nn.ReLU()]
        self.layers = nn.Sequential(*layers, ComplexConv2d(width, coils))

    def forward(self, image: Tensor, *_measurement: Tensor | None) -> Tensor:
        return image + self.layers(image)
