"""What a tracker is for Larmor: MLflow or Weights & Biases behind one small protocol."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from larmor.storage.objects.object_store import ObjectStore

End = Literal["finished", "stopped", "failed"]
_USER = re.compile(r"(?<=://)[^/@\s]*@")
_QUERY = re.compile(r"(://[^?\s]*)\?\S*")


@dataclass
class Entry:
    """A report: figures by the names of TensorBoard; `time` in seconds since 1970.

    `picture`: (height, width) uint8, or None.
    """

    step: int
    time: float
    figures: Mapping[str, float]
    picture: np.ndarray | None = None


@dataclass(frozen=True)
class Sweep:
    """The sweep that a run is a trial of: its name and its folder."""

    name: str
    folder: ObjectStore


@dataclass(frozen=True)
class About:
    """What a tracker is told of a run once: `params` has dotted keys, `tags` begin with `larmor.`."""

    name: str
    params: Mapping[str, Any]
    tags: Mapping[str, str]
    sweep: Sweep | None = None
    folder: str | None = None  # the run's, if it lies on this machine


class Tracker(Protocol):
    """One run at one service. All methods may take long and raise anything; one thread calls them."""

    name: str
    place: str

    def begin(self, id: str | None, keep: Callable[[str], None]) -> int | None:
        """Connect, to the run `id` if there is one.

        `keep(id)` is told the id of the run as soon as it is known. Returns the last step that the service has, or
        None if it cannot tell.
        """
        ...

    def log(self, entries: Sequence[Entry]) -> None:
        """Send reports of increasing steps. An error means that none of their figures has arrived."""
        ...

    def end(self, how: End) -> None: ...


def without_credentials(value: Any) -> Any:
    """A text without what stands before the @ and behind the ? of its URLs; any other value as it is."""
    if isinstance(value, str):
        return _QUERY.sub(r"\1", _USER.sub("", value))
    if isinstance(value, list | tuple):
        return [without_credentials(item) for item in value]
    return value


def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as one mapping with dotted keys, without credentials."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = without_credentials(value)
    return found
