"""The names of all objects that a split consists of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from larmor.storage.dataset.dataset import COLUMNS, shard_path
from larmor.storage.dataset.layout import CRC_BYTES, array_name


def shard_bytes(num_rows: int, chunk_bytes: int, shard_slices: int) -> int:
    """Bytes of a shard object of `num_rows` slices: the slices, then an index of `shard_slices` entries and its CRC."""
    return num_rows * chunk_bytes + 16 * shard_slices + CRC_BYTES


def expected_objects(split: str, arrays: Iterable[tuple[str, int, int]]) -> set[str]:
    """`arrays` are the sharded ones as (kind, bucket number, number of shards)."""
    found = {f"{split}/zarr.json"}
    for name, dimensions in COLUMNS.items():
        found |= {f"{split}/{name}/zarr.json", f"{split}/{name}/c/{'/'.join('0' * dimensions)}"}
    for kind, bucket, num_shards in arrays:
        found.add(f"{split}/{array_name(kind, bucket)}/zarr.json")
        found |= {shard_path(split, kind, bucket, shard) for shard in range(num_shards)}
    return found


def foreign_prefixes(found: Mapping[str, int], expected: Iterable[str]) -> list[str]:
    """The shortest prefixes below which lies nothing expected, that together hold all other objects of `found`."""
    wanted = set(expected)
    folders = {"/".join(parts[:depth]) for parts in (path.split("/") for path in wanted) for depth in range(len(parts))}
    foreign: dict[str, None] = {}
    for path in found:
        if path not in wanted:
            parts = path.split("/")
            prefixes = ("/".join(parts[:depth]) for depth in range(1, len(parts) + 1))
            foreign[next(prefix for prefix in prefixes if prefix not in folders)] = None
    return list(foreign)
