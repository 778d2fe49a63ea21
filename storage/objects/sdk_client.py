"""What a vendor's own client of an object store is asked for, one request each.

fsspec's gcsfs and adlfs repeat requests by themselves, so that a `Guard` could not be asked before each of them, and
gcsfs wants other versions of fsspec than s3fs does. The vendors' clients repeat nothing if they are told so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

TIMEOUTS = (5, 30)  # seconds, to connect and to read; a store that goes away is waited for


class OutOfRange(OSError):
    """The object ends before the range that was asked for."""


@dataclass(frozen=True)
class Entry:
    """An object: BUCKET/KEY, size in bytes, what tells its state from others, and what was stored with it."""

    name: str
    size: int
    etag: str = ""
    metadata: dict[str, str] = field(default_factory=dict)


class SdkClient(Protocol):
    """Objects are named BUCKET/KEY. Raises (all methods) what `refusal` makes of an answer."""

    def head(self, name: str) -> Entry:
        """What is known of an object."""

    def entries(self, place: str, flat: bool, most: int | None = None) -> Iterator[Entry | str]:
        """The objects below the folder `place`; unless `flat` those right below it, and names of folders there.

        `most`: how many are of interest.
        """

    def get(self, name: str, start: int, stop: int | None) -> bytes:
        """The bytes from `start` on, up to `stop` (or the end)."""

    def get_file(self, name: str, target: Path) -> None:
        """The object as a local file."""

    def put(self, name: str, data: bytes | Path, mark: str | None = None) -> None:
        """Put an object whole. With a `mark` only if there is none (else `FileExistsError`), and with the mark."""

    def remove(self, name: str) -> None:
        """Remove an object."""


def refusal(status: int, text: str, name: str) -> OSError:
    """What a file system raises, for the HTTP status of an answer. `ConnectionError`: another try may help."""
    message = f"{name}: {status} {text}".split("\n")[0]
    if status == 404:
        return FileNotFoundError(message)
    if status in (401, 403):
        return PermissionError(message)
    if status == 416:
        return OutOfRange(message)
    if status in (408, 412, 429) or status >= 500:  # 412: it was replaced while it was read
        return ConnectionError(message)
    return OSError(message)


def below(place: str) -> tuple[str, str]:
    """The bucket of the folder `place`, and what the keys below that folder begin with."""
    bucket, _, prefix = place.partition("/")
    return bucket, f"{prefix}/" if prefix else ""
