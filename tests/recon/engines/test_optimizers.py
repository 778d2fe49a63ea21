"""Weight clipping inside the optimiser's step."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from larmor.recon.engines.optimizers import build_optimizer, clip_weights_, parameter_groups
from larmor.recon.recipe.settings import OptimizerConfig
from larmor.storage.objects.errors import InputError

NAMES = ["rmsprop", "adam", "adamw"]


def random_parameters(*sizes: int) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(size, generator=generator)) for size in sizes]


def set_gradients(parameters: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("name", NAMES)
def test_clipped_step_is_the_plain_step_then_a_clamp(name: str) -> None:
    config = OptimizerConfig(name=name, learning_rate=0.02)
    clipped, plain = random_parameters(300, 7), random_parameters(300, 7)
    optimizers = build_optimizer(clipped, config, clip=0.5), build_optimizer(plain, config)
    for step in range(5):
        for parameters, optimizer in zip((clipped, plain), optimizers, strict=True):
            set_gradients(parameters, step)
            optimizer.step()
        for ours, theirs in zip(clipped, plain, strict=True):
            theirs.data.clamp_(-0.5, 0.5)
            assert torch.equal(ours, theirs)
    assert clipped[0].abs().max() == 0.5  # something was clamped, and to the very constant


def test_every_group_is_clamped_at_its_own_learning_rate() -> None:
    first, second = random_parameters(50, 60)
    groups = [{"params": [first]}, {"params": [second], "lr": 0.5}]
    optimizer = build_optimizer(groups, OptimizerConfig(learning_rate=1e-6), clip=0.1)
    set_gradients([first, second], 0)
    optimizer.step()
    assert [group["lr"] for group in optimizer.param_groups] == [1e-6, 0.5]
    assert first.abs().max() == torch.tensor(0.1)
    assert (second.abs() == torch.tensor(0.1)).all()  # a step of 5 throws all of them over the edge


def test_only_weights_of_convolutions_and_dense_layers_are_clamped() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(4, 1))
    for parameter in module.parameters():
        parameter.data.add_(2.0)
    clip_weights_(module, 0.01)
    optimizer = build_optimizer(parameter_groups(module, 0.01), OptimizerConfig(), clip=0.01)
    set_gradients(list(module.parameters()), 0)
    optimizer.step()
    inside = {name for name, parameter in module.named_parameters() if parameter.abs().max() <= torch.tensor(0.01)}
    assert inside == {"0.weight", "3.weight"}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 6


def test_without_a_constant_the_parameters_are_one_group_in_their_order() -> None:
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4))
    (group,) = parameter_groups(module, None)
    assert [id(parameter) for parameter in group["params"]] == [id(parameter) for parameter in module.parameters()]


def test_clamping_follows_parameters_that_are_swapped_in_later() -> None:
    """ZeRO replaces the parameters of the groups by its own partitions after construction."""
    optimizer = build_optimizer(random_parameters(4), OptimizerConfig(), clip=0.01)
    partition = random_parameters(9)[0]
    optimizer.param_groups[0]["params"] = [partition]
    set_gradients([partition], 0)
    optimizer.step()
    assert partition.abs().max() <= 0.01


@pytest.mark.parametrize("name", NAMES)
def test_closure_and_its_loss_pass_through(name: str) -> None:
    parameters = random_parameters(3)
    optimizer = build_optimizer(parameters, OptimizerConfig(name=name), clip=1.0)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = parameters[0].square().sum()
        loss.backward()
        return loss

    loss = optimizer.step(closure)  # type: ignore[arg-type]  # as many people write it
    assert loss is not None
    assert float(torch.as_tensor(loss).detach()) > 0


def test_initial_clipping_changes_nothing_that_is_inside() -> None:
    module = nn.Linear(8, 8)
    before = module.weight.detach().clone()
    clip_weights_(module, 0.2)
    inside = before.abs() <= 0.2
    assert torch.equal(module.weight[inside], before[inside])
    assert module.weight.abs().max() <= 0.2
    assert all(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("clip", [0.0, -0.01, float("inf"), float("nan")])
def test_a_constant_that_cannot_clip_is_refused(clip: float) -> None:
    with pytest.raises(InputError, match=r"positive number, for example 0\.01"):
        clip_weights_(nn.Linear(2, 2), clip)
    with pytest.raises(InputError):
        build_optimizer(random_parameters(2), OptimizerConfig(), clip)


@pytest.mark.parametrize("settings", [{"learning_rate": 0}, {"name": "sgd"}, {"momentum": 0.9}, {"beta1": 1.0}])
def test_settings_are_checked(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        OptimizerConfig.model_validate(settings)


def test_settings_reach_the_optimizer() -> None:
    config = OptimizerConfig(name="adam", learning_rate=0.1, beta1=0.3, beta2=0.9, epsilon=1e-3, weight_decay=0.2)
    group = build_optimizer(random_parameters(2), config).param_groups[0]
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (0.1, (0.3, 0.9), 1e-3, 0.2)
    assert build_optimizer(random_parameters(2), OptimizerConfig(alpha=0.7)).param_groups[0]["alpha"] == 0.7
