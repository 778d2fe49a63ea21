"""One rank of a tiny training over gloo, whose last rank is asked to stop during a step.

python ranks_program.py RANK WORLD_SIZE RENDEZVOUS EXPERIMENT_YAML RUN_URL STOP_DURING
"""

import contextlib
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from larmor.cluster.runs.run_folder import RunFolder
from larmor.cluster.worker.ranks import Ranks
from larmor.cluster.worker.worker import RunWorker
from larmor.recon.training.train import train
from larmor.tuning.search.experiment import load_sweep_experiment


class AskedWorker(RunWorker):
    """The last rank is asked during one step; the others must hear of it."""

    stop_during = 0

    def progress(self, step: int, phase: str) -> None:
        super().progress(step, phase)
        if (step, phase) == (self.stop_during - 1, "generator") and self.rank == self.world_size - 1:
            self.request.ask("a test")


def main(rank: int, world_size: int, rendezvous: Path, experiment_path: str, run_url: str, stop_during: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size)
    experiment = load_sweep_experiment(experiment_path, []).training_part()
    AskedWorker.stop_during = stop_during
    run, device = RunFolder(run_url), torch.device("cpu")
    with contextlib.closing(Ranks()) as ranks, AskedWorker(ranks, run, experiment.training, device) as worker:
        finished = train(experiment, worker)
    print(f"rank {rank} finished={finished} after step {worker.place.step}", flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], sys.argv[5], int(sys.argv[6]))
