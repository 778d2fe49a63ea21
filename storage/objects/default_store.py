"""Which store `s3://` means where nobody says: the embedded one, if it runs on this machine."""

from __future__ import annotations

import os

from larmor.storage.objects.embedded_store import EmbeddedStore
from larmor.storage.objects.errors import InputError

EMBEDDED_BUCKET = "larmor"
_NAMES = ("PROFILE", "ACCESS_KEY_ID", "ENDPOINT_URL", "ENDPOINT_URL_S3", "SHARED_CREDENTIALS_FILE", "NO_SIGN_REQUEST")


def refuse_anothers_bucket(url: str) -> None:
    """Raises `InputError` where `url` names the embedded store's bucket, and would be looked for at AWS: names of
    buckets are unique in the world there, and that one is somebody's."""
    bucket = url.partition("://")[2].partition("/")[0]
    if bucket == EMBEDDED_BUCKET and not _is_another_named():
        raise InputError(
            f"{url}: the bucket '{EMBEDDED_BUCKET}' is that of the embedded store, which does not run on this machine: "
            "start it with `larmor store start`, or name a bucket of your own (on a cluster: data.url and "
            "output_url). If another store has a bucket of that name, set AWS_ENDPOINT_URL or AWS_PROFILE"
        )


def _is_another_named() -> bool:
    return any(os.environ.get(f"AWS_{name}") for name in _NAMES)


def use_embedded_store() -> None:
    """Lead every S3 client of this process to the embedded store if it runs and no AWS variable names another."""
    if _is_another_named():
        return
    store = EmbeddedStore(EmbeddedStore.default_root())
    if store.is_running:
        os.environ.update(store.environment())
