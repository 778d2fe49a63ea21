"""Where every slice of a split is stored: a pure function of its volumes, so shards can be written in any order."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

SHARD_BYTES = 64 * 2**20
CRC_BYTES = 4
_PART_BYTES = 8 * 2**20
_LEAST_PART = 5 * 2**20  # S3 takes no smaller part of an upload, but for the last one

SliceShape = tuple[int, int, int]


@dataclass(frozen=True)
class StoredVolume:
    """The slices of one scan that are stored: all of `shape` (coil, height, width), in ascending `indices`.

    `positions` are in mm from the volume's first face, `scales` the (minimum, maximum) of each slice's image, `offset`
    the intensity that was taken off every pixel (`Source.offset`).
    """

    name: str
    subject: str
    shape: SliceShape
    indices: tuple[int, ...]
    positions: tuple[float, ...]
    scales: tuple[tuple[float, float], ...]
    offset: float = 0.0


@dataclass(frozen=True)
class Bucket:
    """One array of equally shaped slices: `shape` (coil, height, width), rows per shard.

    `checksums` of each shard, by kind, are there once the array is stored.
    """

    number: int
    shape: SliceShape
    num_slices: int
    shard_slices: int
    checksums: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one stored slice, its CRC-32C included."""
        return chunk_bytes(self.shape)

    @property
    def num_shards(self) -> int:
        return -(-self.num_slices // self.shard_slices)


@dataclass(frozen=True)
class ShardPlan:
    """One shard to write: the slices of its rows as (volume number, slice index in the volume)."""

    bucket: Bucket
    number: int
    rows: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class SplitLayout:
    """All slices of a split, volume after volume; slices of unequal shape lie in arrays (buckets) of their own."""

    split: str
    volumes: tuple[StoredVolume, ...]

    @cached_property
    def subjects(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(volume.subject for volume in self.volumes))

    @cached_property
    def slices(self) -> tuple[tuple[int, int], ...]:
        """(volume number, slice index in the volume) of every slice of the split."""
        return tuple((number, index) for number, volume in enumerate(self.volumes) for index in volume.indices)

    @cached_property
    def rows(self) -> dict[SliceShape, tuple[int, ...]]:
        """Shape of a slice → the numbers in the split of all such slices, in the order of their array's rows."""
        members: dict[SliceShape, list[int]] = {}
        for number, (volume, _) in enumerate(self.slices):
            members.setdefault(self.volumes[volume].shape, []).append(number)
        return {shape: tuple(numbers) for shape, numbers in members.items()}

    @cached_property
    def buckets(self) -> tuple[Bucket, ...]:
        """The arrays to write, with as many slices in a shard as fit into `SHARD_BYTES`."""
        return tuple(
            Bucket(number, shape, len(rows), max(1, min(SHARD_BYTES // (8 * math.prod(shape)), len(rows))))
            for number, (shape, rows) in enumerate(self.rows.items())
        )

    def shards(self) -> Iterator[ShardPlan]:
        """Every shard, in the order of the volumes that it needs first."""
        plans = []
        for bucket in self.buckets:
            for number in range(bucket.num_shards):
                rows = self.rows[bucket.shape][number * bucket.shard_slices : (number + 1) * bucket.shard_slices]
                plans.append(ShardPlan(bucket, number, tuple(self.slices[row] for row in rows)))
        yield from sorted(plans, key=lambda plan: plan.rows[0])

    def columns(self) -> dict[str, np.ndarray]:
        """The arrays that stand beside the k-space, one entry for each slice (see docs/format.md)."""
        place = np.zeros((len(self.slices), 2), np.int32)
        for bucket in self.buckets:
            place[list(self.rows[bucket.shape])] = [(bucket.number, row) for row in range(bucket.num_slices)]
        volume = np.array([number for number, _ in self.slices], np.int32)
        subject_of = np.array([self.subjects.index(item.subject) for item in self.volumes], np.int32)
        return {
            "volume": volume,
            "subject": subject_of[volume],
            "index": np.array([index for _, index in self.slices], np.int32),
            "position": np.array(_joined(self.volumes, "positions"), np.float32),
            "scale": np.array(_joined(self.volumes, "scales"), np.float32).reshape(-1, 2),
            "bucket": place[:, 0],
            "row": place[:, 1],
        }


def _joined(volumes: Sequence[StoredVolume], name: str) -> list[object]:
    return [value for volume in volumes for value in getattr(volume, name)]


def chunk_bytes(shape: SliceShape) -> int:
    """Bytes of a stored slice (coil, height, width): its complex64 values and their CRC-32C."""
    return 8 * math.prod(shape) + CRC_BYTES


def part_slices(chunk_bytes: int) -> int:
    """How many slices of `chunk_bytes` make a part: shards are stored in parts, and read fastest part by part."""
    return max(1, _PART_BYTES // chunk_bytes, -(-_LEAST_PART // chunk_bytes))


def array_name(kind: str, bucket: int) -> str:
    """`kspace`, `sensitivity_maps` or `guide` for the first shape of a split, `kspace_1`, … for further ones."""
    return f"{kind}_{bucket}" if bucket else kind


def dimension_names(bucket: int, num_buckets: int) -> tuple[str, ...]:
    """The names of an array's dimensions in the Zarr metadata, which xarray takes for equal lengths within a split.

    The columns run along `slice`, and so does an array that has all slices. Of several arrays each has its own.
    """
    names = ("slice", "coil", "height", "width")
    return names if num_buckets == 1 else tuple(f"{name}_{bucket}" for name in names)
