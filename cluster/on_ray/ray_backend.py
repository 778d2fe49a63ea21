"""What Larmor adds to Ray Train's own: workers that hear a notice to stop, and an end to what no restart mends."""

from __future__ import annotations

import contextlib
import signal
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.exceptions import GetTimeoutError
from ray.train import UserCallback
from ray.train.backend import Backend, BackendConfig

from larmor.cluster.on_ray import process_group
from larmor.cluster.worker.stopping import StopRequest
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.store_errors import StoreAway

_LEAVE_SECONDS = 30.0  # until workers that do not leave their group are left behind

_request: StopRequest | None = None


def this_process_request(grace_seconds: float) -> StopRequest:
    """The request of this worker process; made at the first call."""
    global _request
    if _request is None:
        _request = StopRequest(grace_seconds)
    return _request


def _listen(grace_seconds: float) -> None:
    this_process_request(grace_seconds).listen(signal.SIGTERM)


class _Backend(Backend):
    share_cuda_visible_devices = True  # NCCL's peers on a node must see each other's GPUs

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        address = worker_group.execute_single(0, process_group.free_address)
        worker_group.execute(process_group.join, backend_config.backend, address, backend_config.timeout_seconds)

    def on_training_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(_listen, backend_config.grace_seconds)

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        if len(worker_group) > 1:
            with contextlib.suppress(GetTimeoutError):  # the processes end anyway
                ray.get(worker_group.execute_async(process_group.leave), timeout=_LEAVE_SECONDS)


@dataclass
class WorkerGroupConfig(BackendConfig):
    """Workers join a process group of torch.distributed, and take SIGTERM as a request to save and stop.

    Python allows handlers in the main thread alone, where Ray's actor runs; the training has another one. Collective
    calls fail after `timeout_seconds`.
    """

    backend: Literal["gloo", "nccl"]
    timeout_seconds: float
    grace_seconds: float

    @property
    def backend_cls(self) -> type[_Backend]:
        return _Backend

    @property
    def train_func_context(self) -> Any:
        return process_group.on_own_device


class GiveUpAtMistakes(UserCallback):
    """A mistake of the user's would be the same after every restart: raised here, in Ray's controller, it ends the
    run."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for error in worker_exceptions.values():
            if (mistake := mistake_of(error)) is not None:
                raise mistake


def mistake_of(error: BaseException) -> InputError | None:
    """The first `InputError` among an error, its causes, and the workers' failures, unless another try may help."""
    failures = list((getattr(error, "worker_failures", None) or {}).values())
    for failure in [error, getattr(error, "controller_failure", None), *failures]:
        current: BaseException | None = failure
        while current is not None:
            if isinstance(current, InputError) and not isinstance(current, StoreAway):
                return current
            cause = getattr(current, "cause", None)
            current = cause if isinstance(cause, BaseException) else current.__cause__
    return None


def describe_failure(error: BaseException, max_failures: int) -> str | None:
    """Of a run whose restarts are used up: which worker ended, and why; None if `error` is something else."""
    failures = getattr(error, "worker_failures", None)
    if not failures:
        return None
    reasons = "; ".join(f"rank {rank}: {str(failure).strip()[-1500:]}" for rank, failure in sorted(failures.items()))
    return (
        f"the workers ended too early {max_failures + 1} times, once more than cluster.max_failures={max_failures}. "
        f"The last time {reasons}. The same command resumes from the last checkpoint"
    )
