"""The training loop of one worker: the same under Ray, as a plain local process, and on a bare GPU machine."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from recon.augment import augment
from recon.critic import ResNet50Critic
from recon.engine import Engine, EngineSettings, build_engine
from recon.feed import feed, page_locked
from recon.gan_step import critic_step, generator_step
from recon.generator import ResNet50Generator
from recon.losses import critic_loss, generator_loss
from recon.recipe import Recipe, learning_rate_factor
from recon.samples import prepare
from recon.validate import validate
from recon.worker import Worker
from storage.config import open_loader, open_reader
from storage.errors import InputError
from storage.loader import Loader, Share


class TrainingDiverged(InputError):
    """A loss is not finite any more. Raised by all ranks at the same step; a restart would only repeat it."""


def train(recipe: Recipe, worker: Worker) -> None:
    """Train until `training.num_steps`, from the latest checkpoint if there is one.

    On the CPU the sequence of losses is, at a constant world size, the same bit for bit whether the training
    was interrupted or not.

    Raises `TrainingDiverged` if a loss is not finite any more, and `InputError` if the data do not fit.
    """
    config = recipe.training
    torch.manual_seed(recipe.seed)
    generator_net, critic_net = ResNet50Generator(recipe.generator), ResNet50Critic(recipe.critic)
    settings = EngineSettings(
        recipe.micro_batch_size(worker.world_size), config.gradient_accumulation, config.zero_stage, config.dtype
    )
    build = partial(build_engine, settings=settings, device=worker.device, backend=config.backend)
    generator = build(generator_net, recipe.generator_optimizer)
    critic = build(critic_net, recipe.critic_optimizer, clip=recipe.critic.clip)

    with contextlib.ExitStack() as resources:
        train_reader, validation_reader = (
            resources.enter_context(contextlib.closing(open_reader(recipe.data, split, patient=True)))
            for split in (recipe.data.train_split, recipe.data.validation_split)
        )
        share = Share(worker.rank, worker.world_size, config.global_batch_size, config.gradient_accumulation)
        loader = open_loader(recipe.data, train_reader, share, recipe.seed, page_locked(worker.device))

        state = TrainingState(generator, critic, worker)
        worker.restore(state.load)
        batches = loader.batches(state.step * recipe.critic.steps, end=config.num_steps * recipe.critic.steps)
        fed = feed(resources.enter_context(contextlib.closing(batches)), worker.device)
        change = partial(augment, config=recipe.augment, seed=recipe.seed) if recipe.augment.enabled else None
        score = partial(critic_loss, kind=recipe.loss.adversarial)
        objective = partial(generator_loss, config=recipe.loss)
        log = History(worker, loader, config.global_batch_size * recipe.critic.steps)

        while state.step < config.num_steps:
            factor = learning_rate_factor(config.schedule, state.step, config.num_steps)
            generator.set_learning_rate(recipe.generator_optimizer.learning_rate * factor)
            critic.set_learning_rate(recipe.critic_optimizer.learning_rate * factor)
            for _ in range(recipe.critic.steps):
                samples = [
                    prepare(next(fed), recipe.data.crop, recipe.mask, worker.device, change)
                    for _ in range(config.gradient_accumulation)
                ]
                critic_terms = [critic_step(generator, critic, s.zero_filled, s.target, score) for s in samples]
                state.critic_steps += 1
            terms = [generator_step(generator, critic, s.zero_filled, s.target, objective)[1] for s in samples]
            state.step += 1
            log.add(state.step, [{**g, "critic_loss": c} for g, c in zip(terms, critic_terms, strict=True)])

            last = state.step == config.num_steps
            checkpoint = last or state.step % config.checkpoint_every == 0
            if checkpoint or state.step % config.validate_every == 0:
                with log.clock_stopped():
                    log.validation(validate(generator.module, validation_reader, recipe, worker))
            if log.validated or state.step % config.log_every == 0:
                log.flush()
            if checkpoint:
                with log.clock_stopped():
                    worker.save(state.step, log.metrics, state.save)


class TrainingState:
    """Everything that must be the same after a restart: engines, counters, random state."""

    def __init__(self, generator: Engine, critic: Engine, worker: Worker) -> None:
        self.generator, self.critic, self.worker = generator, critic, worker
        self.step = 0
        self.critic_steps = 0

    def save(self, folder: Path) -> None:
        """Write this rank's files; rank 0 adds what all share, with the generator as safetensors."""
        self.generator.save(folder / "generator")
        self.critic.save(folder / "critic")
        torch.save(torch.get_rng_state(), folder / f"random-rank-{self.worker.rank:04d}.pt")
        weights = self.generator.state_dict()
        if self.worker.rank == 0:
            counters = {
                "step": self.step,
                "critic_steps": self.critic_steps,
                "global_batches": self.critic_steps,
                "world_size": self.worker.world_size,
            }
            (folder / "counters.json").write_text(json.dumps(counters))
            save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "generator.safetensors")

    def load(self, folder: Path) -> None:
        """Read what `save` wrote on all ranks. Raises `InputError` if it was written by another world size."""
        counters = json.loads((folder / "counters.json").read_text())
        if counters["world_size"] != self.worker.world_size:
            raise InputError(
                f"the checkpoint was written by {counters['world_size']} workers, this run has "
                f"{self.worker.world_size}; run with cluster.num_workers={counters['world_size']}"
            )
        self.generator.load(folder / "generator")
        self.critic.load(folder / "critic")
        torch.set_rng_state(torch.load(folder / f"random-rank-{self.worker.rank:04d}.pt", weights_only=True))
        self.step, self.critic_steps = counters["step"], counters["critic_steps"]


class History:
    """Collects the loss terms of each step and reports their means over micro-batches and ranks."""

    def __init__(self, worker: Worker, loader: Loader, slices_per_step: int) -> None:
        self.metrics: dict[str, float] = {}
        self.validated: dict[str, float] = {}
        self._worker, self._loader, self._slices_per_step = worker, loader, slices_per_step
        self._rows: list[tuple[int, dict[str, Tensor]]] = []
        self._began, self._waited, self._bytes = time.perf_counter(), 0.0, 0

    def add(self, step: int, terms: list[dict[str, Tensor]]) -> None:
        """The loss terms of one step, a dictionary for each micro-batch."""
        self._rows.append((step, {name: torch.stack([t[name] for t in terms]).mean() for name in terms[0]}))

    def validation(self, metrics: dict[str, float]) -> None:
        """Validation metrics that belong to the newest step."""
        self.validated = metrics

    @contextlib.contextmanager
    def clock_stopped(self) -> Iterator[None]:
        """Time in here does not count as training time."""
        began = time.perf_counter()
        yield
        self._began += time.perf_counter() - began

    def flush(self) -> None:
        """Report the rows since the last flush. Raises `TrainingDiverged` at a loss that is not finite."""
        names = sorted(self._rows[0][1])
        local = torch.stack([torch.stack([row[name].float() for name in names]) for _, row in self._rows]).cpu()
        mean = torch.stack(self._worker.gather(local)).mean(dim=0)
        history: list[dict[str, float]] = [
            {"step": step, **dict(zip(names, values.tolist(), strict=True))}
            for (step, _), values in zip(self._rows, mean, strict=True)
        ]
        self._rows.clear()
        for row in history:
            bad = [name for name in names if not math.isfinite(row[name])]
            if bad:
                raise TrainingDiverged(
                    f"training diverged: {bad[0]} is {row[bad[0]]} at step {int(row['step'])}; lower the learning "
                    "rates or critic.clip; the checkpoints before this step are kept"
                )
        now, waited = time.perf_counter(), self._loader.seconds_waiting
        elapsed = max(now - self._began, 1e-9)
        num_bytes = self._loader.counts.bytes_read
        history[-1] |= self.validated | {
            "slices_per_second": len(history) * self._slices_per_step / elapsed,
            "bytes_per_second": (num_bytes - self._bytes) / elapsed,
            "waiting_share": (waited - self._waited) / elapsed,
        }
        self._began, self._waited, self._bytes, self.validated = now, waited, num_bytes, {}
        self.metrics = {name: value for name, value in history[-1].items() if name != "step"}
        self._worker.report(int(history[-1]["step"]), self.metrics, history)
