"""Which store `s3://` means where nobody says: the embedded one, if it runs on this machine."""

from __future__ import annotations

import os

from larmor.storage.objects.embedded_store import EmbeddedStore

_NAMES = ("PROFILE", "ACCESS_KEY_ID", "ENDPOINT_URL", "ENDPOINT_URL_S3", "SHARED_CREDENTIALS_FILE", "NO_SIGN_REQUEST")


def use_embedded_store() -> None:
    """Lead every S3 client of this process to the embedded store if it runs and no AWS variable names another."""
    if any(os.environ.get(f"AWS_{name}") for name in _NAMES):
        return
    store = EmbeddedStore(EmbeddedStore.default_root())
    if store.is_running:
        os.environ.update(store.environment())
