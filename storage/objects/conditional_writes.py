"""Whether a store has conditional writes, on which it rests that of many processes one has a run."""

from __future__ import annotations

from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore
from larmor.storage.objects.store_errors import endpoint
from larmor.storage.objects.urls import is_remote


def check_conditional_writes(store: ObjectStore, name: str) -> None:
    """Raises `InputError` if the store lets `create` overwrite, after which nobody can tell who was first.

    An object of that `name`, which nobody else may have, is there meanwhile.
    """
    if not is_remote(store.url):
        return
    try:
        if store.create(name, b"") and store.create(name, b""):
            raise InputError(
                f"{store.url}: {endpoint(store.url)} ignores If-None-Match, so several processes could take one run; "
                "use a store with conditional writes (AWS S3, MinIO, Ceph, Cloudflare R2, or the embedded one: "
                "`larmor store start`) or a local folder"
            )
    finally:
        store.remove([name])
