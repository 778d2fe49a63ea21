"""The two halves of a GAN update, for one micro-batch each.

Each critic is updated by a `critic_step` of its own, one after another; the generator hears all of them at once. The
order of the calls is what makes them right. With several engines, others either crash in ZeRO 2 and
3 or train silently on wrong gradients: an unfrozen critic in ZeRO 1, a critic scored through its
engine in ZeRO 3, two `backward` calls before one `step` in ZeRO 1 and 2.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from larmor.recon.engines.engine import Engine
from larmor.recon.networks.lipschitz import gradient_penalty, interpolate

CriticLoss = Callable[[Tensor, Tensor], Tensor]
"""(real scores, fake scores), each (batch, 1) → scalar to minimise."""

GeneratorLoss = Callable[[Tensor, Sequence[Tensor]], dict[str, Tensor]]
"""(reconstruction, fake scores of each critic) → named scalar terms; "loss" is minimised."""

View = Callable[[Tensor], Tensor]
"""A reconstruction → what the critic sees of it."""


def as_it_is(reconstruction: Tensor) -> Tensor:
    """The critic sees the reconstruction itself."""
    return reconstruction


def critic_step(
    generator: Engine,
    critic: Engine,
    inputs: Sequence[Tensor | None],
    real: Tensor,
    loss_fn: CriticLoss,
    view: View = as_it_is,
    penalty: tuple[float, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Train the critic on one micro-batch; returns this rank's `critic_loss` and `gradient_penalty`, detached.

    `inputs` is what the generator takes, the zero-filled images first; `real` (batch, channel, height, width)
    float32; the critic gives (batch, 1). For the Wasserstein critic `loss_fn` is E[D(G(n))] − E[D(i)], eq. (5)
    of the paper. `penalty` is the weight of the gradient penalty and (batch, 1, 1, 1) where its points lie between real
    and fake (`lipschitz.interpolate`).

    Real and fake images go through the critic in a single forward pass, because an engine reduces its gradients
    once per pass. So the critic must not have batch norm: its statistics would mix the two, and tell them apart by
    that. The penalty's points go through the bare module: DeepSpeed's hooks on an engine's output would divide the
    slope by the accumulation, or refuse to give it. All gradients still arrive in the one backward pass.
    """
    with torch.no_grad():
        fake = view(generator.bare_forward(*inputs))
    real_scores, fake_scores = critic(torch.cat([real, fake])).split(len(real))
    terms = {"critic_loss": loss_fn(real_scores, fake_scores)}
    loss = terms["critic_loss"]
    if penalty is not None:
        weight, share = penalty
        points = interpolate(real, fake, share)
        terms["gradient_penalty"] = gradient_penalty(critic.bare_forward(points), points)
        loss = loss + weight * terms["gradient_penalty"]
    critic.backward(loss)
    critic.step()
    return {name: term.detach() for name, term in terms.items()}


def generator_step(
    generator: Engine,
    critics: Sequence[tuple[Engine, View]],
    inputs: Sequence[Tensor | None],
    loss_fn: GeneratorLoss,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Train the generator on one micro-batch; returns the reconstruction and the loss terms, detached.

    Arguments as in `critic_step`; `critics` are those that judge the reconstruction and what each of them sees of it,
    none where nothing adversarial is wanted. All are frozen meanwhile and called bare: gradients pass through them to
    the images, their own weights collect none and their engines notice nothing.
    """
    with frozen(*(critic for critic, _ in critics)):
        reconstruction = generator(*inputs)
        terms = loss_fn(reconstruction, [critic.bare_forward(view(reconstruction)) for critic, view in critics])
        generator.backward(terms["loss"])
        generator.step()
    return reconstruction.detach(), {name: term.detach() for name, term in terms.items()}


@contextmanager
def frozen(*critics: Engine) -> Iterator[None]:
    """No gradient reaches the weights of `critics` meanwhile."""
    parameters = [parameter for critic in critics for parameter in critic.module.parameters()]
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
