"""How well the order of samples is mixed, against a uniform permutation: `python benchmarks/shuffle.py`.

For pools of several sizes it prints, over a few epochs of a synthetic split:

- same volume: the chance that two slices of one batch come from the same volume, divided by what a uniform
  permutation gives; 1 is uniform, less is better mixed.
- same block: the same for the blocks of slices that are read together, in a batch, and in 8 batches in a row.
- displacement: how far a slice moves from one epoch to the next, as a part of the epoch; uniform: 1/3.
- open: blocks that a reader on one worker holds at once, at most.
"""

from __future__ import annotations

import argparse
from itertools import pairwise

import numpy as np

from larmor.storage.loading.order import SampleOrder, num_lanes


def same_group(order: SampleOrder, group_of: np.ndarray, batch: int, epochs: int) -> float:
    """The chance that two slices of a batch share a group, relative to a uniform permutation."""
    pairs = shared = 0
    for epoch in range(epochs):
        groups = group_of[order.epoch(epoch)]
        whole = groups[: len(groups) // batch * batch].reshape(-1, batch)
        for row in whole:
            counts = np.unique(row, return_counts=True)[1]
            shared += int((counts * (counts - 1)).sum())
            pairs += batch * (batch - 1)
    counts = np.unique(group_of, return_counts=True)[1]
    uniform = (counts * (counts - 1)).sum() / (len(group_of) * (len(group_of) - 1))
    return float(shared / pairs / uniform)


def displacement(order: SampleOrder, epochs: int) -> float:
    """Mean distance between a slice's places in one epoch and the next, as a part of the epoch."""
    places = [np.argsort(order.epoch(epoch)) for epoch in range(epochs)]
    return float(np.mean([np.abs(a - b).mean() for a, b in pairwise(places)]) / order.num_samples)


def open_blocks(order: SampleOrder) -> int:
    """The largest number of blocks that are begun and not ended, over one epoch."""
    blocks = order.block_of[order.epoch(0)]
    change = np.zeros(order.num_samples + 1, int)
    for block in range(order.num_blocks):
        places = np.flatnonzero(blocks == block)
        change[places[0]] += 1
        change[places[-1] + 1] -= 1
    return int(np.cumsum(change).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=20_000)
    parser.add_argument("--block", type=int, default=15, help="slices of a block, as many as 8 MiB hold at 256×256")
    parser.add_argument("--volume", type=int, default=150, help="slices of a volume")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=4)
    arguments = parser.parse_args()
    slices = np.arange(arguments.slices)
    block_of, volume_of = slices // arguments.block, slices // arguments.volume
    num_blocks = int(block_of.max()) + 1
    print(f"{arguments.slices} slices, {num_blocks} blocks of {arguments.block}, batch {arguments.batch}")
    print(f"{'':>14} {'same volume':>12} {'same block,':>12} {'same block,':>12}")
    print(f"{'pool (blocks)':>14} {'batch':>12} {'batch':>12} {'8 batches':>12} {'displacement':>13} {'open':>6}")
    for pool in (16, 32, 64, 128, 256, num_blocks):
        order = SampleOrder(block_of, 0, pool, num_lanes(arguments.batch))
        figures = (
            same_group(order, volume_of, arguments.batch, arguments.epochs),
            same_group(order, block_of, arguments.batch, arguments.epochs),
            same_group(order, block_of, 8 * arguments.batch, arguments.epochs),
            displacement(order, arguments.epochs),
        )
        print(f"{pool:>14} " + " ".join(f"{figure:>12.2f}" for figure in figures) + f" {open_blocks(order):>7}")


if __name__ == "__main__":
    main()
