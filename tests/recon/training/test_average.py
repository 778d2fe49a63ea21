"""Averaged weights of a network of which two layers share theirs."""

from __future__ import annotations

import torch
from torch import nn

from larmor.recon.training.average import AveragedWeights


class _Tied(nn.Module):
    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        if tied:
            self.second = self.first


def test_tied_weights_are_averaged_once() -> None:
    averages = []
    for tied in (False, True):
        torch.manual_seed(0)
        network = _Tied(tied)
        average = AveragedWeights(network, 0.9, torch.device("cpu"))
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(1)
        average.update(network, 100)
        averages.append(average.module.state_dict()["first.weight"])
    torch.testing.assert_close(averages[1], averages[0], rtol=0, atol=0)


def test_all_weights_are_averaged_as_one_by_one_bit_for_bit() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 7, 3), nn.BatchNorm2d(7), nn.Linear(5, 33))
    average = AveragedWeights(network, 0.9, torch.device("cpu"))
    before = {name: value.clone() for name, value in average.module.state_dict().items()}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))
    average.update(network, 100)
    for name, value in average.module.state_dict().items():
        new = network.state_dict()[name]
        assert torch.equal(value, before[name].lerp(new, 1 - 0.9) if value.is_floating_point() else new)
