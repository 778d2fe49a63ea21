"""What of a step goes into collective calls: torch.distributed's functions, timed while somebody listens.

DeepSpeed's own `comms_logger` is not used: it synchronises the GPU at every call, and its latencies add up from call to
call (0.19.8 reads its timers without resetting them).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch.distributed as dist

# what the engines call; DeepSpeed's ZeRO 3 starts most of its own asynchronously, and those count as computation
_OPERATIONS = ("all_reduce", "all_gather_into_tensor", "all_gather", "reduce_scatter_tensor", "reduce", "broadcast")


class Listener(Protocol):
    def mark(self) -> Any:
        """A point of time."""
        ...

    def communicated(self, began: Any, ended: Any) -> None:
        """A collective call lasted from one mark to the other."""
        ...


_listener: Listener | None = None


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tell `listener` of every blocking collective call. Begin before the engines: DeepSpeed keeps what it finds."""
    global _listener
    if dist.is_available():
        _replace_operations()
    _listener = listener
    try:
        yield
    finally:
        _listener = None


@functools.cache
def _replace_operations() -> None:
    for name in _OPERATIONS:
        setattr(dist, name, _timed(getattr(dist, name)))


def _timed(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        listener = _listener
        if listener is None or kwargs.get("async_op"):
            return function(*args, **kwargs)
        began = listener.mark()
        result = function(*args, **kwargs)
        listener.communicated(began, listener.mark())
        return result

    return call
