"""`larmor.open_dataset` against the training's own feed, in one process: `python benchmarks/loader.py --samples`.

Both deliver one epoch of prepared batches of 16 from the store: mask, zero-filled image, target. The training's feed
hands over whole batches, the data set single slices that a `DataLoader` puts together. Neither has a cache. Epochs
alternate, so that both see the same machine; the ratio is the median over the pairs, in time and in processor time.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from slices import BATCH, SPLIT, WRITERS, Place
from torch.utils.data import DataLoader

import larmor
from larmor.recon.physics.feed import feed
from larmor.recon.physics.samples import prepare
from larmor.recon.recipe.mask_config import MaskConfig
from larmor.storage.loading.config import DataConfig, open_loader, open_reader
from larmor.storage.loading.loader import Share

READING: dict[str, Any] = {"client": "http", "memory_cache_bytes": 0, "disk_cache_bytes": 0}
MASK = MaskConfig(sampling_ratio=0.25)
CPU = torch.device("cpu")


def own_loop(url: str, num_slices: int) -> Callable[[], Iterator[Any]]:
    """One epoch as `recon/training/train.py` is fed."""
    config = DataConfig.model_validate({"url": url, **READING})
    reader = open_reader(config, SPLIT)
    loader = open_loader(config, reader, Share(0, 1, BATCH, 1), seed=0)

    def epoch() -> Iterator[Any]:
        with contextlib.closing(loader.batches(0, num_slices // BATCH)) as batches:
            for batch in feed(batches, CPU):
                yield prepare(batch, config.crop, MASK, CPU)

    return epoch


def data_set(url: str) -> Callable[[], Iterator[Any]]:
    """One epoch of a loop of one's own."""
    dataset = larmor.open_dataset(url, SPLIT, mask=MASK, crop=(256, 256), data=READING)
    loader: Any = DataLoader(dataset, batch_size=BATCH)
    return lambda: iter(loader)


def timed(epoch: Callable[[], Iterator[Any]], num_slices: int) -> tuple[float, float]:
    """Seconds, and processor seconds of this process."""
    began, cpu = time.perf_counter(), time.process_time()
    assert sum(1 for _ in epoch()) == num_slices // BATCH
    return time.perf_counter() - began, time.process_time() - cpu


def compare(place: Place, pairs: int) -> None:
    """Write the slices, run both in turns, print a line."""
    WRITERS["larmor"](place)
    url = place.store("larmor").url
    epochs = {"own loop": own_loop(url, place.num_slices), "open_dataset": data_set(url)}
    for epoch in epochs.values():
        timed(epoch, place.num_slices)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in epochs}
    for number in range(pairs):
        for name in list(epochs)[:: 1 if number % 2 else -1]:
            found[name].append(timed(epochs[name], place.num_slices))
    for name, times in found.items():
        seconds = statistics.median(wall for wall, _ in times)
        print(f"{name:<14} {place.num_slices / seconds:8.1f} slices/s")
    both = list(zip(*found.values(), strict=True))
    for place_of, what in enumerate(("rate", "rate per processor second")):
        ratios = [own[place_of] / ours[place_of] for own, ours in both]
        print(f"open_dataset / own loop, {what}: {statistics.median(ratios):.3f} ({min(ratios):.3f}–{max(ratios):.3f})")
