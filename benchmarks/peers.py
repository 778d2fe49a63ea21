"""The contenders of `loader.py`: our loader and its peers, each delivering the same slices in batches of 16.

Each function opens its data set below `place.url` and returns what runs through one epoch of batches (slice, coil,
height, width) complex64; its other arguments are the settings that are tried. All of them are used as their
documentation says, in random order.
"""

from __future__ import annotations

import functools
import itertools
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from slices import BATCH, SHAPE, SPLIT, Place, batches_of, load, shuffled

from larmor.storage.loading.config import DataConfig, open_loader, open_reader
from larmor.storage.loading.loader import Share

Epoch = Callable[[], Iterator[np.ndarray]]
_SHUFFLE = 512  # slices of a shuffle buffer: as many as our default `shuffle_bytes` holds


@dataclass(frozen=True)
class Contender:
    """How to run one: `open` with each of `settings`; `modules` are imported before the clock starts.

    `num_epochs` is 2 if the second one comes from the contender's own cache on disk. `format`: see `slices.WRITERS`.
    """

    format: str
    open: Callable[..., Epoch]
    modules: tuple[str, ...] = ()
    settings: tuple[Mapping[str, Any], ...] = ({},)
    num_epochs: int = 1


def larmor(place: Place, client: str = "http", cache: bool = False, threads: int = 4) -> Epoch:
    """Our loader with its own settings but `threads` requests at once; without caches, or with the one on disk."""
    folder = tempfile.mkdtemp(dir=place.scratch)
    config = DataConfig.model_validate(
        {
            "url": place.store("larmor").url,
            "client": client,
            "memory_cache_bytes": 0,
            "disk_cache_bytes": 2**40 if cache else 0,
            "disk_cache": folder,
            "read_threads": threads,
        }
    )
    loader = open_loader(config, open_reader(config, SPLIT), Share(0, 1, BATCH, 1), seed=0)
    batches = loader.batches(0, end=(2 if cache else 1) * place.num_slices // BATCH)

    def epoch() -> Iterator[np.ndarray]:
        for batch in itertools.islice(batches, place.num_slices // BATCH):
            yield batch.groups[0].kspace

    return epoch


def _zarr_array(place: Place) -> Any:
    """The k-space array that our loader reads, opened by zarr-python over s3fs."""
    import s3fs
    import zarr
    from zarr.storage import FsspecStore

    filesystem = s3fs.S3FileSystem(asynchronous=True)
    path = f"{place.bucket}/{place.key(f'larmor/{SPLIT}/kspace')}"
    return zarr.open_array(FsspecStore(filesystem, path=path, read_only=True), mode="r", zarr_format=3)


def zarr_slices(place: Place) -> Epoch:
    """zarr-python as one first writes it: slice after slice."""
    array = _zarr_array(place)

    def epoch() -> Iterator[np.ndarray]:
        for indices in batches_of(shuffled(range(place.num_slices), np.random.default_rng(0))):
            yield np.stack([array[index] for index in indices])

    return epoch


def zarr_shards(place: Place, threads: int) -> Epoch:
    """zarr-python reading whole shards in threads; the slices of one shard are shuffled."""
    array = _zarr_array(place)
    return functools.partial(_by_file, place, lambda rows: array[rows.start : rows.stop], threads)


def _by_file(place: Place, read: Callable[[range], np.ndarray], threads: int) -> Iterator[np.ndarray]:
    """Batches from whole files that are read in random order, `threads` at once."""
    rng = np.random.default_rng(0)
    files = [place.files()[number] for number in rng.permutation(len(place.files()))]
    with ThreadPoolExecutor(threads) as pool:
        requested = (pool.submit(read, rows) for rows in files)
        for future in _ahead(requested, threads):
            content = future.result()
            order = rng.permutation(len(content))
            for first in range(0, len(content), BATCH):
                yield content[order[first : first + BATCH]]


def _ahead(items: Iterable[Any], count: int) -> Iterator[Any]:
    """The items in order, each taken `count` places before it is needed."""
    items = iter(items)
    waiting = deque(itertools.islice(items, count))
    while waiting:
        yield waiting.popleft()
        waiting.extend(itertools.islice(items, 1))


def _tensorstore_array(place: Place) -> Any:
    import tensorstore

    keys = place.credentials()  # TensorStore finds a profile only in files of the usual names
    os.environ |= {"AWS_ACCESS_KEY_ID": keys.access_key, "AWS_SECRET_ACCESS_KEY": keys.secret_key}
    os.environ |= {"AWS_SESSION_TOKEN": keys.token} if keys.token else {}
    kvstore = {
        "driver": "s3",
        "bucket": place.bucket,
        "path": place.key(f"larmor/{SPLIT}/kspace/"),
        "endpoint": place.s3.meta.endpoint_url,
        "aws_region": place.s3.meta.region_name,
        "aws_credentials": {"type": "environment"},
    }
    # the pool keeps the indexes of the shards; its size is what TensorStore's own examples use
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 100_000_000}})
    spec = {"driver": "zarr3", "kvstore": kvstore, "recheck_cached_data": False, "recheck_cached_metadata": "open"}
    return tensorstore.open(spec, context=context, read=True).result()


def tensorstore_slices(place: Place, batches: int) -> Epoch:
    """TensorStore reading single slices, those of several batches at once."""
    array = _tensorstore_array(place)

    def epoch() -> Iterator[np.ndarray]:
        wanted = batches_of(shuffled(range(place.num_slices), np.random.default_rng(0)))
        for future in _ahead((array[indices].read() for indices in wanted), batches):
            yield future.result()

    return epoch


def tensorstore_shards(place: Place, shards: int) -> Epoch:
    """TensorStore reading whole shards, several at once; the slices of one shard are shuffled."""
    array = _tensorstore_array(place)
    return functools.partial(_by_file, place, lambda rows: array[rows.start : rows.stop].read().result(), shards)


def webdataset(place: Place, workers: int) -> Epoch:
    """WebDataset over signed URLs, which it reads through curl, with a shuffle buffer."""
    import webdataset as wds

    urls = [place.signed(path) for path in (f"tar/{name}" for name in place.store("tar").list())]
    dataset = (
        wds.WebDataset(urls, shardshuffle=len(urls), seed=0)
        .shuffle(_SHUFFLE)
        .decode()
        .to_tuple("npy")
        .batched(BATCH, collation_fn=_stacked)
    )
    loader = wds.WebLoader(dataset, batch_size=None, num_workers=workers)
    return lambda: (np.asarray(batch) for batch in loader)


def _stacked(samples: Sequence[tuple[np.ndarray]]) -> np.ndarray:
    return np.stack([sample[0] for sample in samples])


def litdata(place: Place, workers: int) -> Epoch:
    """LitData: chunks are kept on local disk, and shuffled within."""
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming import downloader

    if place.s3.meta.endpoint_url.startswith("http://"):
        # without TLS its own client, obstore, refuses to work, and no option of LitData's leads there
        cast(dict[str, Any], downloader._OBSTORE_CLIENT_OPTIONS)["allow_http"] = True
    dataset = StreamingDataset(
        place.store("litdata/chunks").url,
        cache_dir=tempfile.mkdtemp(dir=place.scratch),
        shuffle=True,
        storage_options={"endpoint_url": place.s3.meta.endpoint_url},
    )
    loader = StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, shuffle=True)
    return lambda: (batch.numpy() for batch in loader)


def mosaicml(place: Place, workers: int) -> Epoch:
    """MosaicML Streaming: shards are kept on local disk, and shuffled across."""
    from torch.utils.data import DataLoader

    os.environ["S3_ENDPOINT_URL"] = place.s3.meta.endpoint_url
    dataset = load("streaming").StreamingDataset(
        remote=place.store("mds/shards").url,
        local=tempfile.mkdtemp(dir=place.scratch),
        shuffle=True,
        batch_size=BATCH,
        num_canonical_nodes=1,
    )
    for stream in dataset.streams:
        # else the workers that are forked share the connection over which the index came, take each other's answers,
        # and without TLS nothing tells them: slices arrive with 8 KiB of another's bytes
        stream._downloader.clean_up()
    loader: Any = DataLoader(dataset, batch_size=BATCH, num_workers=workers, persistent_workers=workers > 0)
    return lambda: (batch["kspace"].numpy().view(np.complex64).reshape(-1, *SHAPE) for batch in loader)


class _Volumes:
    """A torch data set of slices in HDF5 files, as fastMRI's own: files are opened by the worker that needs them."""

    def __init__(self, place: Place) -> None:
        self.root = f"{place.bucket}/{place.key('hdf5')}"
        self.places = [(file, row) for file, rows in enumerate(place.files()) for row in range(len(rows))]
        self.opened: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> np.ndarray:
        import h5py
        import s3fs

        file, row = self.places[index]
        if file not in self.opened:
            # without read-ahead: what follows a random slice is not wanted
            source = s3fs.S3FileSystem().open(f"{self.root}/{file:04d}.h5", cache_type="none")
            self.opened[file] = h5py.File(source)["kspace"]
        return np.asarray(self.opened[file][row])[None]


def hdf5(place: Place, workers: int) -> Epoch:
    """h5py over s3fs on fastMRI's layout."""
    import torch
    from torch.utils.data import DataLoader

    order = torch.Generator().manual_seed(0)
    loader: Any = DataLoader(_Volumes(place), batch_size=BATCH, shuffle=True, num_workers=workers, generator=order)  # type: ignore[arg-type]
    return lambda: (batch.numpy() for batch in loader)


_LARMOR = ("s3fs", "zarr", "botocore.session")
_WORKERS = ({"workers": 0}, {"workers": 2})
_THREADS = ({"threads": 4}, {"threads": 8})
OURS = "larmor http"
CACHED = "larmor http, disk cache"
CONTENDERS: dict[str, Contender] = {
    OURS: Contender("larmor", larmor, _LARMOR, _THREADS),
    "larmor s3fs": Contender("larmor", functools.partial(larmor, client="s3fs"), _LARMOR),
    CACHED: Contender("larmor", functools.partial(larmor, cache=True), _LARMOR, num_epochs=2),
    "zarr, slices": Contender("larmor", zarr_slices, ("zarr", "s3fs")),
    "zarr, shards": Contender("larmor", zarr_shards, ("zarr", "s3fs"), ({"threads": 2}, {"threads": 4})),
    "tensorstore, slices": Contender("larmor", tensorstore_slices, ("tensorstore",), ({"batches": 4}, {"batches": 8})),
    "tensorstore, shards": Contender("larmor", tensorstore_shards, ("tensorstore",), ({"shards": 1}, {"shards": 2})),
    "webdataset": Contender("tar", webdataset, ("webdataset", "torch"), _WORKERS),
    "litdata": Contender("litdata", litdata, ("litdata", "torch"), _WORKERS, num_epochs=2),
    "mosaicml": Contender("mds", mosaicml, ("streaming", "torch"), _WORKERS, num_epochs=2),
    "h5py": Contender("hdf5", hdf5, ("h5py", "s3fs", "torch"), _WORKERS),
}
