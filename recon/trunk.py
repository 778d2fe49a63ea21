"""The ResNet-50 trunk that generator and critic share (Figs. 2 and 3), from MONAI's bottleneck blocks.

MONAI is imported where networks are built, not before: it takes seconds and 200 MB, which processes that only
read a configuration need not pay.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

BLOCKS = (3, 4, 6, 3)
EXPANSION = 4  # of a bottleneck block: output channels / inner channels
Norm = Literal["group", "instance"]


def norm_of(kind: Norm, channels: int) -> tuple[str, dict[str, object]]:
    """MONAI's name and arguments of a normalisation with as many parameters as batch norm.

    Neither depends on the other images of a batch, so that a result does not depend on batch or world size.
    """
    if kind == "group":
        return "group", {"num_groups": next(groups for groups in (8, 4, 2, 1) if channels % groups == 0)}
    return "instance", {"affine": True}


def norm_layer(kind: Norm, channels: int) -> nn.Module:
    from monai.networks.layers.utils import get_norm_layer

    return get_norm_layer(name=norm_of(kind, channels), spatial_dims=2, channels=channels)


class ResNet50Trunk(nn.Module):
    """(batch, in_channels, height, width) → feature maps at 1/2, 1/4, 1/8, 1/16 and 1/32 of the size,
    with `width` × (1, 4, 8, 16, 32) channels. `width=64` is ResNet-50: 23.5 M parameters.

    Source: the paper's Figs. 2 and 3; He et al., Deep residual learning for image recognition.
    """

    def __init__(self, in_channels: int, width: int, norm: Norm) -> None:
        super().__init__()
        self.channels = (width, *(width * EXPANSION * 2**stage for stage in range(4)))
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, width, kernel_size=7, stride=2, padding=3, bias=False),
            norm_layer(norm, width),
            nn.ReLU(inplace=True),
        )
        self.pool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        inputs = self.channels[:1] + self.channels[1:4]
        self.stages = nn.ModuleList(
            _stage(inputs[stage], width * 2**stage, num_blocks, stride=1 if stage == 0 else 2, norm=norm)
            for stage, num_blocks in enumerate(BLOCKS)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: Tensor) -> list[Tensor]:
        features = [self.stem(image)]
        hidden = self.pool(features[0])
        for stage in self.stages:
            hidden = stage(hidden)
            features.append(hidden)
        return features


def _stage(in_channels: int, planes: int, num_blocks: int, stride: int, norm: Norm) -> nn.Sequential:
    from monai.networks.nets.resnet import ResNetBottleneck

    out_channels = planes * EXPANSION
    downsample = nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False),
        norm_layer(norm, out_channels),
    )
    name = norm_of(norm, planes)
    first = ResNetBottleneck(in_channels, planes, spatial_dims=2, stride=stride, downsample=downsample, norm=name)
    rest = [ResNetBottleneck(out_channels, planes, spatial_dims=2, norm=name) for _ in range(num_blocks - 1)]
    return nn.Sequential(first, *rest)


def pad_to_multiple(image: Tensor, multiple: int) -> tuple[Tensor, tuple[int, int]]:
    """Extend (…, height, width) at bottom and right by its edge; return also the original size."""
    height, width = image.shape[-2:]
    padding = (0, -width % multiple, 0, -height % multiple)
    padded = torch.nn.functional.pad(image, padding, mode="replicate") if any(padding) else image
    return padded, (height, width)
