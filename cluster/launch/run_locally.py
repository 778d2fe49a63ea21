"""Training in this process, without Ray."""

from __future__ import annotations

import signal

import torch

from larmor.cluster.experiments.experiment import Experiment
from larmor.cluster.runs.lease import Say
from larmor.cluster.runs.run_folder import RunFolder
from larmor.cluster.worker.ranks import Ranks
from larmor.cluster.worker.stopping import Stopped, StopRequest, withdraw_stop_order
from larmor.cluster.worker.tracking import Tracking
from larmor.cluster.worker.training import train_recipe
from larmor.cluster.worker.worker import RunWorker
from larmor.recon.engines.device import choose_device
from larmor.recon.training.history import TrainingDiverged
from larmor.storage.objects.errors import InputError


def check_local(experiment: Experiment, device: str) -> torch.device:
    """Raises `InputError` for more than one worker, and for a device that is not there."""
    if experiment.cluster.fewest_workers != 1:
        raise InputError(
            f"cluster.num_workers={experiment.cluster.fewest_workers}: a training without Ray has one worker; "
            "set cluster.num_workers=1 or leave --local out"
        )
    return choose_device(device)


def train_locally(experiment: Experiment, run: RunFolder, device: str, say: Say = print) -> None:
    """Train in this process, without Ray.

    Raises what `check_local` raises, `Stopped` after a signal to stop, and `TrainingDiverged`, which is recorded too.
    """
    chosen, cluster = check_local(experiment, device), experiment.cluster
    torch.set_num_threads(cluster.cpus_per_worker)
    run.clear_failure()
    withdraw_stop_order(run.store)
    request = StopRequest(cluster.grace_seconds)
    with request.listening(signal.SIGTERM, signal.SIGINT, say=say):
        worker = RunWorker(Ranks(), run, experiment.training, chosen, request, tracking=Tracking(experiment, run))
        try:
            with worker.watched(cluster.hang_seconds), worker:
                finished = train_recipe(experiment, worker)
        except TrainingDiverged as error:
            run.write_failure(str(error))
            raise
    if not finished:
        message = f"stopped after step {worker.place.step} ({request.reason}); the same command resumes it"
        raise Stopped(message, request.number)
