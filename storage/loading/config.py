"""The `data` section of an experiment, and the readers that it describes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from larmor.storage.dataset.dataset import SplitInfo, read_split
from larmor.storage.loading.cache import DiskCache
from larmor.storage.loading.loader import Allocate, Loader, Share
from larmor.storage.loading.order import SampleOrder, num_lanes
from larmor.storage.loading.reader import Kind, ReadOptions, SliceReader, check_guide, check_maps
from larmor.storage.loading.stacks import stack_starts
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.home import cache_home
from larmor.storage.objects.object_store import Client, ObjectStore
from larmor.storage.objects.urls import is_remote

# the smallest image that every metric can rate: SSIM looks through a window of 7 pixels
CropSize = Annotated[int, Field(ge=8)]
MIB = 2**20


class DataConfig(BaseModel):
    """Where the k-space lies and how it is read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field("s3://larmor/heads", description="data set made by `larmor convert`")
    sha256: str | None = Field(
        None,
        pattern="^[0-9a-f]{64}$",
        description="of its root document (zarr.json): another data set at that URL is refused; a run that begins with "
        "null keeps what it found",
    )
    crop: tuple[CropSize, CropSize] = Field(
        (256, 256),
        description="height and width of the images, in pixels; larger ones are cropped, smaller ones padded",
    )
    stack: int = Field(
        1,
        ge=1,
        description="consecutive slices of a volume, or frames of a series, that are seen together: one sample",
    )
    train_split: str = Field("train", description="split of the data set that is trained on")
    validation_split: str = Field("validation", description="split that chooses the best checkpoint")
    client: Client = Field("s3fs", description="what reads slices from S3; http costs the processor much less")
    read_threads: int = Field(4, ge=1, le=64, description="requests at once, per worker")
    block_bytes: int = Field(
        8 * MIB, ge=1, le=2**30, description="slices that are read and shuffled together, in bytes"
    )
    shuffle_bytes: int = Field(
        128 * MIB, ge=1, description="blocks that are mixed at a time, in bytes over all workers"
    )
    lanes: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="streams that the order is interleaved from; a multiple of the workers lets each read whole "
        "blocks; null: as many as suit the batch",
    )
    read_ahead_bytes: int = Field(
        64 * MIB, ge=0, le=2**34, description="batches requested in advance, in bytes per worker"
    )
    memory_cache_bytes: int = Field(256 * MIB, ge=0, description="slices kept in memory, in bytes per worker")
    disk_cache_bytes: int = Field(
        8 * 2**30, ge=0, description="slices of an object store kept on disk, in bytes per machine; 0: none"
    )
    disk_cache: str | None = Field(None, description="folder of the disk cache; null: the user's cache folder")


def open_reader(
    config: DataConfig,
    split: str,
    patient: bool = False,
    with_maps: bool = False,
    constant: bool = False,
    with_guide: bool = False,
) -> SliceReader:
    """A reader of one split of `config.url`. With `patient` a store that is away now is waited for as it is later.

    Constant slices are left out (`info.num_constant`), unless `constant` asks for them. `with_maps` opens the
    sensitivity maps too (`SliceReader.maps`; None if every slice has one coil), and `with_guide` the second contrast
    (`SliceReader.guide`), with an equal part of the memory for each.
    Raises `InputError` if the data set lacks them, is not the one of `config.sha256`, or has constant slices only.
    """
    store = ObjectStore(config.url, config.client)
    if not patient:
        store.check_access()
    whole = read_split(store, split)
    check_identity(config, whole.identity)
    info = whole if constant else whole.without_constant()
    if not info.num_slices and whole.num_slices:
        raise InputError(
            f"{store.url}/{split}: all of its {whole.num_slices} slices are constant and show nothing; convert other "
            "volumes"
        )
    # slices are numbered anew where some are left out: a cache must not take the one for the other
    part = split if info is whole else f"{split}-shown"
    with_maps = with_maps and any(bucket.shape[0] > 1 for bucket in info.buckets)
    if with_maps:
        check_maps(store, info)
    if with_guide:
        check_guide(store, info)
    memory = config.memory_cache_bytes // (1 + with_maps + with_guide)
    options = ReadOptions(config.read_threads, config.block_bytes, memory)

    def beside(kind: Kind, name: str) -> SliceReader:
        return SliceReader(store, info, options, _open_cache(config, info, f"{part}-{name}"), kind)

    maps = beside("sensitivity_maps", "maps") if with_maps else None
    guide = beside("guide", "guide") if with_guide else None
    return SliceReader(store, info, options, _open_cache(config, info, part), maps=maps, guide=guide)


def check_identity(config: DataConfig, found: str) -> None:
    """Raises `InputError` if `config` wants another data set than that whose root document has the SHA-256 `found`."""
    if config.sha256 not in (None, found):
        raise InputError(
            f"{config.url}: is not the data set that data.sha256={config.sha256} names (its zarr.json has "
            f"{found[:12]}…): it has been converted again since; restore the old one, or start a "
            "new run with data.sha256=null"
        )


def _open_cache(config: DataConfig, info: SplitInfo, part: str) -> DiskCache | None:
    if not config.disk_cache_bytes or not is_remote(config.url):
        return None
    folder = cache_folder(config, "slices")
    try:
        return DiskCache(folder, config.disk_cache_bytes, info.identity, part)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be used as disk cache ({error}); choose another folder with data.disk_cache, or set "
            "data.disk_cache_bytes=0"
        ) from error


def open_loader(
    config: DataConfig, reader: SliceReader, share: Share, seed: int, allocate: Allocate | None = None
) -> Loader:
    """The batches of one rank in the order that `config` and `seed` give, the same for every world size.

    Raises `InputError` for a stack that is longer than a volume.
    """
    if config.stack == 1:
        order = sample_order(config, reader, reader.block_of, share.global_batch_size, seed)
        return Loader(reader, order, share, config.read_ahead_bytes, allocate)
    starts = stack_starts(reader.info, config.stack)
    block_of = np.unique(reader.block_of[starts], return_inverse=True)[1]
    order = sample_order(config, reader, block_of, share.global_batch_size, seed)
    return Loader(reader, order, share, config.read_ahead_bytes, allocate, starts, config.stack)


def sample_order(
    config: DataConfig, reader: SliceReader, block_of: np.ndarray, global_batch_size: int, seed: int
) -> SampleOrder:
    """The shuffled order of samples that lie in the blocks `block_of` (num_samples,)."""
    largest = max(bucket.chunk_bytes for bucket in reader.info.buckets)
    kinds = 1 + len(reader.companions)
    pool = max(1, config.shuffle_bytes // (kinds * max(config.block_bytes, largest)))
    num_blocks = int(reader.block_of.max()) + 1
    batch_blocks = global_batch_size * num_blocks // len(reader.block_of)
    lanes = config.lanes or num_lanes(global_batch_size, min(batch_blocks, num_blocks))
    return SampleOrder(block_of, seed, pool, lanes)


def cache_folder(config: DataConfig, kind: str) -> Path:
    """Where the slices, or another `kind` of what can be made again, are kept on this machine's disk."""
    if config.disk_cache:
        given = Path(config.disk_cache).expanduser()
        return given if kind == "slices" else given / kind
    return cache_home() / kind
