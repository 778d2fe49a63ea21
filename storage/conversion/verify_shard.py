"""One shard read whole: its checksums, its index, and the values of every slice in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from larmor.storage.conversion.examine import image_scale
from larmor.storage.dataset.dataset import SplitInfo, shard_checksum, shard_path, stated_crc
from larmor.storage.dataset.layout import CRC_BYTES, Bucket
from larmor.storage.loading.shards import MISSING, crc_matches, decode_slice
from larmor.storage.objects.object_store import ObjectStore

_TOLERANCE = 1e-4  # of the largest value of an image


@dataclass(frozen=True)
class Shard:
    """A shard of `kind`; row r of it is slice `slices[r]` of the split, -1 where the columns do not say."""

    info: SplitInfo
    kind: str
    bucket: Bucket
    number: int
    slices: tuple[int, ...]

    @property
    def path(self) -> str:
        return shard_path(self.info.name, self.kind, self.bucket.number, self.number)


def shards_of(info: SplitInfo) -> Iterator[Shard]:
    """All shards of a split."""
    for bucket in info.buckets:
        slice_of = np.full(bucket.num_slices, -1)
        inside = np.flatnonzero((info.bucket == bucket.number) & (info.row >= 0) & (info.row < bucket.num_slices))
        slice_of[info.row[inside]] = inside
        for kind in bucket.checksums:
            for number in range(bucket.num_shards):
                rows = slice_of[number * bucket.shard_slices : (number + 1) * bucket.shard_slices]
                yield Shard(info, kind, bucket, number, tuple(rows.tolist()))


def check_shard(store: ObjectStore, shard: Shard) -> tuple[int, list[str]]:
    """Bytes read, and what is wrong: a line for each problem, that begins with the object's path."""
    try:
        raw = store.read(shard.path)
    except FileNotFoundError:
        return 0, [f"{shard.path}: is missing; convert the data again"]
    problems = []
    stated = shard.bucket.checksums[shard.kind]
    found = shard_checksum(raw)
    if shard.number >= len(stated):
        problems.append("the root document has no checksum of it")
    elif found != stated[shard.number]:
        problems.append(f"its SHA-256 is {found[:16]}…, the root document says {stated[shard.number][:16]}…")
    index = raw[-(16 * shard.bucket.shard_slices + CRC_BYTES) :]
    if len(index) < 16 * shard.bucket.shard_slices + CRC_BYTES or not crc_matches(index):
        problems.append(f"its index is damaged ({len(raw)} bytes are there), none of its slices can be found")
    else:
        table = np.frombuffer(index, "<u8", count=2 * shard.bucket.shard_slices).reshape(-1, 2)
        for row, number in enumerate(shard.slices):
            wrong = _check_slice(shard, number, raw, int(table[row, 0]), int(table[row, 1]))
            if wrong:
                problems.append(f"slice {number} (row {row}) {wrong}" if number >= 0 else f"row {row} {wrong}")
        surplus = int((table[len(shard.slices) :, 0] != MISSING).sum())
        if surplus:
            problems.append(f"its index names {surplus} more slices than the array has")
    return len(raw), [f"{shard.path}: {problem}; convert the data again" for problem in problems]


def _check_slice(shard: Shard, number: int, raw: bytes, start: int, length: int) -> str:
    """What is wrong with one slice, empty if nothing is."""
    if start == MISSING:
        return "is not in its shard"
    kspace = decode_slice(memoryview(raw)[start : start + length], shard.bucket)
    if kspace is None:
        return "is damaged (its CRC-32C does not match)"
    if not np.isfinite(kspace).all():
        return "has values that are not finite"
    if shard.kind == "kspace" and number >= 0:
        stated, found = shard.info.scale[number].tolist(), image_scale(kspace)
        tolerance = _TOLERANCE * max(found[1], float(np.finfo(np.float32).tiny))
        if not all(abs(one - other) <= tolerance for one, other in zip(stated, found, strict=True)):
            shown = [f"{low:.6g} to {high:.6g}" for low, high in (found, stated)]
            return f"has an image from {shown[0]}, its scale says {shown[1]}"
    if number >= 0 and stated_crc(shard.info, shard.kind, number) != raw[start + length - CRC_BYTES : start + length]:
        return "is not the one that the column crc names"
    return ""
