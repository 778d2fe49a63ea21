"""Generator and critic in training: what each of the compared systems does with a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from larmor.recon.engines.build import build_engine
from larmor.recon.engines.engine import Engine, EngineSettings
from larmor.recon.engines.optimizers import inside
from larmor.recon.networks.networks import build_critic, build_generator, trained_part
from larmor.recon.physics.samples import Sample
from larmor.recon.recipe.recipe import Recipe, learning_rate_factor
from larmor.recon.training.average import AveragedWeights
from larmor.recon.training.balance import measure
from larmor.recon.training.critics import Critic
from larmor.recon.training.denoising import draw_noise
from larmor.recon.training.gan_step import frozen, generator_step
from larmor.recon.training.losses import generator_loss
from larmor.recon.training.step_graph import Step, StepGraph
from larmor.storage.objects.errors import InputError


class Gan:
    """The engines of a recipe. `critics` is empty where nothing adversarial is wanted, `average` None without EMA.

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
        roles = recipe.loss.critics
        self.whole = build_generator(recipe.generator, recipe.signal.channels, recipe.data.stack, recipe.signal.guide)
        self._part = trained_part(self.whole)
        networks = [self._part.module]
        networks += [build_critic(recipe.critic, recipe.critic_channels) for _ in roles]
        if config.channels_last:
            for network in networks:
                _to_channels_last(network)
        continues = recipe.init_from is not None and recipe.init_from.averages
        self.average = AveragedWeights(self.whole, config.ema_decay, device, continues) if config.ema_decay else None
        settings = EngineSettings(
            recipe.micro_batch_size(world_size),
            config.gradient_accumulation,
            config.zero_stage,
            config.dtype,
            recorded=recorded,
        )
        build = partial(build_engine, settings=settings, device=device, backend=config.backend)
        self.generator: Engine = build(networks[0], recipe.generator_optimizer)
        build_one = partial(build, optimizer_config=recipe.critic_optimizer, clip=recipe.critic.applied_clip)
        self.critics = [
            Critic(role, build_one(network), recipe) for role, network in zip(roles, networks[1:], strict=True)
        ]
        if config.compile:
            for engine in self.engines.values():
                engine.module.compile()
        self._graphs = self._make_graphs(device) if recorded else {}

    @property
    def engines(self) -> dict[str, Engine]:
        """The engines by name."""
        return {"generator": self.generator, **{critic.role.engine: critic.engine for critic in self.critics}}

    def close(self) -> None:
        """Give the engines' memory back: a process may train again."""
        self._graphs.clear()
        for engine in self.engines.values():
            engine.close()

    @property
    def critic_steps(self) -> int:
        """Global batches of one generator step."""
        return self._recipe.critic.steps if self.critics else 1

    @property
    def best_generator(self) -> torch.nn.Module:
        """The generator that is validated and pulled: the averaged weights where there are any."""
        return self.average.module if self.average else self.whole

    def weights(self) -> dict[str, Tensor]:
        """The weights of `best_generator` as float32 on the CPU. Every rank calls."""
        if self.average:
            return {name: value.cpu() for name, value in self.average.module.state_dict().items()}
        return {f"{self._part.prefix}{name}": value for name, value in self.generator.state_dict().items()}

    def start_from(self, weights: Mapping[str, Mapping[str, Tensor]], average: Mapping[str, Tensor] | None) -> None:
        """Take over the weights of another training, those there are: engine → name → tensor. Every rank calls.

        Without an `average` the averaged weights start from those of the generator.
        """
        for name, found in weights.items():
            engine = self.engines[name]
            clip = None if name == "generator" else self._recipe.critic.applied_clip
            engine.set_weights(found if clip is None else inside(engine.module, found, clip))
        if self.average:
            own = {f"{self._part.prefix}{name}": value for name, value in weights["generator"].items()}
            self.average.module.load_state_dict(own if average is None else average, strict=False)

    def set_learning_rates(self, step: int) -> None:
        """The learning rates of generator step `step`, counted from 0."""
        self._step = step
        factor = learning_rate_factor(self._recipe.training, step)
        self.generator.set_learning_rate(self._recipe.generator_optimizer.learning_rate * factor)
        for critic in self.critics:
            critic.engine.set_learning_rate(self._recipe.critic_optimizer.learning_rate * factor)

    def train_critics(self, samples: Sequence[Sample], number: int) -> list[dict[str, Tensor]]:
        """One update of every critic, the `number`-th of the training; the loss terms of each micro-batch, empty
        without a critic."""
        terms: list[dict[str, Tensor]] = [{} for _ in samples]
        for critic in self.critics:  # each is done before the next begins
            update = self._graphs.get(critic.role.engine, partial(critic.update, self.generator))
            for row, found in zip(terms, update(samples, critic.draw(samples, number, self._rank)), strict=True):
                row |= found
        return terms

    def train_generator(self, samples: Sequence[Sample]) -> list[dict[str, Tensor]]:
        """One generator update; the loss terms of each micro-batch."""
        terms = self._graphs.get("generator", self._step_generator)(samples, self._draw(samples))
        if self.average:
            self.average.update(self.whole, self._step)
        return terms

    def balance(self, samples: Sequence[Sample]) -> list[dict[str, float]]:
        """What `recon/training/balance.py` says of each micro-batch, with the weights as they are. Every rank calls."""
        found = []
        with frozen(*(critic.engine for critic in self.critics)):
            for sample, inputs in zip(samples, self._inputs(samples, self._draw(samples)), strict=True):
                with torch.no_grad():
                    reconstruction = self.generator.bare_forward(*inputs)
                judges = [critic.judge(sample) for critic in self.critics]
                found.append(measure(sample.target, reconstruction, self._recipe.loss, judges))
        return found

    def _draw(self, samples: Sequence[Sample]) -> list[Tensor]:
        """For a denoiser the noise and its level, of each micro-batch in turn; empty for what is trained on samples."""
        if not self._part.is_denoiser:
            return []
        return draw_noise([sample.target for sample in samples], self._recipe.seed, self._step, self._rank)

    def _inputs(self, samples: Sequence[Sample], draws: Sequence[Tensor]) -> list[tuple[Tensor | None, ...]]:
        """What the trained network is called with."""
        if not self._part.is_denoiser:
            return [sample.measurement for sample in samples]
        return [
            (sample.target + noise, level)
            for sample, noise, level in zip(samples, draws[::2], draws[1::2], strict=True)
        ]

    def _step_generator(self, samples: Sequence[Sample], draws: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        terms = []
        for sample, inputs in zip(samples, self._inputs(samples, draws), strict=True):
            objective = partial(generator_loss, sample.target, config=self._recipe.loss)
            critics = [(critic.engine, critic.view(sample)) for critic in self.critics]
            terms.append(generator_step(self.generator, critics, inputs, objective)[1])
        return terms

    def _make_graphs(self, device: torch.device) -> dict[str, Step]:
        """All steps, to be replayed as CUDA graphs; they hold this object, until it is closed."""
        pool = torch.cuda.graph_pool_handle()
        steps: dict[str, Step] = {"generator": self._step_generator}
        steps |= {critic.role.engine: partial(critic.update, self.generator) for critic in self.critics}
        return {name: StepGraph(steps[name], engine, device, pool) for name, engine in self.engines.items()}


def _to_channels_last(network: torch.nn.Module) -> None:
    """The weights of all convolutions; activations follow them."""
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
