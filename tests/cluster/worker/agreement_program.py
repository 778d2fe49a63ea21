"""One rank that trains trial after trial in the same process; prints what it holds after each.

python agreement_program.py RANK WORLD_SIZE RENDEZVOUS RUN_URL KEPT

With KEPT=1 all trials share one `Ranks`, as in a slot; with 0 each has its own.
"""

import contextlib
import gc
import sys
from pathlib import Path

import psutil
import torch
import torch.distributed as dist

from larmor.cluster.runs.run_folder import RunFolder
from larmor.cluster.worker.ranks import Ranks
from larmor.cluster.worker.worker import RunWorker
from larmor.recon.recipe.recipe import TrainingConfig

TRIALS = 6


class Diverged(Exception):
    """Raised by all ranks at the same step."""


def trial(ranks: Ranks, run: RunFolder, number: int) -> None:
    """The last vote of each, for both, must not be seen by the next."""
    with RunWorker(ranks, run, TrainingConfig(), torch.device("cpu")):
        for step in range(3):
            assert ranks.vote(step == 2, step != 1) == [False, step == 1]
        if number % 2:
            raise Diverged


def main(rank: int, world_size: int, rendezvous: Path, url: str, kept: bool) -> None:
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size)
    process = psutil.Process()
    shared = Ranks() if kept else None
    for number in range(TRIALS):
        ranks = shared or Ranks()
        with contextlib.suppress(Diverged):
            trial(ranks, RunFolder(url), number)
        if not kept:
            ranks.close()
        gc.collect()
        print(process.num_threads(), process.num_fds(), flush=True)
    if shared:
        shared.close()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], sys.argv[5] == "1")
