"""Normalisations under autocast."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from larmor.recon.engines.precision import keep_autocast_in_norms


@pytest.mark.parametrize("layer", [nn.GroupNorm(4, 8), nn.InstanceNorm2d(8, affine=True)], ids=["group", "instance"])
def test_norms_give_the_precision_that_they_are_given(layer: nn.GroupNorm) -> None:
    images = torch.randn(2, 8, 6, 5, generator=torch.Generator().manual_seed(0)) * 3 + 1
    nn.init.uniform_(layer.weight)
    kept = copy.deepcopy(layer)
    keep_autocast_in_norms(nn.Sequential(kept))
    assert torch.equal(kept(images), layer(images)), "outside of autocast nothing changes"
    with torch.autocast("cpu", torch.bfloat16):
        low = kept(images.bfloat16())
        assert kept(images).dtype == torch.float32
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), layer(images.bfloat16().float()), rtol=0.02, atol=0.02)
    low.sum().backward()
    assert kept.weight.grad is not None
    assert kept.weight.grad.dtype == torch.float32
    assert kept.weight.grad.any()
