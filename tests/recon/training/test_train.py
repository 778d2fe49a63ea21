"""A checkpoint of a network of which two layers share their weights."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from larmor.recon.training.train import _apart


def test_tied_weights_are_written_and_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 3)
    network = nn.Sequential(layer, layer)
    save_file(_apart(network.state_dict()), tmp_path / "generator.safetensors")
    read = load_file(tmp_path / "generator.safetensors")
    other = nn.Linear(3, 3)
    copy = nn.Sequential(other, other)
    copy.load_state_dict(read)
    for name, tensor in network.state_dict().items():
        assert torch.equal(copy.state_dict()[name], tensor)
