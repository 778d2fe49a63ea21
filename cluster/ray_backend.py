"""What Larmor adds to Ray Train's own: a process group of workers that hear a notice to stop, and an end to what no
restart mends. Imported by the driver and Ray's controller too, so without torch."""

from __future__ import annotations

import datetime
import os
import signal
import socket
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
from ray.train import UserCallback
from ray.train.backend import Backend, BackendConfig

from cluster.stopping import StopRequest
from storage.errors import InputError
from storage.store_errors import StoreAway

_LEAVE_SECONDS = 5.0

_request: StopRequest | None = None


def this_process_request(grace_seconds: float) -> StopRequest:
    """The request of this worker process; made at the first call."""
    global _request
    if _request is None:
        _request = StopRequest(grace_seconds)
    return _request


def _listen(grace_seconds: float) -> None:
    this_process_request(grace_seconds).listen(signal.SIGTERM)


@dataclass(frozen=True)
class ProcessGroupConfig(BackendConfig):
    """torch.distributed's group of all workers, which take SIGTERM as a request to save and stop.

    As Ray's `TorchConfig`, but only workers import torch. `backend`: gloo or nccl; no collective takes longer than
    `timeout_seconds`.
    """

    backend: str
    timeout_seconds: float
    grace_seconds: float

    @property
    def backend_cls(self) -> type[Backend]:
        return _ProcessGroup


class _ProcessGroup(Backend):
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        address = worker_group.execute_single(0, _free_address)
        settings = backend_config.backend, backend_config.timeout_seconds
        size = len(worker_group)
        ray.get(
            [worker_group.execute_single_async(rank, _join, rank, size, address, *settings) for rank in range(size)]
        )

    def on_training_start(self, worker_group: Any, backend_config: Any) -> None:
        # Python allows handlers in the main thread alone, where Ray's actor runs; the training has another one
        worker_group.execute(_listen, backend_config.grace_seconds)

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        left = worker_group.execute_async(_leave)
        ray.wait(left, num_returns=len(left), timeout=_LEAVE_SECONDS)  # one that is stuck is killed all the same


def _free_address() -> tuple[str, int]:
    """Of this worker's node, where the others find it."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return ray.util.get_node_ip_address(), int(probe.getsockname()[1])


def _join(rank: int, size: int, address: tuple[str, int], backend: str, timeout_seconds: float) -> None:
    import torch.distributed

    context = ray.train.get_context()
    os.environ.update(
        {
            "MASTER_ADDR": address[0],
            "MASTER_PORT": str(address[1]),
            "RANK": str(rank),
            "WORLD_SIZE": str(size),
            "LOCAL_RANK": str(context.get_local_rank()),
            "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
            "NODE_RANK": str(context.get_node_rank()),
        }
    )
    torch.distributed.init_process_group(
        backend, rank=rank, world_size=size, timeout=datetime.timedelta(seconds=timeout_seconds)
    )


def _leave() -> None:
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


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
        f"The last time {reasons}. The same command goes on from the last checkpoint"
    )
