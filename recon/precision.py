"""Buffers of a network whose weights DeepSpeed has lowered to bfloat16."""

from __future__ import annotations

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
