"""What the store can give at all: ranges of our shards fetched by bare clients, the bytes thrown away."""

from __future__ import annotations

import http.client
import json
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import crc32c
import numpy as np
from slices import SHAPE, SPLIT, Place

from larmor.storage.dataset import dataset, layout

Range = tuple[str, int, int]  # object, first byte, byte after the last
Get = Callable[[Range], "memoryview | bytes"]


def ranges_of(place: Place, mib: int = 0, parts: int = 0) -> list[Range]:
    """All bytes of all shards, so many at a time, in random order."""
    chunk = layout.chunk_bytes(SHAPE)
    size = (mib << 20) + parts * layout.part_slices(chunk) * chunk
    found = []
    for path, length in place.store("larmor").list(f"{SPLIT}/kspace/c").items():
        found += [(path, start, min(start + size, length)) for start in range(0, length, size)]
    order = np.random.default_rng(0).permutation(len(found))
    return [found[number] for number in order]


def by_http(place: Place) -> Get:
    """The standard library: one connection and one buffer for each thread, so that no memory is touched anew."""
    paths = list(place.store("larmor").list(f"{SPLIT}/kspace/c"))
    urls = {path: urlsplit(place.signed(f"larmor/{path}")) for path in paths}
    own = threading.local()

    def get(wanted: Range) -> memoryview:
        path, start, stop = wanted
        url = urls[path]
        if not hasattr(own, "connection"):
            secure = url.scheme == "https"
            own.connection = (
                http.client.HTTPSConnection(url.netloc, context=ssl.create_default_context())
                if secure
                else http.client.HTTPConnection(url.netloc)
            )
            own.buffer = memoryview(bytearray(64 << 20))
        own.connection.request("GET", f"{url.path}?{url.query}", headers={"Range": f"bytes={start}-{stop - 1}"})
        response = own.connection.getresponse()
        assert response.status == 206, f"{path}: {response.status} {response.reason}"
        view, received = own.buffer[: stop - start], 0
        while received < len(view) and (count := response.readinto(view[received:])):
            received += count
        response.read()
        return view[:received]

    return get


def by_obstore(place: Place) -> Get:
    """obstore: Rust's object_store, called from threads."""
    import obstore
    from obstore.store import S3Store

    keys = place.credentials()
    store = S3Store(
        place.bucket,
        access_key_id=keys.access_key,
        secret_access_key=keys.secret_key,
        **({"session_token": keys.token} if keys.token else {}),
        endpoint=place.s3.meta.endpoint_url,
        region=place.s3.meta.region_name,
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )

    def get(wanted: Range) -> memoryview:
        path, start, stop = wanted
        return memoryview(obstore.get_range(store, place.key(f"larmor/{path}"), start=start, end=stop))

    return get


def by_s3fs(place: Place) -> Get:
    """s3fs, through the threads of our own store class."""
    store = place.store("larmor")

    def get(wanted: Range) -> bytes:
        path, start, stop = wanted
        return store.filesystem.cat_file(store.full_path(path), start=start, end=stop)

    return get


MODULES = {"http": ("botocore.session", "s3fs"), "obstore": ("botocore.session", "obstore"), "s3fs": ("s3fs",)}
# requests of round size, and of whole parts, as the shards were stored
SIZES = ({"mib": 8}, {"mib": 16}, {"parts": 1}, {"parts": 2})
SETTINGS = tuple({"threads": threads, **size} for size in SIZES for threads in (2, 4, 8))
CLIENTS: dict[str, Callable[[Place], Get]] = {"http": by_http, "obstore": by_obstore, "s3fs": by_s3fs}


def fetch_all(
    place: Place, client: str, threads: int, **size: int
) -> Callable[[Callable[[Range, int], None] | None], int]:
    """A function that fetches every range once, hands (range, CRC-32C) to its argument if that is given, and
    returns the bytes that came."""
    wanted = ranges_of(place, **size)
    get = CLIENTS[client](place)

    def run(check: Callable[[Range, int], None] | None) -> int:
        def one(item: Range) -> int:
            content = get(item)
            if check:
                check(item, crc32c.crc32c(content))
            return len(content)

        with ThreadPoolExecutor(threads) as pool:
            return sum(pool.map(one, wanted))

    return run


def expected_checksums(place: Place, **size: int) -> dict[Range, int]:
    """CRC-32C of every range, from shards whose own checksums are those of the data set."""
    store = place.store("larmor")
    (bucket,) = dataset.read_split(store, SPLIT).buckets
    found: dict[Range, int] = {}
    wanted = ranges_of(place, **size)
    for number, checksum in enumerate(bucket.checksums["kspace"]):
        path = dataset.shard_path(SPLIT, "kspace", 0, number)
        shard = store.read(path)
        assert dataset.shard_checksum(shard) == checksum, f"{path}: damaged"
        found |= {item: crc32c.crc32c(memoryview(shard)[item[1] : item[2]]) for item in wanted if item[0] == path}
    assert len(found) == len(wanted), json.dumps(sorted(set(wanted) - set(found))[:3])
    return found
