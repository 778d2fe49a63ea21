"""Whether anything but time grows with the workers: `python -m benchmarks.many_workers [--workers 2 8 16]`.

Real worker processes over gloo on this machine, each with the training loop, the loader, checkpoints, votes, heartbeats
and the watchdog of a run, without Ray; tiny networks, a global batch of 16 slices, a folder as store. For each number
of workers it prints, of all ranks the largest: seconds of a step, threads, open files, memory of its own, requests to
the store and what they read; of the run the objects in its folder and the size of its checkpoint; and how far the
content and frequency terms are from those of the first number of workers. Processes are forked after the imports, so
memory is what each adds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist

from larmor.cluster.runs.run_folder import RunFolder
from larmor.cluster.worker.ranks import Ranks
from larmor.cluster.worker.training import train_recipe
from larmor.cluster.worker.worker import RunWorker
from larmor.storage.objects.object_store import ObjectStore
from larmor.tuning.search.experiment import load_sweep_experiment
from tests.helpers import ellipsoid, write_images
from tests.workbench import TINY

BATCH = 16
NAMES = ("read", "read_into", "write", "create", "list", "folders", "exists", "size", "delete", "remove")
Figures = dict[str, Any]


def count_requests() -> Counter[str]:
    """Of this process from now on, by kind; `bytes` are those that were read."""
    found: Counter[str] = Counter()

    def counted(name: str, ask: Callable[..., Any]) -> Callable[..., Any]:
        def asked(store: ObjectStore, *arguments: Any, **options: Any) -> Any:
            found[name] += 1
            answer = ask(store, *arguments, **options)
            found["bytes"] += len(answer) if isinstance(answer, bytes) else answer if name == "read_into" else 0
            return answer

        return asked

    for name in NAMES:
        setattr(ObjectStore, name, counted(name, getattr(ObjectStore, name)))
    return found


def rank_main(rank: int, world_size: int, folder: str, overrides: Sequence[str], num_steps: int) -> None:
    torch.set_num_threads(1)
    requests, began = count_requests(), time.perf_counter()
    meeting = f"file://{folder}/meet-{world_size}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world_size)
    own = [f"name=w{world_size}", f"cluster.num_workers={world_size}", f"training.num_steps={num_steps}"]
    experiment = load_sweep_experiment("laptop", [*overrides, *own]).training_part()
    run, process = RunFolder(experiment.run_url), psutil.Process()
    if rank == 0:
        run.create("name: a benchmark\n")
    dist.barrier()
    worker = RunWorker(Ranks(), run, experiment.training, torch.device("cpu"))
    with worker.watched(3600), contextlib.closing(worker.ranks), worker:
        train_recipe(experiment, worker)
        figures = {
            "threads": process.num_threads(),
            "open files": process.num_fds(),
            "own memory MB": process.memory_full_info().uss / 1e6,
            "requests": sum(requests[name] for name in NAMES),
            "writes": sum(requests[name] for name in ("write", "create")),
            "MB read": requests["bytes"] / 1e6,
            "seconds": time.perf_counter() - began,
        }
        found = worker.gather(figures)
    if rank == 0:
        largest = {name: max(figures[name] for figures in found) for name in figures}
        Path(folder, f"figures-{world_size}.json").write_text(json.dumps(largest))
    dist.barrier()
    dist.destroy_process_group()


def train(world_size: int, folder: str, overrides: Sequence[str], num_steps: int) -> Figures:
    """One training by so many processes; its figures."""
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=rank_main, args=(rank, world_size, folder, overrides, num_steps))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit(f"{world_size} workers: exit codes {[process.exitcode for process in processes]}")
    figures: Figures = json.loads(Path(folder, f"figures-{world_size}.json").read_text())
    run = RunFolder(f"{folder}/output/runs/w{world_size}")
    reports = [json.loads(line) for line in run.store.read("metrics.jsonl").splitlines()]
    sizes = run.store.list()
    figures["s/step"] = sorted(report["step_seconds"] for report in reports)[len(reports) // 2]
    for name in ("data", "communication"):
        figures[f"{name} share"] = sorted(report[f"{name}_share"] for report in reports)[len(reports) // 2]
    figures["objects"] = len(sizes)
    newest = run.checkpoints()[-1]
    figures["checkpoint MB"] = sum(entry.size for entry in newest.files.values()) / 1e6
    figures["losses"] = run.history()
    return figures


def difference(first: Sequence[dict[str, float]], other: Sequence[dict[str, float]]) -> float:
    """The largest relative difference of a term that compares images: critics' scores pass through 0."""
    pairs = [
        (own[name], one[name])
        for own, one in zip(first, other, strict=True)
        for name in own
        if name not in ("step", "adversarial", "critic_loss", "loss") and "/" not in name and name in one
    ]
    return max(abs(a - b) / max(abs(a), 1e-9) for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 8, 16])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(prefix="larmor-many-") as folder:
        images = ellipsoid((64, 72, 64)).transpose(1, 0, 2)[3:67]
        write_images(ObjectStore(f"{folder}/data"), {"train": images, "validation": images[:16]})
        overrides = [f"data.url={folder}/data", f"output_url={folder}/output", *TINY]
        overrides += [f"training.global_batch_size={BATCH}", "training.log_every=5", "data.lanes=16"]
        overrides += [f"training.{name}_every={options.steps // 2}" for name in ("validate", "checkpoint")]
        overrides += ["training.validation_slices=16", *options.overrides]
        found = {count: train(count, folder, overrides, options.steps) for count in options.workers}
    first = found[options.workers[0]]["losses"]
    for figures in found.values():
        figures["loss differs by"] = difference(first, figures.pop("losses"))
    names = list(next(iter(found.values())))
    print("| | " + " | ".join(f"{count} workers" for count in found) + " |")
    print("|---|" + "---|" * len(found))
    for name in names:
        print(f"| {name} | " + " | ".join(f"{figures[name]:.3g}" for figures in found.values()) + " |")


if __name__ == "__main__":
    main()
