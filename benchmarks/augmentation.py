"""What augmentation costs: milliseconds for each slice, on the CPU or a GPU, beside the rest of a sample's preparation.

Batches of 16 slices (256×256, one coil) are prepared as in a training, one setting after another in each round. The
first round, in which libraries are imported, does not count.
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch
from rich.table import Table
from slices import BATCH, make_slice

from larmor.recon.physics.augment import changes
from larmor.recon.physics.feed import DeviceBatch, to_device
from larmor.recon.physics.samples import prepare
from larmor.recon.recipe.mask_config import MaskConfig
from larmor.recon.recipe.settings import AugmentConfig
from larmor.storage.loading.loader import Batch

SETTINGS = {
    "none": AugmentConfig(),
    "flip=0.5": AugmentConfig(flip=0.5),
    "rotation=10 shift=0.1 zoom=0.1": AugmentConfig(rotation=10, shift=0.1, zoom=0.1),
    "elastic=0.01": AugmentConfig(elastic=0.01),
    "contrast=0.3": AugmentConfig(contrast=0.3),
    "bias=0.1": AugmentConfig(bias=0.1),
    "all of them": AugmentConfig(flip=0.5, rotation=10, shift=0.1, zoom=0.1, elastic=0.01, contrast=0.3, bias=0.1),
}


def augmentation_table(repeats: int) -> Table:
    """Median milliseconds for a slice (on the CPU: of processor time), and how much more than without augmentation."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    samples = np.stack([np.zeros(BATCH, int), np.arange(BATCH)], axis=1)
    batch = to_device(Batch.of(np.stack([make_slice(index) for index in range(BATCH)]), samples), device)
    times: dict[str, list[float]] = {name: [] for name in SETTINGS}
    for number in range(repeats + 1):
        for name, config in SETTINGS.items():
            seconds = _seconds(batch, config, device)
            times[name] += [seconds / BATCH * 1000] if number else []
    table = Table("augment", title=f"Preparation of a slice of 256×256 on {device.type}")
    for column in ("ms/slice", "beyond none"):
        table.add_column(column, justify="right")
    least = statistics.median(times["none"])
    for name, found in times.items():
        median = statistics.median(found)
        table.add_row(name, f"{median:.1f} ({min(found):.1f}–{max(found):.1f})", f"{median - least:+.1f}")
    return table


def _seconds(batch: DeviceBatch, config: AugmentConfig, device: torch.device) -> float:
    move, intensity = changes(config, 0)
    clock = time.process_time if device.type == "cpu" else time.perf_counter  # of other programs it knows nothing
    began = clock()
    prepare(batch, batch.size, MaskConfig(kind="gaussian2d"), device, move, intensity=intensity)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - began
