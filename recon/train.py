"""The training loop of one worker: the same under Ray, as a plain local process, and on a bare GPU machine."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from recon.augment import augment
from recon.feed import feed, page_locked
from recon.gan import Gan
from recon.metrics import HIGHER_IS_BETTER
from recon.recipe import Recipe, TrainingConfig
from recon.samples import Sample, prepare
from recon.validate import validate
from recon.worker import Worker
from storage.config import open_loader, open_reader
from storage.dataset import SplitInfo
from storage.errors import InputError
from storage.loader import Loader, Share


class TrainingDiverged(InputError):
    """A loss is not finite any more, or the critic ran away.

    Raised by all ranks at the same step; a restart would only repeat it.
    """


def train(recipe: Recipe, worker: Worker) -> None:
    """Train until `training.num_steps` or an early stop, from the latest checkpoint if there is one.

    On the CPU the sequence of losses is, at a constant world size, the same bit for bit whether the training
    was interrupted or not.

    Raises `TrainingDiverged` if a loss is not finite any more or the critic runs away, and `InputError` if the data
    do not fit or hold values that are not finite.
    """
    config = recipe.training
    gan = Gan(recipe, worker.device, worker.rank, worker.world_size)
    with contextlib.ExitStack() as resources:
        train_reader, validation_reader = (
            resources.enter_context(contextlib.closing(open_reader(recipe.data, split, patient=True)))
            for split in (recipe.data.train_split, recipe.data.validation_split)
        )
        share = Share(worker.rank, worker.world_size, config.global_batch_size, config.gradient_accumulation)
        loader = open_loader(recipe.data, train_reader, share, recipe.seed, page_locked(worker.device))

        state = TrainingState(gan, worker, EarlyStop(config))
        worker.restore(state.load)
        batches = loader.batches(state.step * gan.critic_steps, end=config.num_steps * gan.critic_steps)
        fed = feed(resources.enter_context(contextlib.closing(batches)), worker.device)
        change = partial(augment, config=recipe.augment, seed=recipe.seed) if recipe.augment.enabled else None
        log = History(worker, loader, recipe, train_reader.info, config.global_batch_size * gan.critic_steps)

        while state.step < config.num_steps and not state.early_stop.reached:
            gan.set_learning_rates(state.step)
            for _ in range(gan.critic_steps):
                samples = [
                    prepare(next(fed), recipe.data.crop, recipe.mask, worker.device, change, recipe.signal)
                    for _ in range(config.gradient_accumulation)
                ]
                critic_terms = gan.train_critic(samples, state.global_batches) if gan.critic else []
                state.global_batches += 1
            terms = gan.train_generator(samples)
            state.step += 1
            log.add(state.step, terms, critic_terms, samples)

            last = state.step == config.num_steps
            checkpoint = last or state.step % config.checkpoint_every == 0
            if checkpoint or state.step % config.validate_every == 0:
                with log.clock_stopped():
                    log.validation(validate(gan.best_generator, validation_reader, recipe, worker))
                state.early_stop.add(log.validated)
                checkpoint = checkpoint or state.early_stop.reached
            if log.validated or state.step % config.log_every == 0:
                log.flush()
            if checkpoint:
                with log.clock_stopped():
                    worker.save(state.step, log.metrics, state.save)


class EarlyStop:
    """Whether `training.early_stop` validations in a row were no better than the best before them."""

    def __init__(self, config: TrainingConfig) -> None:
        self.best: float | None = None
        self.in_vain = 0
        self._name, self._patience = config.best_metric, config.early_stop

    @property
    def reached(self) -> bool:
        return self._patience is not None and self.in_vain >= self._patience

    def add(self, validated: dict[str, float]) -> None:
        """The figures of a validation, `val/psnr` and so on."""
        value = validated[f"val/{self._name}"] * (1 if HIGHER_IS_BETTER[self._name] else -1)
        if self.best is None or value > self.best:
            self.best, self.in_vain = value, 0
        else:
            self.in_vain += 1


class TrainingState:
    """Everything that must be the same after a restart: engines, averaged weights, counters, random state."""

    def __init__(self, gan: Gan, worker: Worker, early_stop: EarlyStop) -> None:
        self.gan, self.worker, self.early_stop = gan, worker, early_stop
        self.step = 0
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
                "critic_steps": self.global_batches if self.gan.critic else 0,
                "global_batches": self.global_batches,
                "world_size": self.worker.world_size,
                "best": self.early_stop.best,
                "validations_in_vain": self.early_stop.in_vain,
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
        for name, engine in self.gan.engines.items():
            engine.load(folder / name)
        if self.gan.average:  # what is pulled is the average itself
            self.gan.average.module.load_state_dict(load_file(folder / "generator.safetensors"))
        torch.set_rng_state(torch.load(folder / f"random-rank-{self.worker.rank:04d}.pt", weights_only=True))
        self.step, self.global_batches = counters["step"], counters["global_batches"]
        self.early_stop.best, self.early_stop.in_vain = counters["best"], counters["validations_in_vain"]


class History:
    """Collects the loss terms of each step and reports their means over micro-batches and ranks."""

    def __init__(self, worker: Worker, loader: Loader, recipe: Recipe, info: SplitInfo, slices_per_step: int) -> None:
        self.metrics: dict[str, float] = {}
        self.validated: dict[str, float] = {}
        self._worker, self._loader, self._slices_per_step = worker, loader, slices_per_step
        self._recipe, self._info = recipe, info
        self._inputs: list[tuple[np.ndarray, Tensor]] = []
        self._rows: list[tuple[int, dict[str, Tensor]]] = []
        self._began, self._waited, self._bytes = time.perf_counter(), 0.0, 0

    def add(
        self,
        step: int,
        terms: list[dict[str, Tensor]],
        critic_terms: list[dict[str, Tensor]],
        samples: Sequence[Sample],
    ) -> None:
        """The loss terms of one step and what it was trained on; dictionaries and a sample for each micro-batch."""
        rows = [{**ours, **critics} for ours, critics in zip(terms, critic_terms or [{}] * len(terms), strict=True)]
        self._rows.append((step, {name: torch.stack([row[name] for row in rows]).mean() for name in rows[0]}))
        # sums stay on the device: only if a loss is not finite are they looked at
        self._inputs += [(sample.samples, sample.target.sum(dim=(1, 2, 3))) for sample in samples]

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
            self._check(row)
        self._inputs.clear()
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

    def _check(self, row: dict[str, float]) -> None:
        """Raises `TrainingDiverged`, or `InputError` if it was the data, on every rank alike."""
        step = int(row["step"])
        bad = [name for name, value in row.items() if not math.isfinite(value)]
        if bad:
            broken = sorted({name for part in self._worker.gather(self._broken_slices()) for name in part})
            if broken:
                raise InputError(
                    f"training stopped at step {step}: values that are not finite in {', '.join(broken[:5])}"
                    f"{f' and {len(broken) - 5} more' if len(broken) > 5 else ''} of {self._recipe.data.url} "
                    f"({self._info.name}); `larmor verify` "
                    "shows what else is broken; the checkpoints before this step are kept"
                )
            raise TrainingDiverged(
                f"training diverged: {bad[0]} is {row[bad[0]]} at step {step}; lower the learning rates or "
                "critic.clip; the checkpoints before this step are kept"
            )
        limit = self._recipe.training.largest_critic_loss
        if abs(row.get("critic_loss", 0.0)) > limit:
            raise TrainingDiverged(
                f"the critic diverged: critic_loss is {row['critic_loss']:.4g} at step {step}, more than "
                f"training.largest_critic_loss={limit:g}; lower critic_optimizer.learning_rate or critic.clip, or "
                "choose another critic.lipschitz; the checkpoints before this step are kept"
            )

    def _broken_slices(self) -> list[str]:
        """The slices since the last flush, of this rank, whose image is not finite."""
        return [
            f"slice {int(self._info.index[index])} of {self._info.volumes[int(self._info.volume[index])]}"
            for samples, sums in self._inputs
            for (_, index), finite in zip(samples.tolist(), torch.isfinite(sums).tolist(), strict=True)
            if not finite
        ]
