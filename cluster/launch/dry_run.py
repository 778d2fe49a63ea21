"""What a training would do: its places, what it asks for, and what it takes, measured on a few steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from larmor.cluster.experiments.experiment import Experiment
from larmor.cluster.worker.training import train_recipe
from larmor.recon.decoding.trials import open_trials, split_trials
from larmor.recon.engines.device import choose_device
from larmor.recon.training.probe import Probe, count_parameters, probe
from larmor.storage.dataset.dataset import SplitInfo, read_split
from larmor.storage.loading.foresight import Foreseen, foresee
from larmor.storage.loading.loader import Share
from larmor.storage.loading.stacks import stack_starts
from larmor.storage.objects.object_store import ObjectStore

_SAMPLES_FORESEEN = 256  # of one worker


@dataclass(frozen=True)
class DryRun:
    """`samples` are slices, stacks or trials of the training split; `epoch_steps` generator steps see each once.

    `reading` is what one of all workers reads, without any cache; None for trials, which are read at once.
    """

    samples: int
    epoch_steps: float
    parameters: Mapping[str, int]
    probe: Probe
    reading: Foreseen | None

    def seconds(self, num_steps: int) -> float:
        """Of a training of so many steps, without validation, checkpoints and what workers tell each other."""
        return self.probe.step_seconds * num_steps


def dry_run(experiment: Experiment, device: str) -> DryRun:
    """Train a few steps with the share of one worker, on `device` of this machine. Writes nothing.

    Raises `InputError` for data that are not there or do not fit, and for a device that is not there.
    """
    cluster, chosen = experiment.cluster, choose_device(device)
    info = None if experiment.decoding is not None else _train_split(experiment)
    samples = len(stack_starts(info, experiment.data.stack)) if info else _count_trials(experiment)
    per_step = experiment.training.global_batch_size
    if experiment.decoding is None and experiment.loss.critics:
        per_step *= experiment.critic.steps
    threads = torch.get_num_threads()
    torch.set_num_threads(cluster.cpus_per_worker)
    try:
        found = probe(experiment, chosen, cluster.fewest_workers, train_recipe)
    finally:
        torch.set_num_threads(threads)
    reading = foresee_reading(experiment, info) if info else None
    return DryRun(samples, samples / per_step, count_parameters(experiment), found, reading)


def foresee_reading(experiment: Experiment, info: SplitInfo) -> Foreseen:
    """The first batches of one of the experiment's workers, of as many as there may be."""
    training, world_size = experiment.training, experiment.cluster.most_workers
    share = Share(0, world_size, training.global_batch_size, training.gradient_accumulation)
    batches = range(-(-_SAMPLES_FORESEEN * world_size // training.global_batch_size))
    with_maps = experiment.signal.needs_maps and any(bucket.shape[0] > 1 for bucket in info.buckets)
    return foresee(experiment.data, info, share, experiment.seed, batches, with_maps, experiment.signal.guide)


def _train_split(experiment: Experiment) -> SplitInfo:
    return read_split(ObjectStore(experiment.data.url), experiment.data.train_split).without_constant()


def _count_trials(experiment: Experiment) -> int:
    assert experiment.decoding is not None
    return len(split_trials(open_trials(experiment.data), experiment.decoding).train.run)
