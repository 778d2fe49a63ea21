"""One network with its optimiser behind a small interface: a GAN trains two networks, so it holds two engines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from torch import Tensor, nn

from larmor.storage.objects.errors import InputError

Precision = Literal["float32", "bfloat16"]


class Engine(Protocol):
    """One network in training. Real inputs and outputs are float32 whatever the engine computes in.

    Every rank makes the same calls in the same order: most of them communicate.
    """

    module: nn.Module

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        """Forward pass whose result will be handed (as a loss) to this engine's `backward`."""

    def bare_forward(self, *inputs: Tensor | None) -> Tensor:
        """Forward pass of the module alone, in the engine's precision, unknown to the engine.

        For whatever this engine does not train on: the generator's images while the critic trains,
        the critic's scores while the generator trains.
        """

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of the scalar `loss`, divided by the accumulation, to this engine's."""

    def step(self) -> None:
        """Called after every micro-batch; updates the weights at the accumulation boundary."""

    def set_learning_rate(self, value: float) -> None:
        """The learning rate of all parameter groups from the next update on."""

    def save(self, folder: Path) -> None:
        """Every rank calls; each writes its own part into `folder`, which may be local to the rank.

        Give each engine a folder of its own, and call between updates: gradients are not saved.
        """

    def load(self, folder: Path) -> None:
        """Every rank calls, on a freshly built engine; `folder` holds the parts of all ranks.

        Restores weights, optimiser state, learning rate and counters exactly, whatever number of ranks, ZeRO
        stage and backend wrote them. Raises InputError if a part is missing or the network is another.
        """

    def set_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Give weights and buffers, and the masters where there are any, these values exactly; others stay.

        Every rank calls, with equal values, on a freshly built engine.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """Full float32 weights (the masters, where there are any) and buffers: detached CPU copies.

        Every rank calls and every rank gets them, ZeRO 3 included.
        """

    def close(self) -> None:
        """Give the memory back; the module is of no use after it. Each rank for itself."""


@dataclass(frozen=True)
class EngineSettings:
    """How an engine runs. `persistence_threshold`: in ZeRO 3, parameters with fewer elements than
    this stay whole on every rank (DeepSpeed's own default; 0 partitions everything). `recorded`: its
    steps become part of a CUDA graph (`recon/training/step_graph.py`), which the plain engine alone can do."""

    micro_batch_size: int
    gradient_accumulation: int = 1
    zero_stage: int = 0
    dtype: Precision = "float32"
    persistence_threshold: int = 100_000
    recorded: bool = False

    def __post_init__(self) -> None:
        for name in ("micro_batch_size", "gradient_accumulation"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.zero_stage not in (0, 1, 2, 3):
            raise InputError(f"zero_stage is {self.zero_stage}: use 0, 1, 2 or 3")
        if self.dtype not in ("float32", "bfloat16"):
            raise InputError(f"dtype is {self.dtype!r}: use float32 or bfloat16")
