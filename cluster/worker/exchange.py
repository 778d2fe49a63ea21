"""Files that one rank has, on all ranks: so that a checkpoint comes from the store once, however many ranks start."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist

_BLOCK = 64 * 2**20  # bytes of one broadcast


def share_out(sizes: Mapping[str, int], world_size: int) -> dict[str, int]:
    """The rank that gets each file (name → bytes) from the store: the largest first, to each rank in turn."""
    names = sorted(sizes, key=lambda name: (-sizes[name], name))
    return {name: number % world_size for number, name in enumerate(names)}


def exchange(folder: Path, sizes: Mapping[str, int], owners: Mapping[str, int], device: torch.device) -> None:
    """Write every file to `folder` that the rank `owners[name]` has in its own. Every rank calls, with equal arguments.

    A broadcast over the ranks' process group, on `device`.
    """
    rank = dist.get_rank()
    for name, owner in owners.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb" if rank == owner else "wb") as file:
            for start in range(0, sizes[name], _BLOCK):
                block = torch.empty(min(_BLOCK, sizes[name] - start), dtype=torch.uint8)
                if rank == owner:
                    file.readinto(block.numpy().data)  # type: ignore[attr-defined]
                moved = block.to(device)
                dist.broadcast(moved, src=owner)
                if rank != owner:
                    file.write(moved.cpu().numpy().data)
