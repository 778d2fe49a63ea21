"""What an engine that computes in bfloat16 does to inputs, buffers and normalisations."""

from __future__ import annotations

from collections.abc import Iterable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn


def lower_buffers(module: nn.Module, dtype: torch.dtype) -> None:
    """Make buffers (filters, masks, spectral norm's vectors) fit weights that DeepSpeed has lowered to `dtype`.

    Since 0.19 DeepSpeed leaves buffers float32.
    """
    for layer in module.modules():
        for name, buffer in layer.named_buffers(recurse=False):
            if buffer.is_floating_point():
                setattr(layer, name, buffer.to(dtype))


def keep_autocast_in_norms(module: nn.Module) -> None:
    """Let group and instance norms give what they are given: under autocast they answer bfloat16 in float32.

    Their sums are float32 either way. What stands between two convolutions is mostly traffic of memory, so that half
    the bytes are half the time; DeepSpeed's bfloat16 does the same.
    """
    for layer in module.modules():
        if isinstance(layer, (nn.GroupNorm, nn.InstanceNorm2d)):
            layer.forward = MethodType(_as_given, layer)  # type: ignore[method-assign]


def _as_given(layer: Any, images: Tensor) -> Tensor:
    """`forward` of a group or instance norm in the precision of the images."""
    device = images.device.type
    if not torch.is_autocast_enabled(device):
        return type(layer).forward(layer, images)
    weight, bias = layer.weight.to(images.dtype), layer.bias.to(images.dtype)
    with torch.autocast(device, enabled=False):
        if isinstance(layer, nn.GroupNorm):
            return nn.functional.group_norm(images, layer.num_groups, weight, bias, layer.eps)
        return nn.functional.instance_norm(images, weight=weight, bias=bias, eps=layer.eps)


def lowered(inputs: Iterable[Tensor | None], dtype: torch.dtype) -> list[Tensor | None]:
    """Real floating-point inputs in `dtype`; masks, complex k-space and None as they are."""
    return [x.to(dtype) if x is not None and x.is_floating_point() else x for x in inputs]
