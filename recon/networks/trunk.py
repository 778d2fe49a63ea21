"""The ResNet-50 trunk that generator and critic share (Figs. 2 and 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from larmor.recon.recipe.settings import Norm

BLOCKS = (3, 4, 6, 3)
EXPANSION = 4  # of a bottleneck block: output channels / inner channels


def num_groups(channels: int) -> int:
    """Of group norm: 8, or fewer if they do not divide `channels`."""
    return next(groups for groups in (8, 4, 2, 1) if channels % groups == 0)


def norm_layer(kind: Norm, channels: int, groups: int | None = None) -> nn.Module:
    """A normalisation with as many parameters as batch norm, or nothing; `groups` are `num_groups(channels)` unless
    given.

    Neither depends on the other images of a batch, so that a result does not depend on batch or world size.
    """
    if kind == "none":
        return nn.Identity()
    if kind == "group":
        return nn.GroupNorm(groups or num_groups(channels), channels)
    return nn.InstanceNorm2d(channels, affine=True)


class Bottleneck(nn.Module):
    """(batch, in_channels, height, width) → 4 × `planes` channels at 1/`stride` of the size.

    Source: He et al., Deep residual learning for image recognition, Fig. 5; the stride is the 3×3 convolution's,
    as in torchvision.
    """

    def __init__(self, in_channels: int, planes: int, stride: int, norm: Norm, downsample: nn.Module | None) -> None:
        super().__init__()
        groups = num_groups(planes)  # of all three norms, also of the one of 4 × `planes` channels
        self.conv1 = nn.Conv2d(in_channels, planes, kernel_size=1, bias=False)
        self.bn1 = norm_layer(norm, planes, groups)
        self.conv2 = nn.Conv2d(planes, planes, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn2 = norm_layer(norm, planes, groups)
        self.conv3 = nn.Conv2d(planes, planes * EXPANSION, kernel_size=1, bias=False)
        self.bn3 = norm_layer(norm, planes * EXPANSION, groups)
        self.act = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, image: Tensor) -> Tensor:
        hidden = self.act(self.bn1(self.conv1(image)))
        hidden = self.act(self.bn2(self.conv2(hidden)))
        hidden = self.bn3(self.conv3(hidden))
        hidden += image if self.downsample is None else self.downsample(image)
        return self.act(hidden)


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
    out_channels = planes * EXPANSION
    downsample = nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False),
        norm_layer(norm, out_channels),
    )
    first = Bottleneck(in_channels, planes, stride, norm, downsample)
    rest = [Bottleneck(out_channels, planes, 1, norm, None) for _ in range(num_blocks - 1)]
    return nn.Sequential(first, *rest)


def pad_to_multiple(image: Tensor, multiple: int) -> tuple[Tensor, tuple[int, int]]:
    """Extend (…, height, width) at bottom and right by its edge; return also the original size."""
    height, width = image.shape[-2:]
    padding = (0, -width % multiple, 0, -height % multiple)
    padded = torch.nn.functional.pad(image, padding, mode="replicate") if any(padding) else image
    return padded, (height, width)
