"""What checkpoints cost a training: `python benchmarks/checkpoints.py [--workers 2]`.

The laptop preset's training step (one critic step, one generator step, ZeRO 1) on batches in memory, on one or two
workers over gloo, with checkpoints to the embedded store in a temporary folder. Blocks of steps take turns: without a
checkpoint, with one that the training waits for (uploaded, published, pruned), and with one that is uploaded beside it.

Printed are, for each kind, the median seconds for which a checkpoint blocks, the share of the training time that is at
one checkpoint per `--every` steps, and how much longer the steps beside the upload took than those of the block without
a checkpoint (the upload takes its processor time from somebody), with the share of both. A block is shorter than
`--every` steps; what is left of an upload at its end is waited for, and counts as blocking.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import torch
from loader_step import phantom_data

from larmor.cluster.runs.run_folder import RunFolder
from larmor.cluster.worker.ranks import Ranks
from larmor.cluster.worker.worker import RunWorker
from larmor.recon.physics.samples import prepare
from larmor.recon.training.gan import Gan
from larmor.recon.training.train import EarlyStop, TrainingState
from larmor.storage.loading.config import open_loader, open_reader
from larmor.storage.loading.loader import Share
from larmor.tuning.search.experiment import SweepExperiment, load_sweep_experiment

KINDS = ("none", "waiting", "beside")
CPU = torch.device("cpu")
SETTINGS = ["data.client=http", "data.disk_cache_bytes=0", "cluster.cpus_per_worker=1"]


class Bench:
    """One worker, its networks and a few batches."""

    def __init__(self, experiment: SweepExperiment, worker: RunWorker) -> None:
        self.worker = worker
        self.gan = Gan(experiment, CPU, worker.rank, worker.world_size)
        self.state = TrainingState(self.gan, worker, EarlyStop(experiment.training))
        reader = open_reader(experiment.data, experiment.data.train_split)
        share = Share(worker.rank, worker.world_size, experiment.training.global_batch_size, 1)
        loader = open_loader(experiment.data, reader, share, experiment.seed)
        batches = loader.batches(0)
        crop, mask = experiment.data.crop, experiment.mask
        self.samples = itertools.cycle([prepare(next(batches), crop, mask, CPU) for _ in range(8)])
        batches.close()
        reader.close()

    def step(self) -> None:
        samples = [next(self.samples)]
        self.gan.train_critics(samples, self.state.global_batches)
        self.gan.train_generator(samples)
        self.state.global_batches += 1
        self.state.step += 1

    def block(self, kind: str, num_steps: int) -> tuple[float, float]:
        """Seconds for which a checkpoint at its start blocked, and seconds of the steps."""
        blocked = self.worker.checkpoints.blocked_seconds
        if kind != "none":
            self.worker.save(self.state.step, {"val/psnr": float(self.state.step % 7)}, self.state.save)
        if kind == "waiting":
            self.worker.checkpoints.flush()
        began = time.perf_counter()
        for _ in range(num_steps):
            self.step()
        seconds = time.perf_counter() - began
        self.worker.checkpoints.flush()
        return self.worker.checkpoints.blocked_seconds - blocked, seconds


def measure(rank: int, experiment: SweepExperiment, arguments: argparse.Namespace, folder: str) -> None:
    """One worker's process; rank 0 prints."""
    torch.set_num_threads(experiment.cluster.cpus_per_worker)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(arguments.workers)}
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=arguments.workers
    )
    blocked: dict[str, list[float]] = defaultdict(list)
    seconds: dict[str, list[float]] = defaultdict(list)
    run = RunFolder("s3://larmor/benchmark-run")
    with contextlib.closing(Ranks()) as ranks, RunWorker(ranks, run, experiment.training, CPU) as worker:
        bench = Bench(experiment, worker)
        for _ in range(2):
            bench.step()
        bench.block("beside", 2)  # connections are made
        worker.checkpoints.upload_seconds = 0.0
        for number in range(arguments.rounds):
            for kind in KINDS[number % 3 :] + KINDS[: number % 3]:
                stopped, stepping = bench.block(kind, arguments.steps)
                blocked[kind].append(stopped)
                seconds[kind].append(stepping)
    if rank == 0:
        uploading = worker.checkpoints.upload_seconds / (2 * arguments.rounds)
        report(arguments, blocked, seconds, uploading, run)
    torch.distributed.destroy_process_group()


def report(
    arguments: argparse.Namespace,
    blocked: dict[str, list[float]],
    seconds: dict[str, list[float]],
    uploading: float,
    run: RunFolder,
) -> None:
    per_step = statistics.median(seconds["none"]) / arguments.steps
    training = arguments.every * per_step
    latest = run.latest()
    assert latest is not None
    size = sum(entry.size for entry in latest.files.values()) / 1e6
    print(
        f"{arguments.experiment}, {arguments.workers} workers: {per_step:.3f} s a step, {size:.1f} MB a checkpoint, "
        f"{uploading:.2f} s to upload, blocks of {arguments.steps * per_step:.1f} s, {arguments.rounds} rounds"
    )
    print(f"{'checkpoint':<10} {'blocks, s':>10} {'(range)':<15} {'share':>8} {'slows, s':>10} {'both':>8}")
    for kind in ("waiting", "beside"):
        stopped = statistics.median(blocked[kind])
        slower = statistics.median(
            with_it - without for with_it, without in zip(seconds[kind], seconds["none"], strict=True)
        )
        share, both = stopped / (training + stopped), (stopped + slower) / (training + stopped + slower)
        print(
            f"{kind:<10} {stopped:>10.3f} ({min(blocked[kind]):.3f}–{max(blocked[kind]):.3f}) "
            f"{100 * share:>7.2f} % {slower:>9.3f} {100 * both:>6.2f} %"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="laptop", help="a shipped experiment, or a file")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--every", type=int, default=100, help="steps from one checkpoint to the next")
    parser.add_argument("--steps", type=int, default=12, help="in a block")
    parser.add_argument("--rounds", type=int, default=6)
    arguments = parser.parse_args()
    with phantom_data(2) as url, tempfile.TemporaryDirectory() as folder:
        experiment = load_sweep_experiment(arguments.experiment, [f"data.url={url}", *SETTINGS])
        torch.multiprocessing.spawn(measure, (experiment, arguments, str(Path(folder))), nprocs=arguments.workers)


if __name__ == "__main__":
    main()
