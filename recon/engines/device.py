"""Which processor a network runs on."""

from __future__ import annotations

import torch

from larmor.storage.objects.errors import InputError


def choose_device(name: torch.device | str) -> torch.device:
    """`cpu`, `cuda` or `cuda:1`. Raises `InputError` for another name, and for a GPU that is not there."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device '{name}': is not known; choose cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device '{name}': is not supported; choose cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device '{name}': PyTorch finds {torch.cuda.device_count()} GPUs here; choose cpu")
    return device
