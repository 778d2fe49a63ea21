"""SAT-Net: a residual U-Net with self-attention in every layer (after Wu et al., Inf. Sci. 490:317, 2019)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from larmor.recon.networks.trunk import num_groups, pad_to_multiple
from larmor.recon.recipe.settings import Norm

MOST_KEYS = 1024  # positions that a query attends to
NUM_LEVELS = 4


class SatNet(nn.Module):
    """(batch, channels, height, width) → the same shape, = input + network(input).

    With a `stack` above 1 the stack's images are a slab, and convolutions and attention are three-dimensional; sizes
    are halved within the plane alone. Levels from `attention_from` on (0: full resolution) have self-attention. Any
    size: the image is extended to a multiple of 2^(levels − 1) and cut back. The last layer starts at zero, so that an
    untrained network returns its input.
    """

    def __init__(
        self,
        width: int,
        channels: int = 1,
        stack: int = 1,
        norm: Norm = "group",
        attention_from: int = 0,
        levels: int = NUM_LEVELS,
    ) -> None:
        super().__init__()
        self.stack, self.multiple = stack, 2 ** (levels - 1)
        dims = 3 if stack > 1 else 2
        conv: Any = nn.Conv3d if dims == 3 else nn.Conv2d
        up: Any = nn.ConvTranspose3d if dims == 3 else nn.ConvTranspose2d
        step = (1, 2, 2)[-dims:]
        widths = [width * 2**level for level in range(levels)]
        pairs = list(pairwise(widths))
        attended = [level >= attention_from for level in range(levels)]
        inputs = [channels, *widths[1:]]
        self.down_levels = nn.ModuleList(
            Level(dims, fine, out, norm, has) for fine, out, has in zip(inputs, widths, attended, strict=True)
        )
        self.downs = nn.ModuleList(conv(fine, coarse, kernel_size=step, stride=step) for fine, coarse in pairs)
        self.ups = nn.ModuleList(up(coarse, fine, kernel_size=step, stride=step) for fine, coarse in pairs)
        self.up_levels = nn.ModuleList(
            Level(dims, fine, fine, norm, has) for (fine, _), has in zip(pairs, attended, strict=False)
        )
        self.last = conv(width, channels, kernel_size=3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(torch.as_tensor(self.last.bias))

    def forward(self, image: Tensor, *_measurement: Tensor | None) -> Tensor:
        padded, (height, width) = pad_to_multiple(image, self.multiple)
        if self.stack > 1:
            padded = padded.unflatten(0, (-1, self.stack)).transpose(1, 2)  # (batch, channels, depth, height, width)
        hidden, skips = padded, []
        for level, down in zip(self.down_levels, self.downs, strict=False):
            skips.append(level(hidden))
            hidden = down(skips[-1])
        hidden = self.down_levels[-1](hidden)
        for up, level, skip in zip(reversed(self.ups), reversed(self.up_levels), reversed(skips), strict=True):
            hidden = level(up(hidden) + skip)
        residual = self.last(hidden)
        if self.stack > 1:
            residual = residual.transpose(1, 2).flatten(0, 1)
        return image + residual[..., :height, :width]


class Level(nn.Module):
    """Two layers, the second on input and output of the first (local dense shortcut), and a 1×1 convolution beside."""

    def __init__(self, dims: int, channels: int, width: int, norm: Norm, has_attention: bool) -> None:
        super().__init__()
        self.first = _layer(dims, channels, width, norm, has_attention)
        self.second = _layer(dims, channels + width, width, norm, has_attention)
        self.shortcut = _conv(dims, channels, width, 1)

    def forward(self, image: Tensor) -> Tensor:
        first = self.first(image)
        return self.second(torch.cat([image, first], dim=1)) + self.shortcut(image)


class SelfAttention(nn.Module):
    """image + γ · convolution(attention) over all positions; γ starts at 0.

    Keys and values are taken from the image averaged over squares of 2×2 until at most `MOST_KEYS` positions are left,
    over slices only where the plane has no more than 4: ours, since full attention at 256×256 has 65,536² weights.
    Source: Zhang et al., Self-attention generative adversarial networks (2019).
    """

    def __init__(self, dims: int, width: int) -> None:
        super().__init__()
        inner = max(width // 8, 4)
        self.query = _conv(dims, width, inner, 1)
        self.key = _conv(dims, width, inner, 1)
        self.value = _conv(dims, width, width // 2, 1)
        self.last = _conv(dims, width // 2, width, 1)
        # one axis, because DeepSpeed cannot broadcast a parameter that has none
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, image: Tensor) -> Tensor:
        few = pooled(image)
        query, key, value = (  # (batch, one head, positions, channels)
            part.flatten(2).transpose(1, 2).unsqueeze(1) for part in (self.query(image), self.key(few), self.value(few))
        )
        found = F.scaled_dot_product_attention(query, key, value).squeeze(1)
        attended = found.transpose(1, 2).unflatten(2, image.shape[2:])
        return image + self.gamma * self.last(attended)


def pooled(image: Tensor) -> Tensor:
    """(batch, channels, [depth,] height, width) with at most `MOST_KEYS` positions, by averages."""
    while image[0, 0].numel() > MOST_KEYS:
        plane = image.shape[-2] * image.shape[-1]
        if image.ndim == 4:
            image = F.avg_pool2d(image, 2, ceil_mode=True)
        else:
            image = F.avg_pool3d(image, (1, 2, 2) if plane > 4 else (2, 1, 1), ceil_mode=True)
    return image


def _layer(dims: int, channels: int, width: int, norm: Norm, has_attention: bool) -> nn.Sequential:
    attention = SelfAttention(dims, width) if has_attention else nn.Identity()
    return nn.Sequential(
        _conv(dims, channels, width, 3, bias=norm == "none"), _norm(dims, width, norm), nn.PReLU(width), attention
    )


def _conv(dims: int, channels: int, width: int, size: int, bias: bool = True) -> nn.Module:
    kind = nn.Conv3d if dims == 3 else nn.Conv2d
    return kind(channels, width, kernel_size=size, padding=size // 2, bias=bias)


def _norm(dims: int, channels: int, kind: Norm) -> nn.Module:
    if kind == "none":
        return nn.Identity()
    if kind == "group":
        return nn.GroupNorm(num_groups(channels), channels)
    return (nn.InstanceNorm3d if dims == 3 else nn.InstanceNorm2d)(channels, affine=True)
