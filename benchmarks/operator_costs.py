"""What the operators of a training step cost on a GPU at least, by a roofline, counted on tensors without content.

An operator takes as long as its operations at the peak of the tensor cores, or its bytes at the bandwidth of the
memory, whichever is longer. It reads its inputs and writes its outputs once, but for the exceptions below. A step takes
as long as its operators, or as the host needs to launch them, whichever is longer. That is a bound: nothing is ever as
fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode  # from where PyTorch's "Extending PyTorch" takes it
from torch.utils.flop_counter import flop_registry

Layout = Literal["planes", "channels_last", "channels_last_norms"]
"""As PyTorch makes them; convolutions without transposition, norms with it; neither with it."""

FLOPS, BYTES = 989e12, 4.8e12  # of an H200 in a second: dense bfloat16, HBM3e
LAUNCH = 6e-6  # seconds in which the host launches an operator of PyTorch, with its part of autograd
_GROUP = 320 * 65536  # elements that a launch of a `_foreach` operator covers, about

aten = torch.ops.aten
_CONVOLUTIONS = (aten.convolution.default, aten.convolution_backward.default)
_NORMS = (aten.native_group_norm.default, aten.native_group_norm_backward.default)


class Cost(NamedTuple):
    """Of one operator: launches, operations, bytes."""

    launches: float
    flops: float
    bytes: float

    @property
    def seconds(self) -> float:
        return max(self.flops / FLOPS, self.bytes / BYTES)


@dataclass
class Costs:
    """Launches, operations, bytes and seconds by kind of operator."""

    rows: dict[str, list[float]] = field(default_factory=dict)

    def add(self, kind: str, cost: Cost) -> None:
        row = self.rows.setdefault(kind, [0.0] * 4)
        for place, value in enumerate((*cost, cost.seconds)):
            row[place] += value

    def total(self, place: int) -> float:
        return sum(row[place] for row in self.rows.values())

    @property
    def launches(self) -> float:
        return self.total(0)

    @property
    def flops(self) -> float:
        return self.total(1)

    @property
    def seconds(self) -> float:
        """Of the device."""
        return self.total(3)

    def step(self, recorded: bool = False) -> float:
        """Seconds of a step; recorded as a CUDA graph it is launched at once."""
        return self.seconds if recorded else max(self.seconds, self.launches * LAUNCH)

    def __add__(self, other: Costs) -> Costs:
        both = Costs({kind: list(row) for kind, row in self.rows.items()})
        for kind, row in other.rows.items():
            mine = both.rows.setdefault(kind, [0.0] * 4)
            both.rows[kind] = [a + b for a, b in zip(mine, row, strict=True)]
        return both


class Counting(TorchDispatchMode):
    """Adds what runs within it to `costs`. With `fused` pointwise operators are part of the operator before them, as a
    compiler makes them: they read what else they need, and write nothing."""

    def __init__(self, layout: Layout = "planes", fused: bool = False) -> None:
        super().__init__()
        self.costs, self.layout, self.fused = Costs(), layout, fused
        self._phase = ""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Everything meanwhile is of the kind `name`."""
        before, self._phase = self._phase, name
        yield
        self._phase = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = _WITHOUT_CONTENT[func](args) if func in _WITHOUT_CONTENT else func(*args, **kwargs)
        written = args[0] if result is None else result  # in place, of whole lists
        if not func.is_view and any(tensor.device.type == "meta" for tensor in _tensors(written)):
            self._count(func, args, kwargs, written)
        return result

    def _count(self, func: Any, args: Any, kwargs: Mapping[str, Any], result: Any) -> None:
        read, written = _size(args), _size(result)
        counter = flop_registry.get(func.overloadpacket)
        flops = counter(*args, **kwargs, out_val=result) if counter else 0
        if func in _CONVOLUTIONS:
            self._convolution(func, args, Cost(1 + (len(_tensors(result)) > 1), flops, read + written))
        elif func in _NORMS:
            self._norm(func, args, written)
        else:
            kind = self._phase or _kind(func)
            launches = max(1, math.ceil(_elements(args) / _GROUP)) if "_foreach" in str(func) else 1
            if self.fused and kind in ("pointwise", "cast"):
                inputs = [tensor for tensor in _tensors(args) if tensor.numel() > 1]
                self.costs.add(kind, Cost(0, 0, _size(inputs[1:])))
            else:
                self.costs.add(kind, Cost(launches, flops, read + written))

    def _convolution(self, func: Any, args: Any, cost: Cost) -> None:
        """The tensor cores want channels last: other images are transposed on their way in and out."""
        self.costs.add(self._phase or "convolution", cost)
        if self.layout == "planes":
            images = 2 * cost.bytes
            self.costs.add("transposition", Cost(3, 0, images))

    def _norm(self, func: Any, args: Any, written: float) -> None:
        """PyTorch's reads an image twice forwards, image and gradient twice backwards. It works on planes."""
        forwards = func is _NORMS[0]
        image = _size(args[0])
        self.costs.add("norm", Cost(3 if forwards else 5, 0, (2 if forwards else 4) * image + written))
        if self.layout == "channels_last":
            self.costs.add("transposition", Cost(1 if forwards else 2, 0, 2 * image * (1 if forwards else 2)))


def _kind(func: Any) -> str:
    name = str(func.overloadpacket)
    if "fft" in name:
        return "transform"
    if "_to_copy" in name:
        return "cast"
    if any(part in name for part in ("mm", "dot")):
        return "matrix product"
    if any(part in name for part in ("upsample", "pool", "cat", "sum", "mean", "norm", "amax", "roll", "index", "pad")):
        return "other"
    return "pointwise"


def _tensors(tree: Any) -> list[Tensor]:
    if isinstance(tree, (list, tuple)):
        return [tensor for part in tree for tensor in _tensors(part)]
    return [tree] if isinstance(tree, Tensor) else []


def _elements(tree: Any) -> int:
    return sum(tensor.numel() for tensor in _tensors(tree))


def _size(tree: Any) -> float:
    return float(sum(tensor.numel() * tensor.element_size() for tensor in _tensors(tree)))


def _normed(args: Any) -> tuple[Tensor, Tensor, Tensor]:
    image, batch, groups = args[0], args[3], args[6]
    return torch.empty_like(image), image.new_empty(batch, groups), image.new_empty(batch, groups)


def _normed_backward(args: Any) -> tuple[Tensor, Tensor, Tensor]:
    image, channels = args[1], args[6]
    return torch.empty_like(image), image.new_empty(channels), image.new_empty(channels)


# PyTorch takes these apart in Python where there is no content, for 30 milliseconds each
_WITHOUT_CONTENT: Mapping[Any, Callable[[Any], Any]] = {_NORMS[0]: _normed, _NORMS[1]: _normed_backward}
