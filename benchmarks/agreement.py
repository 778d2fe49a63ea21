"""What it costs that all ranks agree, at every step, whether to stop.

    python -m benchmarks.agreement [--ranks 2] [--step-seconds 0.1]

Ranks on this machine, over gloo. Each step computes for `--step-seconds` with the exchange beside it, as in training;
then the same is timed with an exchange that is waited for. Prints the median share of a step that voting takes, and
the open files and threads of a rank, which has two groups over gloo: that of the training and that of the votes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
import torch.multiprocessing

from larmor.cluster.worker.agreement import Agreement

STEPS = 200


def compute(seconds: float) -> None:
    end = time.perf_counter() + seconds
    matrix = torch.ones(64, 64)
    while time.perf_counter() < end:
        matrix @ matrix


def rank_main(rank: int, world_size: int, seconds: float, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world_size)
    agreement = Agreement(world_size, num_questions=2)
    beside, waited = [], []
    for _ in range(STEPS):
        compute(seconds)
        began = time.perf_counter()
        agreement.vote(False, False)
        beside.append(time.perf_counter() - began)
    for _ in range(STEPS):
        compute(seconds)
        began = time.perf_counter()
        dist.all_reduce(torch.zeros(2, dtype=torch.int32))
        waited.append(time.perf_counter() - began)
    if rank == 0:
        for name, times in (("beside the step", beside), ("waited for", waited)):
            median = statistics.median(times)
            print(f"{name}: {median * 1e6:.0f} µs, {median / seconds:.3%} of a step of {seconds:g} s")
        process = psutil.Process()
        print(f"{world_size} ranks: {process.num_fds()} open files, {process.num_threads()} threads")
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--step-seconds", type=float, default=0.1)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (chosen.ranks, chosen.step_seconds, str(Path(folder)))
        torch.multiprocessing.spawn(rank_main, arguments, nprocs=chosen.ranks)


if __name__ == "__main__":
    main()
