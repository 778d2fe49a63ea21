"""Parts of one's own, tried out before a training asks for a cluster."""

from __future__ import annotations

import torch

from larmor.recon.inference.own_metrics import own_figures
from larmor.recon.networks.networks import build_critic, build_generator
from larmor.recon.networks.own_networks import check_critic, check_generator
from larmor.recon.physics.masks import make_mask
from larmor.recon.recipe.own_metric import find_metric
from larmor.recon.recipe.own_name import is_own
from larmor.recon.recipe.recipe import Recipe
from larmor.recon.training.losses import content_loss
from larmor.storage.objects.errors import InputError


def check_own_parts(recipe: Recipe) -> None:
    """Make each part of one's own, and call it with random images of the training's size.

    Raises `InputError` for one that cannot be imported or made, that fails, or that gives anything else than it should.
    """
    if not recipe.own_parts:
        return
    for key, name in recipe.own_parts.items():
        if "metric" in key:
            _check_metric(name, recipe.data.crop)
    size, channels = recipe.data.crop, recipe.signal.channels
    random = torch.Generator().manual_seed(0)
    image = torch.rand(recipe.data.stack, channels, *size, generator=random)
    mask = torch.from_numpy(make_mask(recipe.mask, size)).expand(len(image), 1, *size)
    if is_own(recipe.generator.name):
        coils = channels // 2 if recipe.signal.keeps_coils else 1
        kspace = torch.complex(*torch.rand(2, len(image), coils, *size, generator=random)) * mask
        maps = (torch.ones_like(kspace),) if recipe.signal.needs_maps else ()
        generator = build_generator(recipe.generator, channels, recipe.data.stack)
        check_generator(generator, (image, kspace, mask, *maps), recipe.generator.name)
    if is_own(recipe.critic.name) and recipe.loss.critics:
        check_critic(build_critic(recipe.critic, channels), image, recipe.critic.name)
    if is_own(recipe.loss.content):
        reconstruction = torch.rand(image.shape, generator=random).requires_grad_()
        if not content_loss(image, reconstruction, recipe.loss.content).requires_grad:
            raise InputError(f"loss.content={recipe.loss.content}: has no gradient with respect to the reconstruction")


def _check_metric(name: str, size: tuple[int, int]) -> None:
    find_metric(name)
    target, reconstruction = torch.rand(2, *size, generator=torch.Generator().manual_seed(0))
    own_figures((name,), target, reconstruction)
