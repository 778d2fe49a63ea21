"""What an engine that computes in bfloat16 does to inputs, buffers and normalisations."""

from __future__ import annotations

from collections.abc import Iterable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn


def lower_buffers(module: nn.Module, dtype: torch.dtype) -> None:
    """Make buffers fit weights that DeepSpeed has lowered to `dtype`; since 0.19 it leaves them float32.

    Filters, masks and spectral norm's vectors follow the weights. Running statistics stay float32,
    or their small updates would be lost, and batch norm then reads its weights as float32.
    """
    for layer in module.modules():
        stays = isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d))
        for name, buffer in layer.named_buffers(recurse=False):
            if buffer.is_floating_point():
                setattr(layer, name, buffer.to(torch.float32 if stays else dtype))
        if stays:
            layer.forward = MethodType(_mixed_batch_norm, layer)


def _mixed_batch_norm(layer: Any, images: Tensor) -> Tensor:
    """`nn.BatchNorm*.forward` with low-precision images and weights over float32 statistics."""
    momentum = layer.momentum
    if layer.training and layer.track_running_stats:
        layer.num_batches_tracked.add_(1)
        if momentum is None:  # a cumulative average
            momentum = 1.0 / float(layer.num_batches_tracked)
    from_batch = layer.training or layer.running_mean is None
    keeps = not layer.training or layer.track_running_stats
    return nn.functional.batch_norm(
        images,
        layer.running_mean if keeps else None,
        layer.running_var if keeps else None,
        None if layer.weight is None else layer.weight.float(),
        None if layer.bias is None else layer.bias.float(),
        from_batch,
        0.0 if momentum is None else momentum,
        layer.eps,
    )


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
