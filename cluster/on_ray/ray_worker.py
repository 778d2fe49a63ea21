"""A rank of a training under Ray Train."""

from __future__ import annotations

import time

import torch

from larmor.cluster.experiments.experiment import Experiment, build
from larmor.cluster.on_ray.attempt import AttemptEnd, WorkConfig
from larmor.cluster.runs.lease import LeaseLost
from larmor.cluster.runs.run_folder import RunFolder
from larmor.cluster.worker.worker import LocalWorker
from larmor.recon.training.history import TrainingDiverged
from larmor.recon.training.train import train

_ASK_RAY_SECONDS = 5.0


class RayWorker(LocalWorker):
    """A rank under Ray Train: hears of nodes that are about to be taken away."""

    _asked_ray = 0.0

    def should_stop(self) -> bool:
        import ray.train

        due = time.monotonic() - self._asked_ray > _ASK_RAY_SECONDS
        if due:
            self._asked_ray = time.monotonic()
        wanted, ask = self.vote(due)
        # all ranks ask, and Ray gives all of them the same answer
        if ask and not wanted and (notice := ray.train.get_preemption_info()) is not None:
            self.request.ask(f"Ray takes the nodes of ranks {notice.preempted_ranks} away")
            return True
        return wanted


def work(config: WorkConfig) -> AttemptEnd:
    """Train as `config` says, and as the other ranks do; what happened."""
    import ray.train.torch

    from larmor.cluster.on_ray.ray_backend import this_process_request

    experiment = build(config.experiment, Experiment, "experiment")
    cluster = experiment.cluster
    torch.set_num_threads(cluster.cpus_per_worker)
    run = RunFolder(config.run_url, config.lease)
    request = this_process_request(cluster.grace_seconds)
    # with these errors every rank ends, at the same step; an exception would make Ray start them all again
    try:
        worker = RayWorker(run, experiment.training, ray.train.torch.get_device(), request)
        with worker.watched(cluster.hang_seconds), worker:
            finished = train(experiment, worker)
            reasons = [reason for reason in worker.gather(request.reason) if reason]
    except LeaseLost:
        return AttemptEnd("failed")  # the driver sees it too
    except TrainingDiverged as error:
        if worker.rank == 0:
            run.write_failure(str(error))
        return AttemptEnd("failed")
    finally:
        request.close()
    if finished:
        return AttemptEnd("finished")
    return AttemptEnd("stopped", worker.place.step, reasons[0] if reasons else "unknown")
