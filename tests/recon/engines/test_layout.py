"""Steps of DeepSpeed as a GPU wants them: channels last, of which it takes no weights, and no value on the host."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from larmor.recon.engines.build import build_engine
from larmor.recon.engines.engine import EngineSettings
from larmor.recon.engines.layout import put_weights_in_order
from larmor.recon.recipe.settings import OptimizerConfig

CPU = torch.device("cpu")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 2, 3, bias=False))


def with_channels_last(module: nn.Module) -> nn.Module:
    other = copy.deepcopy(module)
    for parameter in other.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return other


def test_images_lie_with_the_channels_last_instead_of_weights() -> None:
    module = with_channels_last(network())
    put_weights_in_order(module)
    assert all(parameter.is_contiguous() for parameter in module.parameters())
    assert module(torch.randn(2, 1, 9, 7)).is_contiguous(memory_format=torch.channels_last)
    plain = network()
    put_weights_in_order(plain)
    assert plain(torch.randn(2, 1, 9, 7)).is_contiguous(), "whoever does not ask for it keeps planes"


@pytest.mark.parametrize("stage", [1, 2])
def test_deepspeed_takes_a_value_to_the_host_for_each_group_of_weights_alone(stage: int) -> None:
    """Its norm of the gradients fills in a number that lies on the device, and that PyTorch asks for."""
    settings = EngineSettings(2, zero_stage=stage, dtype="bfloat16")
    engine = build_engine(network(), OptimizerConfig(name="rmsprop"), settings, CPU, 0.5)

    def step() -> None:
        engine.backward(engine(torch.randn(2, 1, 9, 7)).square().mean())
        engine.step()

    step()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step()
    engine.close()
    taken = [event for event in profiled.events() if event.name == "aten::_local_scalar_dense"]
    asked = [event.cpu_parent.cpu_parent.name for event in taken]
    assert asked == ["aten::masked_fill_"] * 2, "clipped weights, and the others"


@pytest.mark.parametrize("stage", [0, 2])
def test_a_step_through_deepspeed_is_the_same_in_either_layout(stage: int) -> None:
    images, weights = torch.randn(2, 1, 9, 7), []
    for module in (network(), with_channels_last(network())):
        settings = EngineSettings(2, zero_stage=stage)
        engine = build_engine(module, OptimizerConfig(name="rmsprop"), settings, CPU, 0.5)
        engine.backward(engine(images).square().mean())
        engine.step()
        weights.append(engine.state_dict())
        engine.close()
    assert weights[0].keys() == weights[1].keys()
    for name, wanted in weights[0].items():
        torch.testing.assert_close(weights[1][name], wanted, rtol=1e-4, atol=1e-5)
