"""Weights that a run starts from (`init_from`), as they lie in its folder: it never asks for their source again.

initial/NETWORK.safetensors   the tensors that were taken for a network (generator, critic, average), in float32
initial.json                  where they come from, what of each network was taken, checksums; written last

A sweep's folder has an `initial.json` without files: it pins the weights that its trials take.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from larmor.cluster.runs.checkpoint import Files, check_files, files_document
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore

FOLDER = "initial"
RECORD = "initial.json"
_MOST_NAMED = 3  # tensors in a sentence; the record has all


@dataclass(frozen=True)
class Taken:
    """What of a network was taken: `tensors` of `of_tensors` there are, with the share `parameters` of its parameters.

    `left_out` are the network's own tensors that start at random, `unused` those of the source, each with the reason.
    """

    tensors: int
    of_tensors: int
    parameters: float
    left_out: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    def describe(self) -> str:
        """In words."""
        parts = [f"{self.tensors} of {self.of_tensors} tensors, {100 * self.parameters:.4g} % of the parameters"]
        for what, names in (("left as they are", self.left_out), ("not used", self.unused)):
            if names:
                more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
                parts.append(f"{what}: {', '.join(names[:_MOST_NAMED])}{more}")
        return "; ".join(parts)


@dataclass(frozen=True)
class Initial:
    """The record. `source` is the checkpoint or the model, `sha256` that of its generator's file, and `files` what
    lies in the run's folder `initial`."""

    source: str
    sha256: str
    step: int | None = None
    matching: str = "strict"
    networks: Mapping[str, Taken] = field(default_factory=dict)
    files: Files = field(default_factory=dict)

    def to_json(self) -> bytes:
        """The record as it lies in the store."""
        document = {**dataclasses.asdict(self), "files": files_document(self.files)}
        return json.dumps(document, indent=1).encode()

    def describe(self) -> list[str]:
        """A line about the source, and one for each network."""
        head = f"initial weights: {self.source} (SHA-256 {self.sha256[:12]}…)"
        return [head, *(f"  {name}: {taken.describe()}" for name, taken in self.networks.items())]


def read_initial(store: ObjectStore) -> Initial | None:
    """The record of a run or a sweep; None if it started from random weights. Raises `InputError` for another file."""
    try:
        document = json.loads(store.read(RECORD))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"{store.url}/{RECORD}: is not JSON ({error}); restore it from a copy") from error
    try:
        return _checked(document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{store.url}/{RECORD}: is no record of Larmor ({error!r}); restore it from a copy") from error


def _checked(document: Mapping[str, Any]) -> Initial:
    networks = {
        str(name): Taken(
            int(item["tensors"]),
            int(item["of_tensors"]),
            float(item["parameters"]),
            tuple(item["left_out"]),
            tuple(item["unused"]),
        )
        for name, item in document["networks"].items()
    }
    source, digest, step = str(document["source"]), str(document["sha256"]), document["step"]
    return Initial(source, digest, step, str(document["matching"]), networks, check_files(document["files"]))
