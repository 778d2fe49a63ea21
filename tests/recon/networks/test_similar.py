"""Groups of similar patches, and the network over them."""

from __future__ import annotations

import torch
from torch import nn

from larmor.recon.networks.similar import SimilarPatchesGenerator, similar_patches
from tests.helpers import random_images


def test_parameters_at_full_width() -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in SimilarPatchesGenerator(64).parameters()) == 557_825


def test_the_first_channel_is_the_image_and_the_group_of_a_periodic_image_is_alike() -> None:
    image = random_images(2, 2, 2).repeat(1, 1, 16, 24)
    group = similar_patches(image)
    assert group.shape == (2, 4, 32, 48)
    for member in range(4):
        torch.testing.assert_close(group[:, member : member + 1], image)


def test_the_three_patches_are_the_nearest_ones() -> None:
    """A patch that occurs a second time, 4 rows and 6 columns away, is the first of its group."""
    image = random_images(1, 40, 40)
    image[..., 14:24, 16:26] = image[..., 10:20, 10:20]
    group = similar_patches(image)
    assert torch.equal(group[:, 0], image[:, 0])
    torch.testing.assert_close(group[0, 1, 14:16, 14:16], image[0, 0, 18:20, 20:22])
    assert group[0, 1, 14, 14] == image[0, 0, 14, 14]


def test_channels_are_grouped_alike_and_pixels_have_a_gradient() -> None:
    image = random_images(1, 32, 32).repeat(1, 2, 1, 1).requires_grad_()
    group = similar_patches(image)
    assert group.shape == (1, 8, 32, 32)
    torch.testing.assert_close(group[:, 2:5], group[:, 5:8])
    group.sum().backward()
    assert image.grad is not None
    assert float(image.grad.sum()) == 8 * 32 * 32


@torch.no_grad()
def test_an_untrained_network_returns_its_input() -> None:
    image, network = random_images(2, 24, 31), SimilarPatchesGenerator(4)
    assert torch.equal(network(image), image)
    nn.init.normal_(network.network.layers[-1].weight, std=0.1)  # type: ignore[arg-type]
    assert not torch.equal(network(image), image)
