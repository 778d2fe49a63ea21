"""Collective calls are told to who listens, and only then."""

from __future__ import annotations

import itertools

import torch
import torch.distributed as dist

from larmor.recon.engines.build import build_engine
from larmor.recon.engines.engine import EngineSettings
from larmor.recon.recipe.settings import OptimizerConfig
from larmor.recon.training.communication import listening


class Ear:
    def __init__(self) -> None:
        self.count = itertools.count()
        self.calls: list[tuple[int, int]] = []

    def mark(self) -> int:
        return next(self.count)

    def communicated(self, began: int, ended: int) -> None:
        self.calls.append((began, ended))


def test_blocking_calls_are_heard_while_somebody_listens() -> None:
    ear, values = Ear(), torch.ones(3)
    with listening(ear):
        network = torch.nn.Linear(2, 1)
        settings = EngineSettings(1, zero_stage=1)
        engine = build_engine(network, OptimizerConfig(), settings, "cpu")  # makes a group of one rank if there is none
        assert dist.is_initialized()
        ear.calls.clear()
        dist.all_reduce(values)
        assert ear.calls == [(ear.calls[0][0], ear.calls[0][0] + 1)]
        dist.all_reduce(values, async_op=True).wait()
        assert len(ear.calls) == 1, "one that is only begun says nothing"
        ear.calls.clear()
        engine.backward(engine(torch.ones(1, 2)).sum())
        engine.step()
        assert ear.calls, "DeepSpeed's own calls"
    heard = len(ear.calls)
    dist.all_reduce(values)
    assert len(ear.calls) == heard
    assert torch.equal(values, torch.ones(3))
