"""Larmor's data set: one Zarr v3 group per split, sharded k-space, published by its root document.

URL/zarr.json                 root group; its attributes hold format version, splits, volumes, sources.
                              Written last and only once: without it there is no data set.
URL/SPLIT/kspace              (slice, coil, height, width) complex64; chunk = one slice, shard ≈ 64 MB
URL/SPLIT/kspace_1, …         the same for slices of further shapes
URL/SPLIT/sensitivity_maps, … beside each k-space array, if they were asked for
URL/SPLIT/guide, …            the same slices in a second, registered contrast, if the scans came with one
URL/SPLIT/volume, subject, index, position, scale, bucket, row, crc      a value for each slice (docs/format.md)
URL/conversion/…              the journal of a conversion that has not ended

The root document names the content: it has the checksum of every shard and of the columns, and the column `crc` has
that of every slice. So a reader of a few bytes notices that another data set has been put in this one's place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from larmor.storage.dataset.constant import is_constant
from larmor.storage.dataset.layout import (
    CRC_BYTES,
    Bucket,
    array_name,
)
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore
from larmor.storage.objects.store_errors import again_if_damaged

FORMAT_VERSION = 3
SPLITS = ("train", "validation", "test")
GUIDE = "guide"
KINDS = ("kspace", "sensitivity_maps", GUIDE)  # in the order of the column `crc`, which has the last only with guides
CHUNK_CODECS = ("bytes", "crc32c")
JOURNAL = "conversion"
KSPACE, TRIALS = "kspace", "trials"
_KIND_OF_DATA = {
    KSPACE: "k-space slices, made by `larmor convert`, from which systems such as larmor or gan_resnet50 reconstruct",
    TRIALS: "trials of an fMRI experiment, made by `larmor decode fetch` or `larmor decode convert`, which "
    "system=tigan decodes",
}
# with their dimensions
COLUMNS = {"volume": 1, "subject": 1, "index": 1, "position": 1, "scale": 2, "bucket": 1, "row": 1, "crc": 2}


@dataclass(frozen=True)
class SplitInfo:
    """What a reader needs of one split. The arrays hold a value for each slice, `crc` one for each of `KINDS`.

    `identity` names the content, bit for bit; `made_from` the sources and options, whatever machine converted them.
    `num_constant` slices of the data set are constant, and are not among these; `offsets` has the intensity that was
    taken off the images of each volume. `image_volumes` were made from magnitude images, not from measured k-space;
    `modality` is what the sources say of themselves, such as pet, else mri.
    """

    name: str
    buckets: tuple[Bucket, ...]
    volumes: tuple[str, ...]
    subjects: tuple[str, ...]
    identity: str
    made_from: str
    volume: np.ndarray
    subject: np.ndarray
    index: np.ndarray
    position: np.ndarray
    scale: np.ndarray
    bucket: np.ndarray
    row: np.ndarray
    crc: np.ndarray
    num_constant: int = 0
    offsets: Mapping[str, float] = field(default_factory=dict)
    image_volumes: tuple[str, ...] = ()
    modality: str = "mri"

    @property
    def num_slices(self) -> int:
        return len(self.index)

    @cached_property
    def largest_matrix(self) -> tuple[int, int]:
        """The largest height and the largest width among the slices."""
        return max(b.shape[1] for b in self.buckets), max(b.shape[2] for b in self.buckets)

    @property
    def has_guide(self) -> bool:
        """Whether each slice has a second contrast beside it."""
        return all(GUIDE in bucket.checksums for bucket in self.buckets)

    def bucket_of(self, index: int) -> Bucket:
        """The array in which the slice `index` lies."""
        return self.buckets[int(self.bucket[index])]

    def without_constant(self) -> SplitInfo:
        """The slices that show something, numbered anew, and the volumes and subjects that have some."""
        shown = ~is_constant(self.scale[:, 0], self.scale[:, 1])
        if shown.all():
            return self
        changes: dict[str, Any] = {name: getattr(self, name)[shown] for name in COLUMNS}
        for column, names in (("volume", self.volumes), ("subject", self.subjects)):
            kept, changes[column] = np.unique(changes[column], return_inverse=True)
            changes[f"{column}s"] = tuple(names[number] for number in kept)
        return replace(self, num_constant=self.num_constant + int((~shown).sum()), **changes)

    def slices_of(self, volume: str) -> np.ndarray:
        """Indices of the slices of one volume, in stored order."""
        return np.flatnonzero(self.volume == self.volumes.index(volume))


def shard_path(split: str, kind: str, bucket: int, shard: int) -> str:
    """The object that holds a shard of `kind` (one of `KINDS`)."""
    return f"{split}/{array_name(kind, bucket)}/c/{shard}/0/0/0"


def shard_checksum(data: bytes) -> str:
    """SHA-256 of a shard. (The CRC of bytes that end in their own CRC is a constant, so a CRC would say nothing.)"""
    return hashlib.sha256(data).hexdigest()


def stated_crc(info: SplitInfo, kind: str, index: int) -> bytes:
    """The four bytes that an encoded slice ends in, if it is the one that was stored for this data set."""
    return int(info.crc[index, KINDS.index(kind)]).to_bytes(CRC_BYTES, "little")


def columns_checksum(columns: Mapping[str, np.ndarray], names: Iterable[str] = COLUMNS) -> str:
    """SHA-256 of the names, types and values of `columns`, in the order of `names`."""
    found = hashlib.sha256()
    for name in names:
        values = columns[name]
        found.update(f"{name} {values.dtype.str} {values.shape} ".encode() + values.tobytes())
    return found.hexdigest()


def root_record(store: ObjectStore) -> tuple[dict[str, Any], str]:
    """The data set's own record, whatever its format, and the SHA-256 of the root document. Raises as `read_root`."""
    try:
        content = store.read("zarr.json")
        document = json.loads(content)
    except FileNotFoundError as error:
        raise InputError(
            f"{store.url}: there is no data set here (no zarr.json; an unfinished conversion leaves none); "
            "make one with `larmor convert`"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{store.url}/zarr.json: is not JSON ({error}); convert the data again") from error
    attributes = document.get("attributes") if isinstance(document, dict) else None
    record = attributes.get("larmor") if isinstance(attributes, dict) else None
    if not isinstance(record, dict):
        raise InputError(f"{store.url}: is a Zarr group, but not a data set of Larmor; use `larmor convert`")
    return record, hashlib.sha256(content).hexdigest()


def read_root(store: ObjectStore, kind: str | None = KSPACE) -> dict[str, Any]:
    """The data set's own record: format, splits, sources.

    Raises `InputError` if there is no (whole) data set, it is not Larmor's, its format is another one, or it is of
    another kind than `kind` (None: any).
    """
    store.check_access()
    record = _checked_root(store)[0]
    if kind is not None:
        _check_kind(store, record, kind)
    return record


def _check_kind(store: ObjectStore, record: Mapping[str, Any], kind: str) -> None:
    found = record.get("kind", KSPACE)
    if found != kind:
        what = _KIND_OF_DATA.get(found, f"data of the kind '{found}', which this Larmor does not know")
        raise InputError(f"{store.url}: holds {what}; needed here are {_KIND_OF_DATA[kind]}")


def read_identity(store: ObjectStore) -> str:
    """What names the content of the data set, bit for bit: its root document's SHA-256. Raises as `read_root` does."""
    return _checked_root(store)[1]


def _checked_root(store: ObjectStore) -> tuple[dict[str, Any], str]:
    record, identity = root_record(store)
    version = record.get("format", 0)
    if not isinstance(version, int):
        raise InputError(f"{store.url}/zarr.json: is damaged (its format is {version!r}); convert the data again")
    if version > FORMAT_VERSION:
        raise InputError(f"{store.url}: has format {version}, this Larmor reads {FORMAT_VERSION}; update Larmor")
    if version < FORMAT_VERSION:
        raise InputError(
            f"{store.url}: has format {version}, this Larmor reads {FORMAT_VERSION}; convert again with --overwrite"
        )
    if not isinstance(record.get("splits"), dict) or not isinstance(record.get("sources"), list):
        raise InputError(f"{store.url}/zarr.json: is damaged (no splits or no sources); convert the data again")
    return record, identity


def read_split(store: ObjectStore, split: str) -> SplitInfo:
    """Shapes, sharding and the small columns of one split.

    Raises `InputError` if the data set lacks the split, is damaged, is stored with codecs that Larmor does not read,
    or is replaced by another one meanwhile.
    """
    info, stated = read_split_as_it_is(store, split)
    if columns_checksum({name: getattr(info, name) for name in COLUMNS}) != stated:
        raise InputError(
            f"{store.url}/{split}: its columns do not match the root document; the data set was converted again while "
            "it "
            "was opened, or changed by hand: try again, then convert the data again"
        )
    return info


def read_split_as_it_is(store: ObjectStore, split: str) -> tuple[SplitInfo, str]:
    """`read_split` without a look at the columns' checksum; and the one that the root document states."""
    root, identity = _checked_root(store)
    _check_kind(store, root, KSPACE)
    if split not in root["splits"]:
        raise InputError(f"{store.url}: has no split '{split}'; it has {', '.join(sorted(root['splits'])) or 'none'}")
    entry = root["splits"][split]
    try:
        num_slices, subjects, columns_stated = int(entry["num_slices"]), tuple(entry["subjects"]), entry["columns"]
        volumes = tuple(volume["name"] for volume in entry["volumes"])
        offsets = {volume["name"]: float(volume.get("offset", 0.0)) for volume in entry["volumes"]}
        buckets = tuple(
            Bucket(
                number,
                tuple(bucket["shape"]),
                bucket["num_slices"],
                bucket["shard_slices"],
                {kind: tuple(values) for kind, values in bucket["checksums"].items()},
            )
            for number, bucket in enumerate(entry["buckets"])
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{store.url}/zarr.json: is damaged (split '{split}': {error}); convert the data again"
        ) from error
    columns = again_if_damaged(lambda: _read_columns(store, split, buckets))
    if any(len(values) != num_slices for values in columns.values()):
        raise InputError(f"{store.url}/{split}: its columns have unequal lengths; convert the data again")
    sources = json.dumps({key: value for key, value in root.items() if key != "splits"}, sort_keys=True)
    info = SplitInfo(
        name=split,
        buckets=buckets,
        volumes=volumes,
        subjects=subjects,
        identity=identity,
        made_from=hashlib.sha256(sources.encode()).hexdigest(),
        num_constant=0,
        offsets=offsets,
        image_volumes=tuple(name for name in volumes if name in _made_from_images(root["sources"])),
        modality=_modality(root["sources"]),
        **columns,
    )
    return info, columns_stated


def _made_from_images(sources: Iterable[Mapping[str, Any]]) -> set[str]:
    """The volumes whose source says that it held magnitude images (`provenance` in `storage/formats`)."""
    return {
        str(source.get("volume"))
        for source in sources
        if source.get("plane", "acquired") != "acquired" or source.get("content") == "magnitude images"
    }


def _modality(sources: Iterable[Mapping[str, Any]]) -> str:
    return " and ".join(sorted({str(source.get("modality", "mri")) for source in sources})) or "mri"


def _read_columns(store: ObjectStore, split: str, buckets: Iterable[Bucket]) -> dict[str, np.ndarray]:
    """The columns, and a check that the sharded arrays are what this Larmor reads."""
    import zarr
    from zarr.buffer import cpu
    from zarr.storage import MemoryStore

    arrays = {array_name(kind, bucket.number): bucket for bucket in buckets for kind in bucket.checksums}
    paths = ["zarr.json", *(f"{name}/zarr.json" for name in (*COLUMNS, *arrays))]
    paths += [f"{name}/c/{'/'.join('0' * dimensions)}" for name, dimensions in COLUMNS.items()]

    def read(path: str) -> Any:
        try:
            return cpu.Buffer.from_bytes(store.read(f"{split}/{path}"))
        except FileNotFoundError as error:
            raise InputError(f"{store.url}/{split}/{path}: is missing; convert the data again") from error

    with ThreadPoolExecutor(8) as pool:
        contents: dict[str, Any] = dict(zip(paths, pool.map(read, paths), strict=True))
    try:
        group: Any = zarr.open_group(MemoryStore(contents), mode="r", zarr_format=3)
        for name, bucket in arrays.items():
            _check_sharding(f"{store.url}/{split}/{name}", group[name], bucket)
        return {name: np.asarray(group[name][:]) for name in COLUMNS}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{store.url}/{split}: is damaged ({error}); convert the data again") from error


def _check_sharding(place: str, array: Any, bucket: Bucket) -> None:
    codecs = array.metadata.to_dict()["codecs"]
    inner = tuple(codec["name"] for codec in codecs[0].get("configuration", {}).get("codecs", ()))
    expected = ((bucket.num_slices, *bucket.shape), (1, *bucket.shape), (bucket.shard_slices, *bucket.shape))
    if codecs[0]["name"] != "sharding_indexed" or inner != CHUNK_CODECS:
        raise InputError(f"{place}: is not sharded by slice with codecs {CHUNK_CODECS}; convert again")
    if (array.shape, array.chunks, array.shards) != expected:
        raise InputError(f"{place}: does not have the shape that the root document states; convert again")
