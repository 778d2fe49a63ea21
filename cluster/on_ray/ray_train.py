"""Ray Train around the training loop: workers, restarts, and the figures on their way to the console."""

from __future__ import annotations

import signal
import tempfile
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from larmor.cluster.experiments.experiment import ClusterConfig, Experiment, dump_for_workers
from larmor.cluster.on_ray.attempt import AttemptEnd, WorkConfig
from larmor.cluster.on_ray.ray_cluster import worker_bundle
from larmor.cluster.runs.run_folder import RunFolder
from larmor.cluster.worker.stopping import Stopped, StopRequest, order_stop, withdraw_stop_order
from larmor.storage.objects.errors import InputError

Config = TypeVar("Config")
End = TypeVar("End")


def train_loop_per_worker(config: WorkConfig) -> AttemptEnd:
    """What Ray Train runs in each worker process; what it returns of rank 0 is the outcome."""
    from larmor.cluster.on_ray.ray_worker import work

    return work(config)


def train_on_ray(experiment: Experiment, run: RunFolder, say: Callable[[str], None] = print) -> None:
    """Train on the connected Ray cluster; workers that die are started again from the latest checkpoint.

    Workers that were asked to stop, since their machine is taken away, are started again as well, as soon as the
    cluster has room. Raises `InputError` with the worker's own message if the training failed for good or the restarts
    are used up, and `Stopped` if this process was asked to stop.
    """
    run.clear_failure()
    withdraw_stop_order(run.store)
    with StopRequest(experiment.cluster.grace_seconds).listening(signal.SIGTERM, signal.SIGINT, say=say) as request:
        while True:
            outcome = _fit_until(request, experiment, run)
            run.check_lease()
            if failure := run.failure():
                raise InputError(failure)
            if outcome.state == "finished":
                return
            message = f"stopped after step {outcome.step} ({outcome.reason})"
            if request.reason:
                raise Stopped(f"{message}; the same command resumes it", request.number)
            say(f"{message}; resuming as soon as there is room")


def _fit_until(request: StopRequest, experiment: Experiment, run: RunFolder) -> AttemptEnd:
    """Train; pass a request to stop on to the workers. In the main thread Ray would take Ctrl-C for itself."""
    if threading.current_thread() is not threading.main_thread():
        return _fit(experiment, run)
    results: list[AttemptEnd] = []
    errors: list[BaseException] = []

    def fit() -> None:
        try:
            results.append(_fit(experiment, run))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=fit, name="larmor-fit", daemon=True)
    thread.start()
    ordered = False
    while thread.is_alive():
        thread.join(0.2)
        if request.reason and not ordered:
            run.check_lease()  # another process's training must not be stopped by this one's signal
            order_stop(run.store, request.reason)
            ordered = True
    if errors:
        raise errors[0]
    return results[0]


def _fit(experiment: Experiment, run: RunFolder) -> AttemptEnd:
    from larmor.cluster.on_ray.ray_backend import GiveUpAtMistakes, describe_failure, mistake_of

    config = WorkConfig(dump_for_workers(experiment), run.url, run.lease)
    cluster = experiment.cluster
    try:
        return fit_workers(
            train_loop_per_worker, config, cluster, experiment.name, GiveUpAtMistakes(), cluster.max_failures
        )
    except Exception as error:
        if (mistake := mistake_of(error)) is not None:
            raise InputError(str(mistake)) from error
        if (failure := describe_failure(error, cluster.max_failures)) is not None:
            raise InputError(failure) from error
        raise


def fit_workers(
    loop: Callable[[Config], End],
    config: Config,
    cluster: ClusterConfig,
    name: str,
    callback: Any,
    max_failures: int,
) -> End:
    """Run `loop(config)` in a group of Ray Train's workers, as `cluster` wants them; what rank 0 returns.

    Workers that die are started again `max_failures` times (-1: always); `callback` hears of it.
    """
    import ray.train
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    from larmor.cluster.on_ray.ray_backend import WorkerGroupConfig

    ray_train: Any = ray.train  # its types are those of its first version
    trainer_class: Any = DataParallelTrainer

    def train_loop() -> End:
        return loop(config)

    with tempfile.TemporaryDirectory(prefix="larmor-ray-") as scratch:
        trainer = trainer_class(
            train_loop,
            scaling_config=ray_train.ScalingConfig(
                num_workers=cluster.num_workers
                if isinstance(cluster.num_workers, int)
                else (cluster.fewest_workers, cluster.most_workers),
                elastic_resize_monitor_interval_s=cluster.resize_seconds,
                use_gpu=cluster.use_gpu,
                resources_per_worker=worker_bundle(cluster.cpus_per_worker, cluster.use_gpu),
            ),
            backend_config=WorkerGroupConfig(
                "nccl" if cluster.use_gpu else "gloo", 2 * cluster.hang_seconds, cluster.grace_seconds
            ),
            run_config=ray_train.RunConfig(
                name=name,
                # Ray keeps only its own notes here; what must last goes to the run's folder
                storage_path=scratch,
                failure_config=ray_train.FailureConfig(max_failures=max_failures),
                callbacks=[callback],
            ),
        )
        end: End = trainer.fit().return_value
        return end
