"""The process group that the workers of a training join, in the workers themselves: nobody else imports PyTorch for it.

What Ray's own `TorchConfig` does for gloo and NCCL. It imports PyTorch wherever it is named, and so in the driver and
in the controller, which start one after the other: a second or more each before any worker starts.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from datetime import timedelta


def free_address() -> tuple[str, int]:
    """This node's address, and a port that is free on it."""
    import ray.util

    host: str = ray.util.get_node_ip_address()
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind(("", 0))
        return host, int(probe.getsockname()[1])


def join(backend: str, address: tuple[str, int], timeout_seconds: float) -> None:
    """Meet the other workers at `address`, which is rank 0's. Returns once all of them are there.

    The variables are those of torchrun, which code of the user's own may read.
    """
    import ray.train
    import torch.distributed

    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    os.environ.update(
        MASTER_ADDR=address[0],
        MASTER_PORT=str(address[1]),
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK=str(context.get_local_rank()),
        LOCAL_WORLD_SIZE=str(context.get_local_world_size()),
        NODE_RANK=str(context.get_node_rank()),
    )
    if backend == "nccl" and "TORCH_NCCL_BLOCKING_WAIT" not in os.environ:
        # a call that fails ends the process, and no call hangs
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    torch.distributed.init_process_group(
        backend, rank=rank, world_size=world_size, timeout=timedelta(seconds=timeout_seconds)
    )


def leave() -> None:
    """Close the connections to the other workers."""
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextlib.contextmanager
def on_own_device() -> Iterator[None]:
    """The training's thread uses the GPU that Ray gave this worker, if it did."""
    import ray.train.torch
    import torch

    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    yield
