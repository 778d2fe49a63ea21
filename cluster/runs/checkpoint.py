"""A published checkpoint: what its manifest says, and what of that is there.

A manifest is what somebody else wrote: nothing of it is believed before it is checked.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from larmor.storage.objects.errors import InputError
from larmor.storage.objects.local_names import inside

MANIFEST_FORMAT = 1
WEIGHTS = "generator.safetensors"
FOLDER = re.compile(r"checkpoints/step-\d+-[^/]+")


@dataclass(frozen=True)
class FileEntry:
    """What a manifest says of a file: its size in bytes, and its SHA-256 in hexadecimal digits."""

    size: int
    sha256: str


Files = Mapping[str, FileEntry]


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint: its folder below the run's, step, metrics, and path → size and SHA-256.

    `problem` says what is wrong with one from which no training can resume, `weights_problem` what is wrong with one
    that holds no model either: the generator's weights may be good where a file beside them is damaged.
    """

    folder: str
    step: int
    metrics: Mapping[str, float]
    files: Files
    problem: str = ""
    weights_problem: str = ""


class DamagedCheckpoint(InputError):
    """A file of a checkpoint is not as it was written; `problem` says which, and why, without a remedy."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"{problem}; remove this checkpoint's folder to use another one")
        self.problem = problem


class _NoManifest(ValueError):
    """Why a document is not a manifest."""


def checkpoint_folder(step: int, token: str) -> str:
    """Name of a checkpoint's folder. The token keeps two attempts at one step apart."""
    return f"checkpoints/step-{step:08d}-{token}"


def checkpoint_step(folder: str) -> int:
    return int(folder.split("/")[-1].split("-")[1])


def write_manifest(checkpoint: Checkpoint) -> bytes:
    document = {
        "format": MANIFEST_FORMAT,
        "step": checkpoint.step,
        "metrics": dict(checkpoint.metrics),
        "files": files_document(checkpoint.files),
        **({"damaged": checkpoint.problem} if checkpoint.problem else {}),
    }
    return json.dumps(document, indent=1).encode()


def read_manifest(content: bytes, folder: str, sizes: Mapping[str, int], url: str) -> Checkpoint:
    """The checkpoint in `folder` of the run at `url`; `sizes` are those of the objects there.

    Raises `InputError` for one of a newer format: what it holds cannot be known.
    """
    try:
        document = json.loads(content)
    except ValueError as error:
        return _unreadable(folder, f"is not JSON ({error})")
    written = document.get("format") if isinstance(document, dict) else None
    if not isinstance(written, int):
        return _unreadable(folder, "is not a manifest of Larmor")
    if written > MANIFEST_FORMAT:
        raise InputError(
            f"{url}/{folder}: has manifest format {written}, this Larmor reads up to {MANIFEST_FORMAT}; update Larmor"
        )
    try:
        return _checked(document, folder, sizes)
    except _NoManifest as error:
        return _unreadable(folder, str(error))
    except (KeyError, TypeError, ValueError, AttributeError):  # whatever else may be in JSON
        return _unreadable(folder, "is not a manifest of Larmor")


def files_document(files: Files) -> dict[str, dict[str, int | str]]:
    """For JSON; `check_files` reads it."""
    return {name: dataclasses.asdict(entry) for name, entry in files.items()}


def check_files(files: Any) -> Files:
    """What a manifest, or a rank's part of it, says of its files. Keys beside size and SHA-256 are ignored.

    Raises `ValueError` for names that lead out of its folder, and what indexing raises for other things than files.
    """
    checked = {}
    for name, entry in files.items():
        try:
            inside(Path("checkpoint"), name)
        except InputError as error:
            raise _NoManifest(f"names a file outside of its folder, {name!r}") from error
        if not (isinstance(entry["size"], int) and isinstance(entry["sha256"], str)):
            raise _NoManifest("is not a manifest of Larmor")
        checked[name] = FileEntry(entry["size"], entry["sha256"])
    return checked


def ranked(found: Iterable[Checkpoint], metric: str, higher_is_better: bool) -> list[Checkpoint]:
    """Those with good weights whose metric is a finite number, the best first; of equal ones the earlier first, and the
    whole."""
    sign = -1 if higher_is_better else 1
    rated = [item for item in found if not item.weights_problem and math.isfinite(item.metrics.get(metric, math.nan))]
    return sorted(rated, key=lambda item: (sign * item.metrics[metric], item.step, bool(item.problem)))


def _checked(document: Mapping[str, Any], folder: str, sizes: Mapping[str, int]) -> Checkpoint:
    files = check_files(document["files"])
    missing = [name for name, entry in files.items() if sizes.get(f"{folder}/{name}") != entry.size]
    found = f"{missing[0]} is missing or cut short" if missing else str(document.get("damaged", ""))
    no_model = found and (WEIGHTS in missing or WEIGHTS not in files)
    weights = f"{WEIGHTS} is missing or cut short" if no_model else ""
    return Checkpoint(folder, int(document["step"]), dict(document["metrics"]), files, weights or found, weights)


def _unreadable(folder: str, problem: str) -> Checkpoint:
    text = f"manifest.json {problem}"
    return Checkpoint(folder, checkpoint_step(folder), {}, {}, text, text)
