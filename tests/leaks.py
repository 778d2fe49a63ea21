"""Where a secret got to: searched as it is, as UTF-16, and as base64, in files, archives and objects."""

from __future__ import annotations

import base64
import configparser
import io
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from larmor.storage.objects.embedded_store import PROFILE, EmbeddedStore
from larmor.storage.objects.object_store import ObjectStore


def store_keys(store: EmbeddedStore) -> dict[str, Any]:
    """The store's endpoint and keys as environment variables, as people without a profile have them."""
    known = configparser.ConfigParser()
    known.read(store.environment()["AWS_SHARED_CREDENTIALS_FILE"])
    endpoint = store.status().endpoint
    assert endpoint is not None
    return {
        "AWS_ACCESS_KEY_ID": known[PROFILE]["aws_access_key_id"],
        "AWS_SECRET_ACCESS_KEY": known[PROFILE]["aws_secret_access_key"],
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_REGION": "us-east-1",
    }


def spellings(secret: str) -> list[bytes]:
    """How a secret of more than a few characters can stand in a file."""
    plain = secret.encode()
    # base64 of a longer text depends on where in it the secret stands; the ends mix with their neighbours
    encoded = [base64.b64encode(b"\0" * shift + plain)[shift + 1 if shift else 0 : -4] for shift in range(3)]
    return [plain, secret.encode("utf-16-le"), *encoded]


def contents(place: Path | ObjectStore) -> Iterator[tuple[str, bytes]]:
    """Name and content of every file or object below a place, and of the files in its archives."""
    if isinstance(place, ObjectStore):
        found: Iterable[tuple[str, bytes]] = ((f"{place.url}/{name}", place.read(name)) for name in place.list())
    else:
        found = ((str(path), path.read_bytes()) for path in sorted(place.rglob("*")) if path.is_file())
    for name, content in found:
        yield name, content
        if zipfile.is_zipfile(io.BytesIO(content)):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                yield from ((f"{name}/{member}", archive.read(member)) for member in archive.namelist())


def leaks(secrets: Iterable[str], places: Iterable[Path | ObjectStore], texts: Mapping[str, str]) -> list[str]:
    """Names of all files, objects and texts in which one of the secrets stands."""
    wanted = [spelling for secret in secrets for spelling in spellings(secret)]
    found = []
    for place in places:
        found += [name for name, content in contents(place) if any(spelling in content for spelling in wanted)]
    return found + [name for name, text in texts.items() if any(spelling in text.encode() for spelling in wanted)]
