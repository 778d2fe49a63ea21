"""A training step as one CUDA graph: where the host launches kernels more slowly than the GPU runs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from larmor.recon.engines.engine import Engine
from larmor.recon.engines.plain_engine import PlainEngine
from larmor.recon.physics.samples import Sample
from larmor.storage.objects.errors import InputError

Terms = list[dict[str, Tensor]]
Step = Callable[[Sequence[Sample], Sequence[Tensor]], Terms]
"""micro-batches, and what was drawn for each → loss terms of each. It reads nothing else that changes."""

_WARM_UP = 3  # libraries, optimisers and the allocator make what they need in the first steps


class StepGraph:
    """Records `step` of `engine` after a few calls and replays it from then on.

    Replayed, the kernels work on the tensors that were recorded, so inputs are copied into these and the terms out of
    them. Weights, gradients and the optimiser's state are the engine's own. `pool` is memory that graphs share which
    never run at a time: `torch.cuda.graph_pool_handle()`.
    """

    def __init__(self, step: Step, engine: Engine, device: torch.device, pool: Any) -> None:
        assert isinstance(engine, PlainEngine)  # a recipe with graphs allows no other
        self._step, self._engine, self._pool = step, engine, pool
        self._stream = torch.cuda.Stream(device)
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._samples: Sequence[Sample] = ()
        self._draws: Sequence[Tensor] = ()
        self._terms: Terms = []

    def __call__(self, samples: Sequence[Sample], draws: Sequence[Tensor]) -> Terms:
        """Raises `InputError` if the step does what a graph cannot hold, or the inputs are not shaped as they were."""
        if self._calls < _WARM_UP:
            self._calls += 1
            return self._beside(samples, draws)
        if self._graph is None:
            self._graph = self._record(samples, draws)
        else:
            copy_inputs(self._samples, samples)
            for drawn, draw in zip(self._draws, draws, strict=True):
                drawn.copy_(draw)
            self._engine.count(len(samples))
        self._graph.replay()
        return [{name: term.clone() for name, term in row.items()} for row in self._terms]

    def _beside(self, samples: Sequence[Sample], draws: Sequence[Tensor]) -> Terms:
        """The step as it is, on the stream that will record it."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            terms = self._step(samples, draws)
        current.wait_stream(self._stream)
        return terms

    def _record(self, samples: Sequence[Sample], draws: Sequence[Tensor]) -> torch.cuda.CUDAGraph:
        self._samples = [_copied(sample) for sample in samples]
        self._draws = [draw.clone() for draw in draws]
        graph = torch.cuda.CUDAGraph()
        try:
            # the loader's threads may allocate page-locked memory meanwhile: only this thread is recorded
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                self._terms = self._step(self._samples, self._draws)
        except RuntimeError as error:
            raise InputError(
                f"training.cuda_graphs=true: this training cannot be recorded ({str(error).splitlines()[0]}); set it "
                "to false"
            ) from error
        return graph


def copy_inputs(recorded: Sequence[Sample], given: Sequence[Sample]) -> None:
    """Put what is given where the recorded kernels look for it.

    Raises `InputError` for other shapes: torch would copy a single coil over all, or leave old maps where there are
    none.
    """
    pairs = [(_tensors(ours), _tensors(theirs)) for ours, theirs in zip(recorded, given, strict=True)]
    for ours, theirs in pairs:
        for name in (*ours, *theirs):
            if _shape(ours.get(name)) != _shape(theirs.get(name)):
                raise InputError(
                    f"training.cuda_graphs=true repeats a step as it was recorded, but {name} is "
                    f"{_shape(theirs.get(name))} in this batch and was {_shape(ours.get(name))}: slices differ in "
                    "their number of coils; resume the run with training.cuda_graphs=false"
                )
    for ours, theirs in pairs:
        for name, tensor in theirs.items():
            ours[name].copy_(tensor)


def _shape(tensor: Tensor | None) -> str:
    return "none" if tensor is None else "×".join(map(str, tensor.shape))


def _copied(sample: Sample) -> Sample:
    clones: dict[str, Any] = {name: tensor.clone() for name, tensor in _tensors(sample).items()}
    return replace(sample, **clones)


def _tensors(sample: Sample) -> dict[str, Tensor]:
    """The fields of a sample that lie on the device."""
    return {field.name: value for field in fields(sample) if torch.is_tensor(value := getattr(sample, field.name))}
