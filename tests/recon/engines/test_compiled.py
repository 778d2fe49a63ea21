"""Networks are compiled where a compiler is, and trained as they are where none is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from larmor.recon.engines.compiled import compile_networks

CPU = torch.device("cpu")


def test_every_shape_has_a_program_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def compiled(function: Callable[..., Any], dynamic: bool | None = None, **_: Any) -> Callable[..., Any]:
        asked.append(dynamic)
        return function

    monkeypatch.setattr(torch, "compile", compiled)
    networks = [nn.Conv2d(1, 2, 3), nn.Linear(3, 3)]
    assert compile_networks(networks, CPU)
    assert asked == [False] * 3
    assert networks[1](torch.ones(2, 3)).shape == (2, 3)


def test_without_a_compiler_networks_stay_as_they_are(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> Callable[..., Any]:
        def call(*_: Any) -> None:
            raise RuntimeError("Failed to find C compiler.\nPlease specify via CC environment variable")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    network = nn.Linear(3, 3)
    before = network(torch.ones(2, 3))
    assert not compile_networks([network], CPU)
    assert torch.equal(network(torch.ones(2, 3)), before)
    assert "training.compile=false" in caplog.text
    assert "Failed to find C compiler" in caplog.text


@pytest.mark.slow
def test_a_compiled_network_is_the_network() -> None:
    network = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU())
    images = [torch.randn(size, 1, 16, 16) for size in (2, 4)]
    before = [network(image) for image in images]
    assert compile_networks([network], CPU)
    for image, wanted in zip(images, before, strict=True):
        torch.testing.assert_close(network(image), wanted, rtol=1e-5, atol=1e-5)
