"""Counted operations equal those of a step that is really computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from larmor.recon.physics.samples import Sample
from larmor.recon.recipe.recipe import Recipe
from larmor.recon.recipe.signal import SignalConfig
from larmor.recon.training.flops import flops_per_step
from larmor.recon.training.gan import Gan

SIZE = (64, 96)


def recipe(system: str, batch: int = 6, loss: dict[str, Any] | None = None, **critic: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "system": system,
            "data": {"url": "unused", "crop": SIZE},
            "generator": {"width": 4},
            "critic": {"width": 4, **critic},
            "loss": loss or {},
            "training": {"global_batch_size": batch, "backend": "plain", "zero_stage": 0},
        }
    )


def signal_of(coils: int) -> SignalConfig:
    return SignalConfig(mode="complex", coils="all", num_coils=coils)


@pytest.mark.parametrize("loss", [{}, {"residual_critic": 1.0}], ids=["one critic", "two critics"])
def test_a_step_is_counted_as_it_is_computed(loss: dict[str, Any]) -> None:
    one = recipe("gan_resnet50", loss=loss, steps=1)
    gan = Gan(one, torch.device("cpu"))
    images = torch.rand(6, 1, *SIZE)
    mask = torch.ones(6, 1, *SIZE, dtype=torch.bool)
    sample = Sample(images, images, images.to(torch.complex64), mask, torch.zeros(6, 2), torch.zeros(6, 2).numpy())
    with FlopCounterMode(display=False) as counted:
        gan.train_critics([sample], 0)
        gan.train_generator([sample])
    assert flops_per_step(one) == counted.get_total_flops() > 0


def test_complex_convolutions_are_counted_for_all_coils() -> None:
    """A real convolution of twice the channels each way, once a block and coil images of any number."""
    few, many = (
        flops_per_step(recipe("deepcomplexmri", 1).model_copy(update={"signal": signal_of(coils)})) for coils in (2, 12)
    )
    pixels, inner, cascades = SIZE[0] * SIZE[1], 3 * 8 * 8, 10
    outer = 2 * 8 * 2 * 10  # two convolutions, between twice the width and twice as many more coils
    forward = 2 * 9 * pixels * cascades
    assert many - few == pytest.approx(3 * forward * outer, rel=0.1)
    assert few == pytest.approx(3 * forward * (inner + 2 * 8 * 2 * 2), rel=0.1)


def test_critic_steps_and_the_penalty_add_to_it_and_no_random_number_is_drawn() -> None:
    state = torch.get_rng_state()
    one, three = (flops_per_step(recipe("dagan", steps=steps)) for steps in (1, 3))
    with_penalty = flops_per_step(recipe("dagan", steps=1, lipschitz="gradient_penalty"))
    assert one < with_penalty < three < 3 * one
    assert torch.equal(torch.get_rng_state(), state)


def test_it_grows_with_the_batch_also_without_a_critic() -> None:
    small, large = (flops_per_step(recipe("unet", batch)) for batch in (2, 4))
    assert large == 2 * small > 0
