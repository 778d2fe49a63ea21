"""`torch.compile` of networks: fewer and larger kernels, where a compiler is there."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch
from torch import Tensor, nn

_LOG = logging.getLogger("larmor")


def compile_networks(networks: Iterable[nn.Module], device: torch.device) -> bool:
    """Let each network compile itself at its first call; whether it can be.

    Every shape has a program of its own: a critic meets a batch of real and made images together and one of made images
    alone, for which PyTorch would otherwise make one program of any size, with slower kernels. Where nothing can be
    compiled, a warning says why, and the networks stay as they are.
    """
    try:
        torch.compile(_probe, dynamic=False)(torch.zeros(2, device=device))
    except RuntimeError as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        _LOG.warning(
            "training.compile=true: nothing can be compiled on %s (%s); the networks are not compiled. Install a C++ "
            "compiler (on a GPU also Triton), or set training.compile=false",
            device,
            said[0],
        )
        return False
    for network in networks:
        network.compile(dynamic=False)
    return True


def _probe(values: Tensor) -> Tensor:
    return values.relu() + 1
