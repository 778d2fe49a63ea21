"""Tensors between host and device without waiting: a host that waits cannot launch the kernels that come next."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

Values = tuple[float, ...] | tuple[tuple[float, ...], ...]


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on the device. A GPU fetches it from page-locked memory while the host goes on."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def constant(values: Values, like: Tensor) -> Tensor:
    """Numbers as a tensor of the type and on the device of `like`; do not change it.

    It is sent once for each of them. Traced programs and tensors without content have one of their own.
    """
    if type(like) not in (Tensor, torch.nn.Parameter) or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return torch.tensor(values, dtype=like.dtype, device=like.device)
    return _constant(values, like.dtype, like.device)


@lru_cache(maxsize=32)
def _constant(values: Values, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # else no gradient could be computed with it later
        return sent(torch.tensor(values, dtype=dtype), device)


class HostCopy:
    """A tensor on its way to the host; `result` waits for it, which takes no time once the device has got that far."""

    def __init__(self, tensor: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if tensor.is_cuda:
            self._host = tensor.to("cpu", non_blocking=True)  # page-locked
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(tensor.device))
        else:
            self._host = tensor.to("cpu", copy=True)

    @property
    def result(self) -> Tensor:
        if self._event is not None:
            self._event.synchronize()
            self._event = None
        return self._host
