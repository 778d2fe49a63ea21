"""Floating-point operations of training, counted by going through a step on tensors without content."""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from larmor.recon.engines.engine import Engine
from larmor.recon.networks.networks import build_critic, build_generator, trained_part
from larmor.recon.recipe.recipe import Recipe
from larmor.recon.training.gan_step import as_it_is, critic_step, generator_step
from larmor.recon.training.losses import critic_loss, generator_loss


def flops_per_step(recipe: Recipe) -> int:
    """Operations of one generator step with its critic steps, over the global batch: a multiplication and an addition
    are two.

    Convolutions and matrix products count, forward and backward, as the step needs them; everything else (norms,
    FFTs, losses, the optimiser, the preparation of the samples) does not. Takes a second, draws no random number.
    """
    batch = recipe.training.global_batch_size
    critic_flops, generator_flops = _of_one_sample(recipe)
    return batch * (recipe.critic.steps * critic_flops + generator_flops)


def flops_per_image(recipe: Recipe) -> int:
    """Operations of one reconstruction, counted as in `flops_per_step`; a classical start does not count."""
    stack = recipe.data.stack
    with torch.device("meta"):
        generator = build_generator(recipe.generator, recipe.signal.channels, stack, recipe.signal.guide)
        measurement = _measurement(recipe)
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        generator(*measurement)
    return int(counted.get_total_flops()) // stack


def _measurement(recipe: Recipe) -> list[Tensor | None]:
    """What a generator takes for one image or stack, without content."""
    stack, crop = recipe.data.stack, recipe.data.crop
    image = torch.empty(stack, recipe.signal.channels, *crop)
    kspace = torch.empty(stack, recipe.signal.kspace_coils, *crop, dtype=torch.complex64)
    measured: list[Tensor | None] = [image, kspace, torch.empty(stack, 1, *crop, dtype=torch.bool)]
    start = image if recipe.generator.start.enabled else None  # made before the step
    if recipe.signal.guide:
        return [*measured, None, start, torch.empty(stack, 1, *crop)]
    return measured if start is None else [*measured, None, start]


def _of_one_sample(recipe: Recipe) -> tuple[int, int]:
    """Of a critic step (0 without a critic) and of a generator step, on one slice or stack."""
    channels, stack = recipe.signal.channels, recipe.data.stack
    with torch.device("meta"):
        measurement = _measurement(recipe)
        image = torch.empty(stack, channels, *recipe.data.crop)
        part = trained_part(build_generator(recipe.generator, channels, stack, recipe.signal.guide))
        generator = _counted(part.module)
        if part.is_denoiser:  # on an image and its level of noise
            measurement = [image, torch.empty(stack, 1, 1, 1)]
        critics = [_counted(build_critic(recipe.critic, channels)) for _ in recipe.loss.critics]
    penalty = None
    if recipe.critic.lipschitz == "gradient_penalty":
        penalty = recipe.critic.penalty_weight, torch.empty(stack, 1, 1, 1, device="meta")
    score = partial(critic_loss, kind=recipe.loss.adversarial)
    objective = partial(generator_loss, image, config=recipe.loss)
    with FlopCounterMode(display=False) as counted:
        for critic in critics:
            critic_step(generator, critic, measurement, image, score, penalty=penalty)
        critic_flops = counted.get_total_flops()
        generator_step(generator, [(critic, as_it_is) for critic in critics], measurement, objective)
        return critic_flops, counted.get_total_flops() - critic_flops


def _counted(module: nn.Module) -> Engine:
    return cast(Engine, _Counted(module))


class _Counted:
    """As much of an `Engine` as a step needs."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        return self.bare_forward(*inputs)

    def bare_forward(self, *inputs: Tensor | None) -> Tensor:
        # the counter's hooks on modules cannot bear gradients with respect to their very inputs (gradient penalty)
        output: Tensor = self.module(*(x * 1 if x is not None and x.requires_grad else x for x in inputs))
        return output

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        pass
