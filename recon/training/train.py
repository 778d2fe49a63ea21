"""The training loop of one worker: the same under Ray, as a plain local process, and on a bare GPU machine."""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file

from larmor.recon.engines.engine import Engine
from larmor.recon.physics.augment import changes
from larmor.recon.physics.coils import coils_of_split
from larmor.recon.physics.feed import feed, page_locked
from larmor.recon.physics.samples import prepare
from larmor.recon.recipe.own_metric import find_metric
from larmor.recon.recipe.recipe import Recipe, TrainingConfig
from larmor.recon.training.average import AveragedWeights
from larmor.recon.training.communication import listening
from larmor.recon.training.gan import Gan
from larmor.recon.training.history import History
from larmor.recon.training.initial import start_from
from larmor.recon.training.speed import Speed
from larmor.recon.training.starts import Starts
from larmor.recon.training.step_clock import StepClock, timeline
from larmor.recon.training.validate import validate
from larmor.recon.training.worker import Worker
from larmor.storage.loading.config import cache_folder, open_loader, open_reader
from larmor.storage.loading.loader import Share
from larmor.storage.loading.reader import SliceReader
from larmor.storage.loading.stacks import check_stack

_LOG = logging.getLogger(__name__)


def train(recipe: Recipe, worker: Worker) -> bool:
    """Train until `training.num_steps` or an early stop, from the latest checkpoint if there is one.

    Returns False if the worker asked to stop before: then the last step done is in a checkpoint. On the CPU the
    sequence of losses is, at a constant world size, the same bit for bit whether the training was interrupted or
    not; at another world size the samples and their order are.

    Raises `TrainingDiverged` if a loss or a validation metric is not finite any more or the critic runs away,
    and `InputError` if the data do not fit or hold values that are not finite.
    """
    config = recipe.training
    clock = StepClock(timeline(worker.device), worker.progress)
    with contextlib.ExitStack() as resources:
        resources.enter_context(listening(clock))
        gan = Gan(recipe, worker.device, worker.rank, worker.world_size)
        resources.callback(gan.close)
        train_reader, validation_reader = (
            resources.enter_context(
                contextlib.closing(open_reader(recipe.data, split, patient=True, **recipe.signal.beside))
            )
            for split in (recipe.data.train_split, recipe.data.validation_split)
        )
        stack, crop = recipe.data.stack, recipe.data.crop
        for reader in (train_reader, validation_reader):
            check_stack(reader.info, stack)
        if worker.rank == 0:
            _count_constant(train_reader, validation_reader)
        share = Share(worker.rank, worker.world_size, config.global_batch_size, config.gradient_accumulation)
        loader = open_loader(recipe.data, train_reader, share, recipe.seed, page_locked(worker.device))

        state = TrainingState(gan, worker, EarlyStop(config))
        if not worker.restore(state.load) and recipe.init_from:
            worker.initial(partial(start_from, gan=gan))
        worker.begin(state.step)
        batches = loader.batches(state.step * gan.critic_steps, end=config.num_steps * gan.critic_steps)
        coils = coils_of_split(train_reader, recipe.signal)
        fed = feed(resources.enter_context(contextlib.closing(batches)), worker.device)
        move, recolour = changes(recipe.augment, recipe.seed)
        num_slices = config.global_batch_size * gan.critic_steps * stack
        speed = Speed(recipe, worker, loader, clock, num_slices, state.training_seconds)
        starts = Starts(gan.whole, recipe, train_reader.info.identity, cache_folder(recipe.data, "starts"))
        log = History(worker, recipe, train_reader.info, speed)

        stopping = False
        while not (ended := state.step >= config.num_steps or state.early_stop.reached) and not stopping:
            gan.set_learning_rates(state.step)
            for _ in range(gan.critic_steps):
                clock.enter("data", state.step)
                prepared = (
                    prepare(coils(next(fed)), crop, recipe.mask, worker.device, move, recipe.signal, stack, recolour)
                    for _ in range(config.gradient_accumulation)
                )
                samples = [starts.add(sample) for sample in prepared]
                clock.enter("critic", state.step)
                critic_terms = gan.train_critics(samples, state.global_batches)
                state.global_batches += 1
            clock.enter("generator", state.step)
            terms = gan.train_generator(samples)
            state.step += 1
            log.add(state.step, terms, critic_terms, samples)
            if state.step % config.log_every == 0:
                log.balance(gan.balance(samples))

            stopping = worker.should_stop()
            last = state.step == config.num_steps
            checkpoint = last or state.step % config.checkpoint_every == 0
            if checkpoint or state.step % config.validate_every == 0:
                clock.enter("validation", state.step)
                log.validation(validate(gan.best_generator, validation_reader, recipe, worker, state.step))
                state.early_stop.add(log.validated)
                checkpoint = checkpoint or state.early_stop.reached
            if log.validated or stopping or state.step % config.log_every == 0:
                stopping = log.flush() or stopping
                state.training_seconds = speed.training_seconds
            if checkpoint or stopping:  # the notice is short: no validation for its sake
                clock.enter("checkpoint", state.step)
                worker.save(state.step, log.metrics, state.save)
        return ended


def _count_constant(*readers: SliceReader) -> None:
    for info in (reader.info for reader in readers):
        if info.num_constant:
            whole = info.num_constant + info.num_slices
            _LOG.warning("%s: %d of %d slices are constant and left out", info.name, info.num_constant, whole)


class EarlyStop:
    """Whether `training.early_stop` validations in a row were no better than the best before them."""

    def __init__(self, config: TrainingConfig) -> None:
        self.best: float | None = None
        self.in_vain = 0
        self._name, self._patience = config.best_metric, config.early_stop
        self._sign = 1 if find_metric(config.best_metric).higher_is_better else -1

    @property
    def reached(self) -> bool:
        return self._patience is not None and self.in_vain >= self._patience

    def load(self, counters: Mapping[str, Any]) -> None:
        """What `TrainingState.save` wrote. A best that is not finite, of an older Larmor, is none."""
        best = counters["best"]
        known = best is not None and math.isfinite(best)
        self.best, self.in_vain = (best, counters["validations_in_vain"]) if known else (None, 0)

    def add(self, validated: dict[str, float]) -> None:
        """The figures of a validation, `val/psnr` and so on."""
        value = validated[f"val/{self._name}"] * self._sign
        if self.best is None or value > self.best:
            self.best, self.in_vain = value, 0
        else:
            self.in_vain += 1


class Trained(Protocol):
    """As much of `Gan`, or of what another task trains, as a checkpoint needs."""

    average: AveragedWeights | None

    @property
    def critics(self) -> Sequence[Any]: ...

    @property
    def engines(self) -> dict[str, Engine]: ...

    def weights(self) -> dict[str, torch.Tensor]: ...


class TrainingState:
    """Everything that must be the same after a restart: engines, averaged weights, counters, random state."""

    def __init__(self, gan: Trained, worker: Worker, early_stop: EarlyStop) -> None:
        self.gan, self.worker, self.early_stop = gan, worker, early_stop
        self.step = 0
        self.training_seconds = 0.0
        self.global_batches = 0

    def save(self, folder: Path) -> None:
        """Write this rank's files; rank 0 adds what all share, with the generator as safetensors."""
        for name, engine in self.gan.engines.items():
            engine.save(folder / name)
        torch.save(torch.get_rng_state(), folder / f"random-rank-{self.worker.rank:04d}.pt")
        weights = self.gan.weights()
        if self.worker.rank == 0:
            counters = {
                "step": self.step,
                "critic_steps": self.global_batches if self.gan.critics else 0,
                "global_batches": self.global_batches,
                "world_size": self.worker.world_size,
                "training_seconds": self.training_seconds,
                "best": self.early_stop.best,
                "validations_in_vain": self.early_stop.in_vain,
            }
            (folder / "counters.json").write_text(json.dumps(counters))
            save_file(_apart(weights), folder / "generator.safetensors")

    def load(self, folder: Path) -> None:
        """Read what `save` wrote on all ranks, as many as there are now or not. Raises what the engines raise."""
        counters = json.loads((folder / "counters.json").read_text())
        for name, engine in self.gan.engines.items():
            engine.load(folder / name)
        if self.gan.average:  # what is pulled is the average itself
            self.gan.average.module.load_state_dict(load_file(folder / "generator.safetensors"))
        rank = self.worker.rank % counters["world_size"]
        torch.set_rng_state(torch.load(folder / f"random-rank-{rank:04d}.pt", weights_only=True))
        self.step, self.global_batches = counters["step"], counters["global_batches"]
        self.training_seconds = counters.get("training_seconds", 0.0)
        self.early_stop.load(counters)


def _apart(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights, tied ones as copies: safetensors refuses tensors that share memory."""
    apart: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in weights.items():
        apart[name] = tensor.contiguous()
        if apart[name].data_ptr() in seen:
            apart[name] = tensor.clone()
        seen.add(apart[name].data_ptr())
    return apart
