"""Networks of other packages as generators, through the adapters of examples/."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from larmor.recon.physics.fourier import fft2c, ifft2c

EXAMPLES = Path(__file__).parent.parent / "examples"
NETWORKS = {
    "monai": ("monai_networks:UNet", "monai_networks:VarNet"),
    "direct": ("direct_networks:VarNet", "direct_networks:VSharp"),
    "deepinv": ("deepinv_networks:Modl",),
}


@pytest.fixture(autouse=True)
def _importable() -> Iterator[None]:
    sys.path.insert(0, str(EXAMPLES))
    yield
    sys.path.remove(str(EXAMPLES))


def _made(name: str, channels: int = 1) -> nn.Module:
    module, _, attribute = name.partition(":")
    network: nn.Module = getattr(importlib.import_module(f"adapters.{module}"), attribute)(channels=channels)
    return network.eval()


def _measurement() -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    image = torch.rand(2, 1, 32, 48, generator=random)
    mask = torch.rand(2, 1, 32, 48, generator=random) < 0.4
    kspace = fft2c(image.to(torch.complex64)) * mask
    return ifft2c(kspace).abs(), kspace, mask


@pytest.mark.parametrize(("package", "name"), [(package, name) for package in NETWORKS for name in NETWORKS[package]])
def test_images_keep_their_shape_and_do_not_see_each_other(package: str, name: str) -> None:
    pytest.importorskip(package)
    torch.manual_seed(0)
    network, given = _made(name), _measurement()
    both = network(*given)
    assert both.shape == given[0].shape
    both.mean().backward()
    with torch.no_grad():
        torch.testing.assert_close(network(*(part[:1] for part in given)), both[:1], rtol=1e-3, atol=1e-3)


def test_without_refinement_varnet_gives_the_zero_filled_image() -> None:
    """The Fourier transforms of both packages are the same."""

    class Nothing(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return torch.zeros_like(image)

    network = _made("monai_networks:VarNet")
    cascades = network.get_submodule("network.cascades")
    for cascade in cascades.children():
        cascade.model = Nothing()
    zero_filled, kspace, mask = _measurement()
    torch.testing.assert_close(network(zero_filled, kspace, mask), zero_filled)
