"""Ray Train around the training loop: workers, restarts, and the figures on their way to the console."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from cluster.experiment import Experiment, build
from cluster.lease import LeaseLost
from cluster.ray_cluster import worker_bundle
from cluster.run_folder import RunFolder
from cluster.worker import LocalWorker
from storage.errors import InputError


class RayWorker(LocalWorker):
    """A rank under Ray Train: tells Ray every validation, which Ray Tune's schedulers act on."""

    def report(self, step: int, metrics: Mapping[str, float], history: Sequence[Mapping[str, float]]) -> None:
        import ray.train

        super().report(step, metrics, history)
        if any(name.startswith("val/") for name in metrics):
            ray.train.report({"step": step, **metrics})


def train_loop_per_worker(config: dict[str, Any]) -> None:
    """What Ray Train runs in each worker process."""
    import ray.train.torch

    from recon.history import TrainingDiverged
    from recon.train import train

    experiment = build(config["experiment"], Experiment, "experiment")
    torch.set_num_threads(experiment.cluster.cpus_per_worker)
    run = RunFolder(config["run_url"], config["lease"])
    # with these errors every rank ends, at the same step; an exception would make Ray start them all again
    try:
        with RayWorker(run, experiment.training, ray.train.torch.get_device()) as worker:
            train(experiment, worker)
    except LeaseLost:
        pass  # the driver sees it too
    except TrainingDiverged as error:
        if worker.rank == 0:
            run.write_failure(str(error))


def train_on_ray(experiment: Experiment, run: RunFolder, callbacks: Sequence[Any] = ()) -> None:
    """Train on the connected Ray cluster; workers that die are started again from the latest checkpoint.

    Raises `InputError` with the worker's own message if the training failed for good.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    run.clear_failure()
    cluster = experiment.cluster
    content = experiment.model_dump(mode="json", include=set(Experiment.model_fields))
    with tempfile.TemporaryDirectory(prefix="larmor-ray-") as scratch:
        trainer = TorchTrainer(
            train_loop_per_worker,
            train_loop_config={"experiment": content, "run_url": run.url, "lease": run.lease},
            scaling_config=ScalingConfig(
                num_workers=cluster.num_workers,
                use_gpu=cluster.use_gpu,
                resources_per_worker=worker_bundle(cluster.cpus_per_worker, cluster.use_gpu),
            ),
            torch_config=TorchConfig(backend="nccl" if cluster.use_gpu else "gloo"),
            run_config=RunConfig(
                name=experiment.name,
                # Ray keeps only its own notes here; what must last goes to the run's folder
                storage_path=scratch,
                failure_config=FailureConfig(max_failures=cluster.max_failures),
                callbacks=list(callbacks),
            ),
        )
        try:
            trainer.fit()
        except Exception as error:
            if cause := _user_error(error):
                raise InputError(cause) from error
            raise
    run.check_lease()
    if failure := run.failure():
        raise InputError(failure)


def _user_error(error: BaseException) -> str | None:
    """The message of the first `InputError` among the workers' failures."""
    failures = getattr(error, "worker_failures", None) or {}
    for failure in [error, *failures.values()]:
        current: BaseException | None = failure
        while current is not None:
            if isinstance(current, InputError):
                return str(current)
            cause = getattr(current, "cause", None)
            current = cause if isinstance(cause, BaseException) else current.__cause__
    return None
