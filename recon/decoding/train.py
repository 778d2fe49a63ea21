"""The training loop of a decoding: as `recon/training/train.py` has it for reconstruction, on trials held in memory."""

from __future__ import annotations

import contextlib

import numpy as np
import torch

from larmor.recon.decoding.order import batch_of_trials
from larmor.recon.decoding.scores import correlations, identified
from larmor.recon.decoding.tigan import TiganTraining, TrialBatch
from larmor.recon.decoding.trials import open_trials, shape_of_trials, split_trials
from larmor.recon.inference.metrics import slice_metrics
from larmor.recon.recipe.decoding import VALIDATED
from larmor.recon.recipe.recipe import Recipe
from larmor.recon.training.communication import listening
from larmor.recon.training.history import History
from larmor.recon.training.speed import Speed
from larmor.recon.training.step_clock import StepClock, timeline
from larmor.recon.training.train import EarlyStop, TrainingState
from larmor.recon.training.worker import Worker
from larmor.storage.dataset.trials import Trials


def train_decoding(recipe: Recipe, worker: Worker) -> bool:
    """Train until `training.num_steps` or an early stop, from the latest checkpoint if there is one.

    Returns, resumes and raises as `recon.training.train.train` does. The ranking loss compares the trials of a
    micro-batch, so that it depends on the number of workers; the order of the trials does not.
    """
    assert recipe.decoding, "the task is decoding"
    config = recipe.training
    trials = open_trials(recipe.data)
    split = split_trials(trials, recipe.decoding)
    clock = StepClock(timeline(worker.device), worker.progress)
    with contextlib.ExitStack() as resources:
        resources.enter_context(listening(clock))
        tigan = TiganTraining(recipe, recipe.decoding, shape_of_trials(trials), worker.device, worker.world_size)
        resources.callback(tigan.close)
        state = TrainingState(tigan, worker, EarlyStop(config))
        worker.restore(state.load)
        worker.begin(state.step)
        batches = TrialBatches(split.train, recipe, worker)
        speed = Speed(recipe, worker, None, clock, config.global_batch_size, state.training_seconds)
        log = History(worker, recipe, None, speed)

        stopping = False
        while not (ended := state.step >= config.num_steps or state.early_stop.reached) and not stopping:
            tigan.set_learning_rates(state.step)
            clock.enter("data", state.step)
            parts = batches.of_step(state.step)
            clock.enter("critic", state.step)
            critic_terms = tigan.train_critic(parts)
            state.global_batches += 1
            clock.enter("generator", state.step)
            terms = tigan.train_generator(parts)
            state.step += 1
            log.add(state.step, terms, critic_terms, ())

            stopping = worker.should_stop()
            checkpoint = state.step == config.num_steps or state.step % config.checkpoint_every == 0
            if checkpoint or state.step % config.validate_every == 0:
                clock.enter("validation", state.step)
                log.validation(validate_decoding(tigan, split.validation, worker))
                state.early_stop.add(log.validated)
                checkpoint = checkpoint or state.early_stop.reached
            if log.validated or stopping or state.step % config.log_every == 0:
                stopping = log.flush() or stopping
                state.training_seconds = speed.training_seconds
            if checkpoint or stopping:
                clock.enter("checkpoint", state.step)
                worker.save(state.step, log.metrics, state.save)
        return ended


class TrialBatches:
    """One rank's share of each global batch, on its device."""

    def __init__(self, trials: Trials, recipe: Recipe, worker: Worker) -> None:
        self._bold, self._stimulus = (
            torch.from_numpy(values).to(worker.device) for values in (trials.bold, trials.stimulus)
        )
        self._recipe, self._rank, self._world_size = recipe, worker.rank, worker.world_size

    def of_step(self, step: int) -> list[TrialBatch]:
        """The micro-batches of one step; a pure function of it."""
        training = self._recipe.training
        chosen = batch_of_trials(len(self._bold), self._recipe.seed, step, training.global_batch_size)
        parts = chosen.reshape(training.gradient_accumulation, self._world_size, -1)[:, self._rank]
        return [TrialBatch(self._bold[part], self._stimulus[part]) for part in parts]


def validate_decoding(tigan: TiganTraining, trials: Trials, worker: Worker) -> dict[str, float]:
    """Means of `VALIDATED` over the validation trials, and of `identification` and `correlation`, as `val/ssim`, …

    Every rank decodes all trials, which are few, so that all have the same figures.
    """
    decoded = tigan.decode(torch.from_numpy(trials.bold).to(worker.device)).float().cpu().numpy()
    rows = [slice_metrics(target[0], image[0]) for target, image in zip(trials.stimulus, decoded, strict=True)]
    figures = {name: float(np.mean([row[name] for row in rows])) for name in VALIDATED}
    figures["identification"] = float(identified(decoded, trials.stimulus).diagonal().mean())
    figures["correlation"] = float(correlations(decoded, trials.stimulus).diagonal().mean())
    return {f"val/{name}": value for name, value in figures.items()}
