"""The scaling model against simulated ranks that plan as real ones: `python benchmarks/scaling_simulation.py`.

For 8, 64 and 512 workers it runs the code of a rank, with nothing behind it:

* The loader's own plan of a few ranks (`storage/loading/foresight.py`) on an index of slices that nobody stores. A
  discrete simulation then sends these requests through each machine's link and the store's, first come first served,
  and lets all ranks step together; beside it stands what `scaling_model.py` computes.
* One checkpoint, one round of heartbeats and one look at a hang by the code that writes and reads them, on a store in
  memory that counts its requests.

Of the ranks that are not simulated the load on the store is taken to be that of the others.
"""

from __future__ import annotations

import argparse
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scaling_model import Assumptions, all_reduce_seconds, count

from larmor.cluster.runs.checkpoint import Checkpoint
from larmor.cluster.runs.run_folder import RunFolder
from larmor.cluster.worker.heartbeat import Place, read_heartbeats, write_heartbeat
from larmor.recon.training.peak_flops import peak_flops
from larmor.storage.dataset.dataset import SplitInfo
from larmor.storage.dataset.layout import SHARD_BYTES, Bucket
from larmor.storage.loading.config import DataConfig
from larmor.storage.loading.foresight import Foreseen, foresee
from larmor.storage.loading.loader import Share
from larmor.storage.objects.object_store import ObjectStore
from larmor.tuning.search.experiment import load_sweep_experiment

WORKERS = (8, 64, 512)
_SLICE_BYTES = 8 * 256 * 256
_REQUESTS = 5500.0  # a second, of one prefix of S3
_RANKS = 4  # that are simulated
_BEAT_SECONDS, _LOOK_SECONDS = 30.0, 2.0  # of the watchdog, with the default cluster.hang_seconds


def index_of(num_slices: int, size: int = 256) -> SplitInfo:
    """Slices of one coil, as a conversion lays them out."""
    zeros, rows = np.zeros(num_slices, np.int32), np.arange(num_slices, dtype=np.int32)
    bucket = Bucket(0, (1, size, size), num_slices, SHARD_BYTES // (8 * size * size), {"kspace": ()})
    scale, crc = np.ones((num_slices, 2), np.float32), np.zeros((num_slices, 2), np.uint32)
    names = ("v",), ("v",), "", ""
    return SplitInfo("train", (bucket,), *names, zeros, zeros, rows, zeros.astype(np.float32), scale, zeros, rows, crc)


@dataclass(frozen=True)
class Simulated:
    """Seconds until the first batch, and of a later step of one critic update."""

    start: float
    step: float


def simulate(plans: Sequence[Foreseen], world_size: int, compute: float, assumed: Assumptions) -> Simulated:
    """Ranks that step together; a batch is there when its requests have come through both links."""
    link = assumed.node_link / min(assumed.gpus_per_node, world_size)  # of each rank: its neighbours ask as much
    share = len(plans) / world_size  # of the store
    wanted = [_requests_of_batches(plan) for plan in plans]
    arrived: list[list[float]] = [[] for _ in plans]
    link_free, store_free, now = [0.0] * len(plans), 0.0, 0.0
    begins, known = [], [set[str]() for _ in plans]
    for number in range(len(plans[0].requests_of_batch)):
        for rank, plan in enumerate(plans):
            sent = len(arrived[rank])
            for request in plan.requests[sent : sent + plan.requests_of_batch[number]]:
                size, count = request.stop - request.start, 1 if request.path in known[rank] else 2  # with its index
                known[rank].add(request.path)
                store_free = max(store_free, now) + max(size / assumed.store, count / _REQUESTS) / share
                link_free[rank] = max(link_free[rank], now) + size / link
                arrived[rank].append(max(store_free, link_free[rank]))
        ready = max(times[one] for times, needs in zip(arrived, wanted, strict=True) for one in needs[number])
        begins.append(max(now, ready))
        now = begins[-1] + compute
    first, last = len(begins) // 3, 2 * len(begins) // 3  # what was read ahead at the start is used up, and no end near
    return Simulated(begins[0], (begins[last] - begins[first]) / (last - first))


def _requests_of_batches(plan: Foreseen) -> list[set[int]]:
    """The numbers of the requests that bring each batch, within one epoch."""
    bringing = {index: number for number, request in enumerate(plan.requests) for index, _, _ in request.slices}
    batches = np.split(plan.samples[:, 1], len(plan.requests_of_batch))
    return [{bringing[int(index)] for index in batch} for batch in batches]


def plans_of(world_size: int, per_gpu: int, lanes: int | None) -> list[Foreseen]:
    """Of ranks spread evenly over all, of a split that lasts for somewhat longer."""
    batch = per_gpu * world_size
    info, config, batches = index_of(max(50_000, 70 * batch)), DataConfig(lanes=lanes), range(60)
    if per_gpu == 1:  # a block lasts for 15 batches
        batches = range(400 if world_size < 512 else 250)
        info = index_of(max(50_000, len(batches) * batch))
    ranks = range(0, world_size, max(1, world_size // _RANKS))
    return [foresee(config, info, Share(rank, world_size, batch, 1), 0, batches) for rank in ranks]


class CountedStore:
    """Requests of all stores of this process, by kind."""

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()
        for name in ("read", "write", "list", "create", "remove", "delete"):
            setattr(ObjectStore, name, self._counted(name, getattr(ObjectStore, name)))

    def _counted(self, name: str, ask: Callable[..., Any]) -> Callable[..., Any]:
        def counted(store: ObjectStore, *arguments: Any, **options: Any) -> Any:
            self.found[name] += 1
            return ask(store, *arguments, **options)

        return counted

    def during(self, act: Callable[[], Any]) -> Counter[str]:
        self.found.clear()
        act()
        return Counter(self.found)


def control(world_size: int, counted: CountedStore) -> dict[str, Counter[str]]:
    """Requests of a checkpoint, of one heartbeat of every rank, and of one rank that suspects a hang."""
    run = RunFolder(f"memory://{uuid.uuid4().hex}")

    def checkpoint() -> None:
        folder = "checkpoints/step-00000010-aa"
        with tempfile.TemporaryDirectory() as scratch:
            Path(scratch, "state.pt").write_bytes(b"x")
            for rank in range(world_size):
                run.write_part(folder, rank, run.upload_part(Path(scratch), folder))
        files = run.read_parts(folder, world_size)
        assert files is not None
        run.publish(Checkpoint(folder, 10, {"val/psnr": 30.0}, files))
        run.prune(1, 1, "val/psnr", higher_is_better=True)

    def heartbeats() -> None:
        for rank in range(world_size):
            write_heartbeat(run.store, Place().heartbeat(rank, 1))

    return {
        "a checkpoint": counted.during(checkpoint),
        "heartbeats": counted.during(heartbeats),
        "a suspicion": counted.during(lambda: read_heartbeats(run.store, world_size)),
    }


def loading_rows(compute_of: float, assumed: Assumptions, gradients: float) -> None:
    heading = ["workers", "slices each", "lanes", "MB a request", "with an index request", "requests a batch"]
    heading += ["MiB of batches", "start s", "ms a critic update, model", "simulated", "first limit"]
    print("| " + " | ".join(heading) + " |\n" + "|---" * len(heading) + "|")
    for world_size in WORKERS:
        for per_gpu, lanes in ((assumed.per_gpu, None), (1, None), (1, world_size)):
            plans = plans_of(world_size, per_gpu, lanes)
            print("| " + " | ".join(_cells(plans, world_size, per_gpu, lanes, compute_of, gradients, assumed)) + " |")


def _cells(
    plans: Sequence[Foreseen],
    world_size: int,
    per_gpu: int,
    lanes: int | None,
    compute_of: float,
    gradients: float,
    assumed: Assumptions,
) -> list[str]:
    compute, reduced = compute_of * per_gpu, all_reduce_seconds(gradients, world_size, assumed)
    batch_bytes = per_gpu * world_size * _SLICE_BYTES
    mean = float(np.mean(np.concatenate([plan.request_bytes for plan in plans])))
    indexes = float(np.mean([len(plan.shards) / len(plan.requests) for plan in plans]))
    requests = batch_bytes / mean * (1 + indexes)
    machine = batch_bytes / world_size * min(assumed.gpus_per_node, world_size) / assumed.node_link
    parts = {
        "computation": compute + reduced if compute > reduced else 0.0,
        "all-reduce": compute + reduced if compute <= reduced else 0.0,
        "bytes of the store": batch_bytes / assumed.store,
        "requests of the store": requests / _REQUESTS,
        "machine's link": machine,
    }
    found = simulate(plans, world_size, compute + reduced, assumed)
    cells = [str(world_size), str(per_gpu), str(lanes or "by the batch"), f"{mean / 1e6:.2f}", f"{indexes:.0%}"]
    cells += [f"{requests:.0f}", f"{max(plan.batch_bytes for plan in plans) / 2**20:.0f}", f"{found.start:.2f}"]
    cells += [f"{1000 * max(parts.values()):.1f}", f"{1000 * found.step:.1f}"]
    return [*cells, max(parts, key=lambda name: parts[name])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", default="H100")
    parser.add_argument("--mfu", type=float, default=0.3)
    parser.add_argument("--per-gpu", type=int, default=16)
    options = parser.parse_args()
    # eight H100 in each machine, as in docs/scaling.md
    assumed = Assumptions(options.gpu, options.mfu, 50e9, 30e-6, 44e9, 12.5e9, 8, options.per_gpu, 1)
    recipe = load_sweep_experiment("paper_256x256", [])
    counted, peak = count(recipe, 1), peak_flops(assumed.gpu, recipe.training.dtype, tf32=True)
    if peak is None:
        parser.error(f"{assumed.gpu}: its peak is not known")
    # a critic update takes a batch of its own; the generator's part is spread over them
    compute = counted.flops_per_slice / counted.critic_steps / (peak * assumed.mfu)
    gradients = counted.gradient_bytes * (counted.critic + counted.generator / counted.critic_steps)
    loading_rows(compute, assumed, gradients)
    store = CountedStore()
    print("\n| workers | | list | read | write | remove |\n|---|---|---|---|---|---|")
    for world_size in WORKERS:
        for what, found in control(world_size, store).items():
            numbers = [
                found["list"],
                found["read"],
                found["write"] + found["create"],
                found["remove"] + found["delete"],
            ]
            print(f"| {world_size} | {what} | " + " | ".join(map(str, numbers)) + " |")
        votes = 2 * (world_size - 1) * assumed.latency
        print(f"| {world_size} | a vote, ring of {2 * (world_size - 1)} messages: {1000 * votes:.1f} ms | | | | |")
        beats = world_size / _BEAT_SECONDS + 1 / _LOOK_SECONDS
        print(f"| {world_size} | heartbeats and orders to stop: {beats:.1f} requests/s | | | | |")


if __name__ == "__main__":
    main()
