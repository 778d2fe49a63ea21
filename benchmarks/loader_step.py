"""What waiting for data costs a training: `python benchmarks/loader_step.py`.

The laptop preset's training step (one critic step, one generator step; plain torch, one worker) in alternating blocks:
with batches from the loader, and with batches that were in memory before. Once with the loader's memory cache, once
without it: then every slice comes from the store at every epoch. Printed are the median seconds of a step, the ratio
(1: the loader costs nothing) with its range over the pairs of blocks, and the share of the time that the training
waited for a batch.

Blocks alternate after 10 steps, and each starts with one that is not timed: both then see the same machine, and the
loader gets no rest in which to read ahead more than it could in a training.

The data: phantoms in the embedded store in a temporary folder, or a data set of `larmor convert` (`--data URL`).
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from larmor.recon.physics.samples import prepare
from larmor.recon.training.gan import Gan
from larmor.storage.dataset import writing
from larmor.storage.dataset.layout import SplitLayout, StoredVolume
from larmor.storage.examples.phantom import phantom_volume
from larmor.storage.loading.config import open_loader, open_reader
from larmor.storage.loading.loader import Batch, Share
from larmor.storage.objects.embedded_store import EmbeddedStore
from larmor.storage.objects.object_store import ObjectStore
from larmor.tuning.search.experiment import SweepExperiment, load_sweep_experiment

CPU = torch.device("cpu")
WARM_UP = 1  # steps at the start of a block that are not timed
Step = Callable[[Batch], None]


def write_phantoms(store: ObjectStore, num_subjects: int) -> None:
    """Coronal slices of phantoms, 192×176, as a data set of one split."""
    volumes, kspace = [], []
    for number in range(num_subjects):
        phantom = phantom_volume(np.random.default_rng([0, number]))
        slices = np.moveaxis(phantom[:, 16:112], 1, 0)[:, ::-1].astype(np.complex64)
        centred = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(slices, (1, 2)), norm="ortho"), (1, 2))
        kspace.append(centred[:, None].astype(np.complex64))
        rows = tuple(range(len(slices)))
        scales = tuple((float(image.min()), float(image.max())) for image in np.abs(slices))
        volumes.append(
            StoredVolume(f"p{number}", f"p{number}", kspace[-1].shape[1:], rows, tuple(map(float, rows)), scales)
        )
    layout = SplitLayout("train", tuple(volumes))
    checksums = []
    for plan in layout.shards():
        content = np.stack([kspace[volume][row] for volume, row in plan.rows])
        checksums.append(writing.write_shard(store, "train", "kspace", plan, content))
    entry = writing.write_documents(store, layout, {("kspace", 0): tuple(checksums)})
    writing.publish(store, {"train": entry}, [])


def make_step(experiment: SweepExperiment) -> Step:
    """A function that trains on one batch, as `recon/training/train.py` does."""
    gan = Gan(experiment, CPU)

    def step(batch: Batch) -> None:
        samples = [prepare(batch, experiment.data.crop, experiment.mask, CPU)]
        gan.train_critics(samples, 0)
        gan.train_generator(samples)

    return step


def timed(step: Step, batches: Iterator[Batch], num_steps: int) -> tuple[list[float], float]:
    """Seconds of each step, the wait for its batch included, and the share of waiting."""
    for _ in range(WARM_UP):
        step(next(batches))
    seconds, waited = [], 0.0
    for _ in range(num_steps):
        began = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - began
        step(batch)
        seconds.append(time.perf_counter() - began)
    return seconds, waited / sum(seconds)


def compare(experiment: SweepExperiment, blocks: int, num_steps: int, name: str) -> None:
    """Alternate blocks of steps with the loader and with batches in memory; print a line."""
    reader = open_reader(experiment.data, experiment.data.train_split)
    loader = open_loader(experiment.data, reader, Share(0, 1, experiment.training.global_batch_size, 1), 0)
    kept = [_copy(batch) for batch in itertools.islice(loader.batches(0), 8)]
    in_memory = itertools.cycle(kept)
    loaded = loader.batches(0)
    step = make_step(experiment)
    timed(step, in_memory, 2)
    pairs = []
    for block in range(blocks):
        first, second = (loaded, in_memory) if block % 2 == 0 else (in_memory, loaded)
        results = {id(first): timed(step, first, num_steps)}
        results[id(second)] = timed(step, second, num_steps)
        pairs.append((results[id(loaded)], results[id(in_memory)]))
    loaded.close()
    reader.close()
    with_loader = statistics.median(itertools.chain.from_iterable(pair[0][0] for pair in pairs))
    without = statistics.median(itertools.chain.from_iterable(pair[1][0] for pair in pairs))
    ratios = [sum(pair[0][0]) / sum(pair[1][0]) for pair in pairs]
    waiting = statistics.mean(pair[0][1] for pair in pairs)
    print(
        f"{name:<16} {with_loader:>10.3f} {without:>10.3f} {statistics.median(ratios):>8.3f} "
        f"({min(ratios):.3f}–{max(ratios):.3f}) {100 * waiting:>8.2f} %",
        flush=True,
    )


def _copy(batch: Batch) -> Batch:
    """Apart from the loader's memory, which it uses again."""
    assert len(batch.groups) == 1, "slices of one shape"
    return Batch.of(batch.groups[0].kspace.copy(), batch.samples[batch.groups[0].rows])


@contextmanager
def phantom_data(num_subjects: int) -> Iterator[str]:
    """The URL of phantoms in an embedded store that runs while this lasts."""
    with tempfile.TemporaryDirectory() as folder:
        store = EmbeddedStore(Path(folder) / "store")
        store.start()
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
            os.environ.pop(name, None)
        os.environ |= store.environment()
        try:
            write_phantoms(ObjectStore("s3://larmor/phantoms"), num_subjects)
            yield "s3://larmor/phantoms"
        finally:
            store.stop()


def run(url: str, arguments: argparse.Namespace) -> None:
    changes = [f"data.url={url}", "data.client=http", "data.disk_cache_bytes=0", *arguments.set]
    print(f"{'':<16} {'loader, s':>10} {'memory, s':>10} {'ratio':>8} {'(range)':<13} {'waiting':>10}")
    for name, more in (("memory cache 0", ["data.memory_cache_bytes=0"]), ("default cache", [])):
        experiment = load_sweep_experiment(arguments.experiment, [*changes, *more])
        compare(experiment, arguments.blocks, arguments.steps, name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="laptop", help="a shipped experiment, or a file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of it")
    parser.add_argument("--data", help="URL of a data set; without: phantoms in the embedded store")
    parser.add_argument("--subjects", type=int, default=4, help="phantoms, of 96 slices each")
    parser.add_argument("--blocks", type=int, default=5, help="of each kind")
    parser.add_argument("--steps", type=int, default=10, help="timed in a block")
    arguments = parser.parse_args()
    if arguments.data:
        run(arguments.data, arguments)
        return
    with phantom_data(arguments.subjects) as url:
        run(url, arguments)


if __name__ == "__main__":
    main()
