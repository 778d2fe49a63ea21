"""TIGAN in training: two engines, as `recon/training/gan.py` has them for reconstruction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from larmor.recon.decoding.losses import generator_loss
from larmor.recon.decoding.networks import Tigan, build_critic, unpacked
from larmor.recon.decoding.trials import TrialShape
from larmor.recon.engines.build import build_engine
from larmor.recon.engines.engine import Engine, EngineSettings
from larmor.recon.recipe.decoding import DecodingConfig
from larmor.recon.recipe.recipe import Recipe, learning_rate_factor
from larmor.recon.training.average import AveragedWeights
from larmor.recon.training.gan_step import critic_step, generator_step
from larmor.recon.training.losses import critic_loss


@dataclass(frozen=True)
class TrialBatch:
    """A micro-batch on the device: `bold` (batch, volume, voxel), `stimulus` (batch, 1, size, size)."""

    bold: Tensor
    stimulus: Tensor


class TiganTraining:
    """The engines of a decoding recipe; `critics` is empty where `decoding.adversarial` is 0, else it has one."""

    average: AveragedWeights | None = None

    def __init__(
        self, recipe: Recipe, config: DecodingConfig, shape: TrialShape, device: torch.device, world_size: int
    ) -> None:
        self._recipe, self._config, self._size = recipe, config, shape.size
        training = recipe.training
        torch.manual_seed(recipe.seed)
        networks = [Tigan(shape, config), *([build_critic(shape, config)] if config.adversarial else [])]
        settings = EngineSettings(
            recipe.micro_batch_size(world_size), training.gradient_accumulation, training.zero_stage, training.dtype
        )
        build = partial(build_engine, settings=settings, device=device, backend=training.backend)
        self.generator: Engine = build(networks[0], recipe.generator_optimizer)
        self.critics: list[Engine] = [build(network, recipe.critic_optimizer) for network in networks[1:]]

    @property
    def engines(self) -> dict[str, Engine]:
        """The engines by name."""
        return dict(zip(("generator", "critic"), (self.generator, *self.critics), strict=False))

    def close(self) -> None:
        """Give the engines' memory back."""
        for engine in self.engines.values():
            engine.close()

    def weights(self) -> dict[str, Tensor]:
        """The weights of the generator as float32 on the CPU. Every rank calls."""
        return self.generator.state_dict()

    def set_learning_rates(self, step: int) -> None:
        """The learning rates of generator step `step`, counted from 0."""
        factor = learning_rate_factor(self._recipe.training, step)
        self.generator.set_learning_rate(self._recipe.generator_optimizer.learning_rate * factor)
        for critic in self.critics:
            critic.set_learning_rate(self._recipe.critic_optimizer.learning_rate * factor)

    def train_critic(self, batches: Sequence[TrialBatch]) -> list[dict[str, Tensor]]:
        """One critic update; the loss terms of each micro-batch, none without a critic."""
        score = partial(critic_loss, kind="bce")
        terms: list[dict[str, Tensor]] = [{} for _ in batches]
        for critic in self.critics:
            for batch, found in zip(batches, terms, strict=True):
                inputs = (batch.bold, batch.stimulus)
                found |= critic_step(self.generator, critic, inputs, batch.stimulus, score, self._decoded)
        return terms

    def train_generator(self, batches: Sequence[TrialBatch]) -> list[dict[str, Tensor]]:
        """One generator update; the loss terms of each micro-batch."""
        terms = []
        for batch in batches:
            objective = partial(generator_loss, batch.stimulus, config=self._config)
            critics = [(critic, self._decoded) for critic in self.critics]
            terms.append(generator_step(self.generator, critics, (batch.bold, batch.stimulus), objective)[1])
        return terms

    @torch.no_grad()
    def decode(self, bold: Tensor) -> Tensor:
        """The images (trial, 1, size, size) of trials. Every rank calls, with the same trials."""
        return self.generator.bare_forward(bold)

    def _decoded(self, output: Tensor) -> Tensor:
        return unpacked(output, self._size).decoded
