"""An exponential moving average of a network's weights, which often reconstructs better than the weights."""

from __future__ import annotations

import copy
from itertools import chain

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class AveragedWeights:
    """`module` holds average = decay · average + (1 − decay) · weights, in float32, whatever the training computes in.

    The first updates take a smaller decay, (1 + n) / (10 + n) after n of them, or the weights that a training began
    with would stay in the average of a short one; but not where the average `continues` one of another training.

    Made from the network before an engine takes it; equal on every rank, since the weights are. It wants whole
    weights, so not ZeRO 3.
    """

    def __init__(self, network: nn.Module, decay: float, device: torch.device, continues: bool = False) -> None:
        self.module = copy.deepcopy(network).to(device).requires_grad_(False)
        self._decay, self._continues = decay, continues
        # a tensor that has several names (tied weights) is averaged once
        self._names = {name for name, _ in chain(network.named_parameters(), network.named_buffers())}

    @torch.no_grad()
    def update(self, network: nn.Module, number: int) -> None:
        """Take in the weights after step `number`, from 0. Whatever is not a floating-point number is copied."""
        decay = self._decay if self._continues else min(self._decay, (1 + number) / (10 + number))
        values = network.state_dict()
        averages, taken = [], []
        for name, average in self.module.state_dict().items():
            if name not in self._names:
                continue
            if average.is_floating_point():
                averages.append(average)
                taken.append(values[name].to(average.dtype))
            else:
                average.copy_(values[name])
        get_ema_multi_avg_fn(decay)(averages, taken, number)  # on a GPU a few launches for all
