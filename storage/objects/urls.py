"""Which names are URLs of object stores, and the parts of those URLs."""

from __future__ import annotations

from typing import NamedTuple

from larmor.storage.objects.errors import InputError

# what stands before BUCKET/PREFIX, and how that is written in full
REMOTE = {
    "s3": "s3://BUCKET/PREFIX",
    "gs": "gs://BUCKET/PREFIX",
    "az": "az://CONTAINER/PREFIX",
    "abfs": "abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/PREFIX",
    "abfss": "abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/PREFIX",
}


class Place(NamedTuple):
    """`bucket` (Azure: container), `host` behind its @ if there is one, and `prefix` without a slash at its end."""

    bucket: str
    host: str
    prefix: str

    @property
    def root(self) -> str:
        """What file systems call the place: BUCKET/PREFIX."""
        return f"{self.bucket}/{self.prefix}".rstrip("/")


def protocol_of(name: str) -> str:
    """What stands before ://, or nothing."""
    protocol, separator, _ = name.partition("://")
    return protocol if separator else ""


def is_remote(name: str) -> bool:
    """Whether `name` is the URL of an object store; else it is a path."""
    return protocol_of(name) in REMOTE


def split(url: str) -> Place:
    """The parts of the URL of an object store. Raises `InputError` if it names no bucket."""
    protocol, _, place = url.partition("://")
    bucket, _, prefix = place.partition("/")
    bucket, _, host = bucket.partition("@")
    if not bucket:
        raise InputError(f"{url}: no bucket is named; write {REMOTE[protocol]}")
    return Place(bucket, host, prefix.rstrip("/"))
