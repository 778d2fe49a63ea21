"""A complex convolution is one of complex numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from larmor.recon.networks.complex_conv import ComplexConv2d
from larmor.recon.physics.sense import channels_to_complex, complex_to_channels


def complex_image(channels: int, seed: int = 0) -> Tensor:
    """(2, channels, 9, 12) complex64."""
    return torch.randn(2, channels, 9, 12, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def made(in_channels: int, out_channels: int, size: float = 1.0) -> ComplexConv2d:
    torch.manual_seed(0)
    conv = ComplexConv2d(in_channels, out_channels)
    with torch.no_grad():
        for weight in (conv.real, conv.imaginary):
            weight.normal_(std=size)
        conv.bias.normal_()
    return conv


@pytest.mark.parametrize(("in_channels", "out_channels"), [(1, 1), (12, 5), (3, 8)])
@torch.no_grad()
def test_it_is_the_convolution_of_complex_numbers(in_channels: int, out_channels: int) -> None:
    conv, image = made(in_channels, out_channels), complex_image(in_channels)
    weight, bias = torch.complex(conv.real, conv.imaginary), torch.complex(*conv.bias.chunk(2))
    expected = torch.nn.functional.conv2d(image, weight, bias, padding=1)
    found = channels_to_complex(conv(complex_to_channels(image)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_it_commutes_with_a_global_phase() -> None:
    conv, image = made(3, 4), complex_image(3)
    conv.bias.zero_()
    turn = torch.polar(torch.tensor(1.0), torch.tensor(0.7))
    before = conv(complex_to_channels(turn * image))
    after = complex_to_channels(turn * channels_to_complex(conv(complex_to_channels(image))))
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_start_has_rayleigh_moduli_and_any_phase() -> None:
    torch.manual_seed(0)
    conv = ComplexConv2d(32, 32)
    weight, scale = torch.complex(conv.real, conv.imaginary), 1 / (9 * 32)
    assert weight.abs().mean().item() == pytest.approx(scale * math.sqrt(math.pi / 2), rel=0.03)
    assert weight.abs().square().mean().item() == pytest.approx(2 * scale**2, rel=0.05)
    assert (weight / weight.abs()).mean().abs() < 0.03
    assert (conv.bias == 1e-4).all()
