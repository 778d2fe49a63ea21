"""The two halves of a GAN update, for one micro-batch each.

The order of the calls is what makes them right. With two engines, others either crash in ZeRO 2 and
3 or train silently on wrong gradients: an unfrozen critic in ZeRO 1, a critic scored through its
engine in ZeRO 3, two `backward` calls before one `step` in ZeRO 1 and 2.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from recon.engine import Engine

CriticLoss = Callable[[Tensor, Tensor], Tensor]
"""(real scores, fake scores), each (batch, 1) → scalar to minimise."""

GeneratorLoss = Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]]
"""(target, reconstruction, fake scores) → named scalar terms; the one called "loss" is minimised."""


def critic_step(generator: Engine, critic: Engine, zero_filled: Tensor, target: Tensor, loss_fn: CriticLoss) -> Tensor:
    """Train the critic on one micro-batch; returns this rank's loss, detached.

    `zero_filled` and `target` are float32 (batch, channel, height, width); the critic gives
    (batch, 1). For the Wasserstein critic `loss_fn` is E[D(G(n))] − E[D(i)], eq. (5) of the paper.

    Real and fake images go through the critic in a single forward pass, because an engine reduces
    its gradients once per pass. So the critic must not have batch norm: its statistics would mix the
    two, and tell them apart by that.
    """
    with torch.no_grad():
        fake = generator.bare_forward(zero_filled)
    real_scores, fake_scores = critic(torch.cat([target, fake])).split(len(target))
    loss = loss_fn(real_scores, fake_scores)
    critic.backward(loss)
    critic.step()
    return loss.detach()


def generator_step(
    generator: Engine, critic: Engine, zero_filled: Tensor, target: Tensor, loss_fn: GeneratorLoss
) -> tuple[Tensor, dict[str, Tensor]]:
    """Train the generator on one micro-batch; returns the reconstruction and the loss terms, detached.

    Shapes as in `critic_step`. The critic is frozen meanwhile and called bare: gradients pass
    through it to the images, its own weights collect none and its engine notices nothing.
    """
    with _frozen(critic.module):
        reconstruction = generator(zero_filled)
        terms = loss_fn(target, reconstruction, critic.bare_forward(reconstruction))
        generator.backward(terms["loss"])
        generator.step()
    return reconstruction.detach(), {name: term.detach() for name, term in terms.items()}


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
