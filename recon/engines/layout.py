"""The layout of images in an engine that wants its weights in order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def put_weights_in_order(module: nn.Module) -> None:
    """Weights that lie with the channels last (`training.channels_last`) as planes, and let images lie so instead.

    DeepSpeed sends, flattens and divides weights as they lie in memory, and refuses others. A convolution computes in
    the layout of its images as well, and passes it on.
    """
    others = [parameter for parameter in module.parameters() if not parameter.is_contiguous()]
    for parameter in others:
        parameter.data = parameter.data.contiguous()
    for layer in module.modules() if others else ():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            layer.register_forward_pre_hook(_channels_last)


def _channels_last(_layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        value.contiguous(memory_format=torch.channels_last) if isinstance(value, Tensor) and value.ndim == 4 else value
        for value in inputs
    )
