"""DRGAN's generator makes a residual map, and doubles sizes without interpolation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from larmor.recon.networks.drgan import DenseShuffle, DrganGenerator, ResidualDenseBlock
from tests.helpers import random_images


def generator(width: int = 8) -> DrganGenerator:
    torch.manual_seed(0)
    network = DrganGenerator(width)
    nn.init.normal_(network.last.weight, std=0.1)
    return network


def test_parameters_at_full_width() -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in DrganGenerator(64).parameters()) == 1_566_913


@pytest.mark.parametrize("size", [(64, 96), (63, 97), (8, 8)])
@torch.no_grad()
def test_the_image_is_the_input_and_the_residual_map(size: tuple[int, int]) -> None:
    image, network = random_images(2, *size), generator()
    residual = network.residual(image)
    assert residual.abs().max() > 1e-3
    assert torch.equal(network(image), image + residual)


@torch.no_grad()
def test_a_shuffle_doubles_the_size_without_interpolation() -> None:
    """Each input pixel has four output pixels of its own: with 1×1 convolutions in effect, it changes no others."""
    torch.manual_seed(0)
    block = DenseShuffle(4, 4)
    for module in block.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            centre = module.weight[..., 1:2, 1:2].clone()
            module.weight.zero_()
            module.weight[..., 1:2, 1:2] = centre
    image = random_images(1, 6, 10).repeat(1, 4, 1, 1)
    changed = image.clone()
    changed[..., 2, 3] += 1.0
    rows, columns = (block(changed) - block(image))[0].abs().sum(0).nonzero(as_tuple=True)
    assert block(image).shape == (1, 4, 12, 20)
    assert set(zip(rows.tolist(), columns.tolist(), strict=True)) <= {(4, 6), (4, 7), (5, 6), (5, 7)}
    assert len(rows)


@torch.no_grad()
def test_a_dense_block_reads_all_layers_before() -> None:
    block, image = ResidualDenseBlock(8), random_images(1, 6, 6).repeat(1, 8, 1, 1)
    assert [layer.in_channels for layer in block.layers] == [8, 12, 16, 20]
    before = block(image)
    nn.init.zeros_(block.fusion.weight)
    nn.init.zeros_(torch.as_tensor(block.fusion.bias))
    assert not torch.equal(before, image)
    assert torch.equal(block(image), image)
