"""The critics of a training: what each sees of a sample, how it is updated, and how it judges a reconstruction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from larmor.recon.engines.engine import Engine
from larmor.recon.networks.lipschitz import draw_shares
from larmor.recon.physics.fourier import fft2c, ifft2c
from larmor.recon.physics.random_stream import torch_stream
from larmor.recon.physics.samples import Sample
from larmor.recon.physics.transfer import sent
from larmor.recon.recipe.critic_role import CriticRole
from larmor.recon.recipe.recipe import Recipe
from larmor.recon.training.balance import Judge
from larmor.recon.training.gan_step import View, as_it_is, critic_step
from larmor.recon.training.losses import critic_loss

_PENALTY_STREAM = 0x6770  # of the recipe's seed: nothing else draws from it


@dataclass(frozen=True)
class Critic:
    """A critic in its role."""

    role: CriticRole
    engine: Engine
    recipe: Recipe

    def view(self, sample: Sample) -> View:
        """What it sees of a reconstruction of `sample`."""
        if self.role.sees == "image":
            return as_it_is
        if self.role.sees == "residual":
            return lambda reconstruction: reconstruction - sample.zero_filled
        # measured anew with the mask of another sample, as Cole et al. do: its artefacts must not be this one's
        mask = sample.mask.roll(1, dims=0)
        return lambda reconstruction: ifft2c(fft2c(reconstruction) * mask).abs()

    def real(self, sample: Sample) -> Tensor:
        """What it is to take for real: (batch, channels, height, width)."""
        return sample.zero_filled if self.role.sees == "measurement" else self.view(sample)(sample.target)

    def draw(self, samples: Sequence[Sample], number: int, rank: int) -> list[Tensor]:
        """Where the points of the gradient penalty lie in update `number`: a tensor for each micro-batch, none without
        a penalty."""
        if self.recipe.critic.lipschitz != "gradient_penalty":
            return []
        random = torch_stream([self.recipe.seed, _PENALTY_STREAM, number, rank, *self.role.suffix.encode()])
        return [sent(draw_shares(len(sample.target), random), sample.target.device) for sample in samples]

    def update(self, generator: Engine, samples: Sequence[Sample], shares: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """One update over the micro-batches; their loss terms, which carry the suffix of the role."""
        terms = [
            critic_step(
                generator,
                self.engine,
                sample.measurement,
                self.real(sample),
                partial(critic_loss, kind=self.recipe.loss.adversarial),
                self.view(sample),
                (self.recipe.critic.penalty_weight, shares[number]) if shares else None,
            )
            for number, sample in enumerate(samples)
        ]
        return [{f"{name}{self.role.suffix}": term for name, term in row.items()} for row in terms]

    def judge(self, sample: Sample) -> Judge:
        """Its scores of reconstructions of `sample`, and of the real image. Every rank calls."""
        view = self.view(sample)
        with torch.no_grad():
            real_scores = self.engine.bare_forward(self.real(sample))
        return Judge(lambda image: self.engine.bare_forward(view(image)), real_scores)
