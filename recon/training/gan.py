"""Generator and critic in training: what each of the compared systems does with a batch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from larmor.recon.engines.build import build_engine
from larmor.recon.engines.engine import Engine, EngineSettings
from larmor.recon.networks.lipschitz import draw_shares
from larmor.recon.networks.networks import build_critic, build_generator
from larmor.recon.physics.fourier import fft2c, ifft2c
from larmor.recon.physics.samples import Sample
from larmor.recon.recipe.recipe import Recipe, learning_rate_factor
from larmor.recon.training.average import AveragedWeights
from larmor.recon.training.balance import Judge, measure
from larmor.recon.training.gan_step import View, as_it_is, critic_step, frozen, generator_step
from larmor.recon.training.losses import critic_loss, generator_loss
from larmor.recon.training.step_graph import Step, StepGraph
from larmor.storage.objects.errors import InputError

_PENALTY_STREAM = 0x6770  # of the recipe's seed: nothing else draws from it


class Gan:
    """The engines of a recipe. `critic` is None where nothing adversarial is wanted, `average` without EMA.

    Raises `InputError` where `training.cuda_graphs` meets several workers, and what the engines raise.
    """

    def __init__(self, recipe: Recipe, device: torch.device, rank: int = 0, world_size: int = 1) -> None:
        config = recipe.training
        self._recipe, self._rank, self._step = recipe, rank, 0
        recorded = config.cuda_graphs and device.type == "cuda"
        if recorded and world_size > 1:
            raise InputError(
                f"training.cuda_graphs=true records the steps of one worker, but there are {world_size}; set it to "
                "false"
            )
        torch.manual_seed(recipe.seed)
        networks = [build_generator(recipe.generator, recipe.signal.channels)]
        if recipe.loss.adversarial != "none":
            channels = 1 if recipe.loss.critic_sees == "measurement" else recipe.signal.channels
            networks.append(build_critic(recipe.critic, channels))
        if config.channels_last:
            for network in networks:
                _to_channels_last(network)
        self.average = AveragedWeights(networks[0], config.ema_decay, device) if config.ema_decay else None
        settings = EngineSettings(
            recipe.micro_batch_size(world_size),
            config.gradient_accumulation,
            config.zero_stage,
            config.dtype,
            recorded=recorded,
        )
        build = partial(build_engine, settings=settings, device=device, backend=config.backend)
        self.generator: Engine = build(networks[0], recipe.generator_optimizer)
        self.critic: Engine | None = None
        if len(networks) > 1:
            self.critic = build(networks[1], recipe.critic_optimizer, clip=recipe.critic.applied_clip)
        if config.compile:
            for engine in self.engines.values():
                engine.module.compile()
        self._graphs = self._make_graphs(device) if recorded else {}

    @property
    def engines(self) -> dict[str, Engine]:
        """The engines by name."""
        return {"generator": self.generator, **({"critic": self.critic} if self.critic else {})}

    def close(self) -> None:
        """Give the engines' memory back: a process may train again."""
        self._graphs.clear()
        for engine in self.engines.values():
            engine.close()

    @property
    def critic_steps(self) -> int:
        """Global batches of one generator step."""
        return self._recipe.critic.steps if self.critic else 1

    @property
    def best_generator(self) -> torch.nn.Module:
        """The generator that is validated and pulled: the averaged weights where there are any."""
        return self.average.module if self.average else self.generator.module

    def weights(self) -> dict[str, Tensor]:
        """The weights of `best_generator` as float32 on the CPU. Every rank calls."""
        if self.average:
            return {name: value.cpu() for name, value in self.average.module.state_dict().items()}
        return self.generator.state_dict()

    def set_learning_rates(self, step: int) -> None:
        """The learning rates of generator step `step`, counted from 0."""
        self._step = step
        factor = learning_rate_factor(self._recipe.training, step)
        self.generator.set_learning_rate(self._recipe.generator_optimizer.learning_rate * factor)
        if self.critic:
            self.critic.set_learning_rate(self._recipe.critic_optimizer.learning_rate * factor)

    def train_critic(self, samples: Sequence[Sample], number: int) -> list[dict[str, Tensor]]:
        """One critic update, the `number`-th of the training; the loss terms of each micro-batch."""
        shares: list[Tensor] = []
        if self._recipe.critic.lipschitz == "gradient_penalty":
            random = self._random(number)
            shares = [draw_shares(len(sample.target), random).to(sample.target.device) for sample in samples]
        return self._graphs.get("critic", self._step_critic)(samples, shares)

    def train_generator(self, samples: Sequence[Sample]) -> list[dict[str, Tensor]]:
        """One generator update; the loss terms of each micro-batch."""
        terms = self._graphs.get("generator", self._step_generator)(samples, ())
        if self.average:
            self.average.update(self.generator.module, self._step)
        return terms

    def balance(self, samples: Sequence[Sample]) -> list[dict[str, float]]:
        """What `recon/training/balance.py` says of each micro-batch, with the weights as they are. Every rank calls."""
        found = []
        with frozen(self.critic):
            for sample in samples:
                with torch.no_grad():
                    reconstruction = self.generator.bare_forward(*sample.measurement)
                found.append(measure(sample.target, reconstruction, self._recipe.loss, self._judge(sample)))
        return found

    def _judge(self, sample: Sample) -> Judge | None:
        if self.critic is None:
            return None
        critic, view = self.critic, self._view(sample)
        with torch.no_grad():
            real_scores = critic.bare_forward(self._real(sample))
        return Judge(lambda image: critic.bare_forward(view(image)), real_scores)

    def _real(self, sample: Sample) -> Tensor:
        """What the critic is to take for real."""
        return sample.zero_filled if self._recipe.loss.critic_sees == "measurement" else sample.target

    def _step_critic(self, samples: Sequence[Sample], shares: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        assert self.critic
        score = partial(critic_loss, kind=self._recipe.loss.adversarial)
        return [
            critic_step(
                self.generator,
                self.critic,
                sample.measurement,
                self._real(sample),
                score,
                self._view(sample),
                (self._recipe.critic.penalty_weight, shares[number]) if shares else None,
            )
            for number, sample in enumerate(samples)
        ]

    def _step_generator(self, samples: Sequence[Sample], _draws: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        terms = []
        for sample in samples:
            objective = partial(generator_loss, sample.target, config=self._recipe.loss)
            step = generator_step(self.generator, self.critic, sample.measurement, objective, self._view(sample))
            terms.append(step[1])
        return terms

    def _make_graphs(self, device: torch.device) -> dict[str, Step]:
        """Both steps, to be replayed as CUDA graphs; they hold this object, until it is closed."""
        pool = torch.cuda.graph_pool_handle()
        steps = {"generator": self._step_generator, "critic": self._step_critic}
        return {name: StepGraph(steps[name], engine, device, pool) for name, engine in self.engines.items()}

    def _view(self, sample: Sample) -> View:
        if self._recipe.loss.critic_sees == "image":
            return as_it_is
        # measured anew with the mask of another sample, as Cole et al. do: its artefacts must not be this one's
        mask = sample.mask.roll(1, dims=0)
        return lambda reconstruction: ifft2c(fft2c(reconstruction) * mask).abs()

    def _random(self, number: int) -> torch.Generator:
        key = [self._recipe.seed, _PENALTY_STREAM, number, self._rank]
        seed = np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1)
        return torch.Generator().manual_seed(int(seed))


def _to_channels_last(network: torch.nn.Module) -> None:
    """The weights of all convolutions; activations follow them."""
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
