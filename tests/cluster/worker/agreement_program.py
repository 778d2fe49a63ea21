"""One rank that trains trial after trial in the same process, as a slot does; prints what it holds after each.

python agreement_program.py RANK WORLD_SIZE RENDEZVOUS RUN_URL
"""

import contextlib
import gc
import sys
from pathlib import Path

import psutil
import torch
import torch.distributed as dist

from larmor.cluster.runs.run_folder import RunFolder
from larmor.cluster.worker.worker import LocalWorker
from larmor.recon.recipe.recipe import TrainingConfig

TRIALS = 6


class Diverged(Exception):
    """Raised by all ranks at the same step."""


def trial(run: RunFolder, number: int) -> None:
    with LocalWorker(run, TrainingConfig(), torch.device("cpu")) as worker:
        for step in range(3):
            assert worker.vote(step == 0) == [False, step == 1]
        if number % 2:
            raise Diverged


def main(rank: int, world_size: int, rendezvous: Path, url: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size)
    process = psutil.Process()
    for number in range(TRIALS):
        with contextlib.suppress(Diverged):
            trial(RunFolder(url), number)
        gc.collect()
        print(process.num_threads(), process.num_fds(), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
