"""A rank of a training under Ray Train."""

from __future__ import annotations

import contextlib

import torch

from larmor.cluster.experiments.experiment import Experiment, build
from larmor.cluster.on_ray.attempt import AttemptEnd, WorkConfig
from larmor.cluster.on_ray.ray_gauges import set_ray_gauge
from larmor.cluster.runs.lease import LeaseLost
from larmor.cluster.runs.run_folder import RunFolder
from larmor.cluster.worker.ranks import Ranks
from larmor.cluster.worker.tracking import Tracking
from larmor.cluster.worker.training import train_recipe
from larmor.cluster.worker.worker import RunWorker
from larmor.recon.recipe.own_code import use_pinned_code
from larmor.recon.training.history import TrainingDiverged


def preemption_notice() -> str | None:
    """Whether Ray is about to take nodes away; the same answer on all ranks."""
    import ray.train

    if (notice := ray.train.get_preemption_info()) is None:
        return None
    return f"Ray takes the nodes of ranks {notice.preempted_ranks} away"


def work(config: WorkConfig) -> AttemptEnd:
    """Train as `config` says, and as the other ranks do; what happened."""
    import ray.train.torch

    from larmor.cluster.on_ray.ray_backend import this_process_request

    experiment = build(config.experiment, Experiment, "experiment")
    use_pinned_code(experiment.code)
    cluster = experiment.cluster
    torch.set_num_threads(cluster.cpus_per_worker)
    run = RunFolder(config.run_url, config.lease)
    request = this_process_request(cluster.grace_seconds)
    # with these errors every rank ends, at the same step; an exception would make Ray start them all again
    try:
        ranks, device = Ranks(), ray.train.torch.get_device()
        tracking = Tracking(experiment, run, set_gauge=set_ray_gauge)
        worker = RunWorker(ranks, run, experiment.training, device, request, preemption_notice, tracking=tracking)
        with worker.watched(cluster.hang_seconds), contextlib.closing(ranks), worker:
            finished = train_recipe(experiment, worker)
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
