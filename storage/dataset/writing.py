"""How a data set is written: shards, a split's documents, and last the root document, which publishes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import crc32c
import numpy as np

from larmor.storage.dataset.dataset import (
    FORMAT_VERSION,
    GUIDE,
    JOURNAL,
    KINDS,
    SPLITS,
    TRIALS,
    columns_checksum,
    root_record,
    shard_checksum,
    shard_path,
)
from larmor.storage.dataset.layout import ShardPlan, SplitLayout, array_name, dimension_names, part_slices
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore

_FURTHER_DIMENSION = {"scale": ("extreme",), "crc": ("kind",)}  # of columns, after `slice`


@dataclass(frozen=True)
class StoredShard:
    """A shard in the store: its SHA-256, and the CRC-32C of each slice in it."""

    checksum: str
    crcs: tuple[int, ...]


def encode_shard(slices: np.ndarray, shard_slices: int) -> bytes:
    """The shard object of up to `shard_slices` slices (slice, coil, height, width) complex64: zarr's own encoding."""
    documents = _memory_group()
    array = _create_sharded(documents.group, "kspace", slices.shape, shard_slices)
    array[:] = slices
    (data,) = (data for path, data in documents.objects().items() if not path.endswith("zarr.json"))
    return data


def write_shard(store: ObjectStore, split: str, kind: str, plan: ShardPlan, slices: np.ndarray) -> StoredShard:
    """Store one shard."""
    data = encode_shard(slices, plan.bucket.shard_slices)
    part_bytes = part_slices(plan.bucket.chunk_bytes) * plan.bucket.chunk_bytes
    store.write(shard_path(split, kind, plan.bucket.number, plan.number), data, part_bytes)
    return StoredShard(shard_checksum(data), tuple(crc32c.crc32c(values.tobytes()) for values in slices))


def write_documents(
    store: ObjectStore, layout: SplitLayout, shards: Mapping[tuple[str, int], tuple[StoredShard, ...]]
) -> dict[str, Any]:
    """Write a split's metadata and columns; return the split's entry in the root document.

    `shards` has the shards of each array by (kind, bucket number), in order.
    """
    from zarr.codecs import Crc32cCodec

    documents = _memory_group()
    buckets = []
    for bucket in layout.buckets:
        kinds = [kind for kind, number in shards if number == bucket.number]
        for kind in kinds:
            shape = (bucket.num_slices, *bucket.shape)
            dimensions = dimension_names(bucket.number, len(layout.buckets))
            _create_sharded(documents.group, array_name(kind, bucket.number), shape, bucket.shard_slices, dimensions)
        buckets.append(
            {
                "shape": list(bucket.shape),
                "num_slices": bucket.num_slices,
                "shard_slices": bucket.shard_slices,
                "checksums": {
                    kind: [shard.checksum for shard in shards[kind, bucket.number]] for kind in sorted(kinds)
                },
            }
        )
    columns = {**layout.columns(), "crc": _crc_column(layout, shards)}
    for name, values in columns.items():
        documents.group.create_array(
            name,
            data=values,
            chunks=values.shape,
            compressors=[Crc32cCodec()],
            dimension_names=("slice", *_FURTHER_DIMENSION.get(name, ())),
            config={"write_empty_chunks": True},
        )
    for path, data in documents.objects().items():
        store.write(f"{layout.split}/{path}", data)
    volumes = [
        {"name": volume.name, "subject": volume.subject, **({"offset": volume.offset} if volume.offset else {})}
        for volume in layout.volumes
    ]
    return {
        "num_slices": len(layout.slices),
        "subjects": list(layout.subjects),
        "volumes": volumes,
        "buckets": buckets,
        "columns": columns_checksum(columns),
    }


def _crc_column(layout: SplitLayout, shards: Mapping[tuple[str, int], tuple[StoredShard, ...]]) -> np.ndarray:
    """(num_slices, 2) uint32: the CRC-32C of each slice's k-space and maps; 0 for maps that are not stored. With guides
    (num_slices, 3): theirs too."""
    kinds = KINDS if any(kind == GUIDE for kind, _ in shards) else KINDS[: KINDS.index(GUIDE)]
    column = np.zeros((len(layout.slices), len(kinds)), np.uint32)
    for (kind, number), parts in shards.items():
        column[list(layout.rows[layout.buckets[number].shape]), kinds.index(kind)] = [
            crc for part in parts for crc in part.crcs
        ]
    return column


@dataclass(frozen=True)
class _MemoryGroup:
    """A Zarr group in memory: zarr encodes, the object store carries the bytes."""

    group: Any
    contents: dict[str, Any]

    def objects(self) -> dict[str, bytes]:
        return {path: value.to_bytes() for path, value in self.contents.items()}


def _memory_group(attributes: Mapping[str, Any] | None = None) -> _MemoryGroup:
    import zarr
    from zarr.storage import MemoryStore

    contents: dict[str, Any] = {}
    group = zarr.create_group(MemoryStore(contents), zarr_format=3, attributes=dict(attributes or {}))
    return _MemoryGroup(group, contents)


def _create_sharded(
    group: Any, name: str, shape: tuple[int, ...], shard_slices: int, dimensions: tuple[str, ...] | None = None
) -> Any:
    from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec

    # the mantissas of measured k-space are noise: compression costs more time than it saves bytes
    return group.create_array(
        name,
        shape=shape,
        dtype="complex64",
        chunks=(shard_slices, *shape[1:]),
        serializer=ShardingCodec(chunk_shape=(1, *shape[1:]), codecs=[BytesCodec(), Crc32cCodec()]),
        compressors=None,
        fill_value=0,
        dimension_names=dimensions,
        # else zarr leaves a slice of zeros out, and nothing tells it from a lost one
        config={"write_empty_chunks": True},
    )


def refuse_occupied(store: ObjectStore, overwrite: bool) -> None:
    """Raises `InputError` if a whole data set stands at `store` and `overwrite` is False, or something else does."""
    store.check_access()
    if not store.exists("zarr.json"):
        foreign = [path for path in store.list() if path.split("/")[0] not in (*SPLITS, TRIALS, JOURNAL)]
        if not foreign:
            return
        if "zarr.json" not in foreign:  # else it was published between the two looks
            raise InputError(f"{store.url}: holds other files ({foreign[0]}, …); choose an empty place")
    root_record(store)  # refuses to delete what is not a data set of Larmor
    if not overwrite:
        raise InputError(f"{store.url}: there is a data set here already; pass --overwrite or choose another URL")


def remove(store: ObjectStore) -> None:
    """Delete a data set, whole or not; the journal of a conversion stays."""
    store.delete("zarr.json")  # unpublish first: readers see no data set rather than half of one
    for split in (*SPLITS, TRIALS):
        store.delete(split)


def publish(store: ObjectStore, splits: Mapping[str, Any], sources: Iterable[Mapping[str, Any]], **about: Any) -> None:
    """Write the root document: from now on the data set exists. One of several writers wins."""
    record = {"format": FORMAT_VERSION, "splits": dict(splits), "sources": list(sources), **about}
    document = _memory_group({"larmor": record}).objects()["zarr.json"]
    if not store.create("zarr.json", document) and store.read("zarr.json") != document:
        raise InputError(f"{store.url}: another conversion published a data set here first; choose another URL")
