"""Larmor's data set: one Zarr v3 group per split, sharded k-space, published by its root document.

URL/zarr.json                 root group; its attributes hold format version, splits, subjects, sources.
                              Written last and only once: without it there is no data set.
URL/SPLIT/kspace              (slice, coil, height, width) complex64; chunk = one slice, shard ≈ 64 MB
URL/SPLIT/subject             (slice,) int32: place in the root's list of the split's subjects
URL/SPLIT/index, position     (slice,) int32, float32: voxel index and mm from the posterior face
URL/SPLIT/scale               (slice, 2) float32: minimum and maximum of the image, eq. (1)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from storage.errors import InputError
from storage.object_store import ObjectStore

FORMAT_VERSION = 1
SPLITS = ("train", "validation", "test")
SHARD_BYTES = 64 * 2**20
CHUNK_CODECS = ("bytes", "crc32c")


@dataclass(frozen=True)
class SliceRecord:
    """One slice to store: `kspace` (coil, height, width) complex64, and where it comes from."""

    kspace: np.ndarray
    subject: str
    index: int
    position: float
    scale: tuple[float, float]


@dataclass(frozen=True)
class SplitInfo:
    """What a reader needs of one split: `shape` is (slice, coil, height, width)."""

    name: str
    shape: tuple[int, int, int, int]
    shard_slices: int
    subjects: tuple[str, ...]
    subject: np.ndarray
    index: np.ndarray
    position: np.ndarray
    scale: np.ndarray

    @property
    def num_slices(self) -> int:
        return self.shape[0]

    def slices_of(self, subject: str) -> np.ndarray:
        """Indices of the slices of one subject, in stored order."""
        return np.flatnonzero(self.subject == self.subjects.index(subject))


class SplitWriter:
    """Appends slices to one split, a shard at a time; at most one shard is held in memory.

    `capacity` bounds the number of slices; `close` trims the arrays to what was appended.
    """

    def __init__(self, store: ObjectStore, split: str, slice_shape: tuple[int, int, int], capacity: int) -> None:
        chunk_bytes = 8 * int(np.prod(slice_shape))
        self.shard_slices = max(1, min(SHARD_BYTES // chunk_bytes, capacity))
        self.split, self.subjects = split, []  # type: tuple[str, list[str]]
        self._store, self._shape, self._capacity = store, slice_shape, capacity
        self._pending: list[SliceRecord] = []
        self._columns: dict[str, list[Any]] = {"subject": [], "index": [], "position": [], "scale": []}

    def append(self, record: SliceRecord) -> None:
        if record.subject not in self.subjects:
            self.subjects.append(record.subject)
        self._columns["subject"].append(self.subjects.index(record.subject))
        for name in ("index", "position", "scale"):
            self._columns[name].append(getattr(record, name))
        self._pending.append(record)
        if len(self._pending) == self.shard_slices:
            self._flush()

    def close(self) -> dict[str, Any]:
        """Write what is left and the split's metadata; return the split's entry in the root document."""
        self._flush()
        num_slices = len(self._columns["index"])
        documents = _memory_group()
        group = documents.group
        _create_kspace(group, (num_slices, *self._shape), self.shard_slices)
        types = {"subject": np.int32, "index": np.int32, "position": np.float32, "scale": np.float32}
        for name, dtype in types.items():
            group.create_array(name, data=np.asarray(self._columns[name], dtype), compressors=None)
        for path, data in documents.objects().items():
            self._store.write(f"{self.split}/{path}", data)
        return {"num_slices": num_slices, "subjects": self.subjects}

    def _flush(self) -> None:
        if not self._pending:
            return
        total = len(self._columns["index"])
        start = total - len(self._pending)
        documents = _memory_group()
        array = _create_kspace(documents.group, (total, *self._shape), self.shard_slices)
        array[start:total] = np.stack([record.kspace for record in self._pending]).astype(np.complex64)
        for path, data in documents.objects().items():
            if not path.endswith("zarr.json"):
                self._store.write(f"{self.split}/{path}", data)
        self._pending.clear()


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


def _create_kspace(group: Any, shape: tuple[int, ...], shard_slices: int) -> Any:
    from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec

    # the mantissas of measured k-space are noise: compression costs more time than it saves bytes
    return group.create_array(
        "kspace",
        shape=shape,
        dtype="complex64",
        chunks=(shard_slices, *shape[1:]),
        serializer=ShardingCodec(chunk_shape=(1, *shape[1:]), codecs=[BytesCodec(), Crc32cCodec()]),
        compressors=None,
        fill_value=0,
        dimension_names=("slice", "coil", "height", "width"),
        # else zarr leaves a slice of zeros out, and nothing tells it from a lost one
        config={"write_empty_chunks": True},
    )


def begin(store: ObjectStore, overwrite: bool) -> None:
    """Make room for a new data set at `store`.

    Raises `InputError` if a whole data set stands there and `overwrite` is False, or if the place holds
    something else. What an interrupted conversion left is removed.
    """
    store.check_access()
    if store.exists("zarr.json"):
        read_root(store)  # refuses to delete what is not a data set of Larmor
        if not overwrite:
            raise InputError(f"{store.url}: a data set is there already; pass --overwrite or choose another URL")
        store.delete("zarr.json")  # unpublish first: readers see no data set rather than half of one
    elif foreign := [path for path in store.list() if path.split("/")[0] not in SPLITS]:
        raise InputError(f"{store.url}: holds other files ({foreign[0]}, …); choose an empty place")
    for split in SPLITS:
        store.delete(split)


def publish(store: ObjectStore, splits: Mapping[str, Any], sources: Iterable[Mapping[str, Any]], **about: Any) -> None:
    """Write the root document: from now on the data set exists. One of several writers wins."""
    record = {"format": FORMAT_VERSION, "splits": dict(splits), "sources": list(sources), **about}
    document = _memory_group({"larmor": record}).objects()["zarr.json"]
    if not store.create("zarr.json", document):
        raise InputError(f"{store.url}: another conversion published a data set here first; choose another URL")


def read_root(store: ObjectStore) -> dict[str, Any]:
    """The data set's own record: format, splits, sources.

    Raises `InputError` if there is no (whole) data set, it is not Larmor's, or its format is newer.
    """
    store.check_access()
    try:
        document = json.loads(store.read("zarr.json"))
    except FileNotFoundError as error:
        raise InputError(
            f"{store.url}: no data set is there (no zarr.json; a conversion that did not end leaves none); "
            "make one with `larmor convert`"
        ) from error
    except json.JSONDecodeError as error:
        raise InputError(f"{store.url}/zarr.json: is not JSON ({error}); convert the data again") from error
    record = document.get("attributes", {}).get("larmor")
    if not isinstance(record, dict):
        raise InputError(f"{store.url}: is a Zarr group, but not a data set of Larmor; use `larmor convert`")
    if record.get("format", 0) > FORMAT_VERSION:
        raise InputError(
            f"{store.url}: has format {record['format']}, this Larmor reads up to {FORMAT_VERSION}; update Larmor"
        )
    return record


def read_split(store: ObjectStore, split: str) -> SplitInfo:
    """Shape, sharding and the small columns of one split.

    Raises `InputError` if the data set lacks the split or is stored with codecs that Larmor does not read.
    """
    import zarr
    from zarr.buffer import cpu
    from zarr.storage import MemoryStore

    root = read_root(store)
    if split not in root["splits"]:
        raise InputError(f"{store.url}: has no split '{split}'; it has {', '.join(sorted(root['splits'])) or 'none'}")
    contents: dict[str, Any] = {
        path.removeprefix(f"{split}/"): cpu.Buffer.from_bytes(store.read(path))
        for path in store.list(split)
        if not path.startswith(f"{split}/kspace/c/")
    }
    group: Any = zarr.open_group(MemoryStore(contents), mode="r", zarr_format=3)
    kspace = group["kspace"]
    codecs = kspace.metadata.to_dict()["codecs"]
    inner = tuple(codec["name"] for codec in codecs[0].get("configuration", {}).get("codecs", ()))
    if codecs[0]["name"] != "sharding_indexed" or inner != CHUNK_CODECS or kspace.chunks != (1, *kspace.shape[1:]):
        raise InputError(
            f"{store.url}/{split}/kspace: is not sharded by slice with codecs {CHUNK_CODECS}; convert again"
        )
    columns = {name: np.asarray(group[name][:]) for name in ("subject", "index", "position", "scale")}
    return SplitInfo(
        name=split,
        shape=tuple(kspace.shape),
        shard_slices=int(kspace.shards[0]),
        subjects=tuple(root["splits"][split]["subjects"]),
        **columns,
    )


def describe(store: ObjectStore) -> list[str]:
    """What `larmor inspect` prints: a line per split, array and source."""
    root = read_root(store)
    lines = [f"{store.url}: Larmor data set, format {root['format']}, {root['plane']} slices"]
    for split in SPLITS:
        info = read_split(store, split)
        megabytes = 8e-6 * float(np.prod(info.shape))
        lines.append(
            f"{split}: kspace {info.shape} (slice, coil, height, width) complex64, chunk = 1 slice, shard = "
            f"{info.shard_slices} slices, {megabytes:.1f} MB"
        )
        counts = [f"{subject} ({len(info.slices_of(subject))})" for subject in info.subjects]
        lines.append(f"  subjects: {', '.join(counts)}")
    for source in root["sources"]:
        voxel = " × ".join(f"{size:.3g}" for size in source["voxel_size_mm"])
        package = f", {source['package']} {source['version']}" if "package" in source else ""
        lines.append(
            f"source {source['subject']}: {source['file']}{package}, {voxel} mm, licence: {source['licence']}, "
            f"sha256 {source['sha256'][:16]}…"
        )
    return lines
