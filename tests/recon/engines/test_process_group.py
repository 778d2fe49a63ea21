"""Process groups come and go in a process that trains again and again: a notebook, a slot of a sweep, these tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from larmor.recon.engines.build import build_engine
from larmor.recon.engines.engine import Engine, EngineSettings
from larmor.recon.recipe.settings import OptimizerConfig


@pytest.fixture(autouse=True)
def _no_process_group() -> Iterator[None]:
    leave()
    yield
    leave()


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def engine(zero_stage: int) -> Engine:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
    settings = EngineSettings(micro_batch_size=4, zero_stage=zero_stage, persistence_threshold=0)
    return build_engine(module, OptimizerConfig(), settings, "cpu")


def trained(engine: Engine) -> dict[str, Tensor]:
    images = torch.linspace(-1, 1, 32).reshape(4, 8)
    for _ in range(2):
        engine.backward(engine(images).square().mean())
        engine.step()
    return engine.state_dict()


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_a_process_that_left_its_group_trains_again(zero_stage: int, closed: bool) -> None:
    first = engine(zero_stage)
    before = trained(first)
    if closed:
        first.close()
    for of_the_caller in (False, True):
        dist.destroy_process_group()
        if of_the_caller:
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        again = engine(zero_stage)
        torch.testing.assert_close(trained(again), before, rtol=0, atol=0)
        again.close()


def test_engines_of_one_group_share_what_deepspeed_made_for_it() -> None:
    generator, critic = engine(1), engine(1)
    assert generator._engine.seq_data_parallel_group is critic._engine.seq_data_parallel_group  # type: ignore[attr-defined]
