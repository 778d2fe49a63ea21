"""Everything that can be wrong with a data set, found by reading all of it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from larmor.storage.conversion.verify_shard import check_shard, shards_of
from larmor.storage.dataset import dataset
from larmor.storage.dataset.dataset import SplitInfo
from larmor.storage.dataset.expected_objects import expected_objects, foreign_prefixes
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore
from larmor.storage.objects.parallel import default_threads, run_in_threads
from larmor.storage.objects.progress import Progress, silent
from larmor.storage.objects.store_errors import StoreAway

_DAMAGED = (KeyError, TypeError, IndexError, AttributeError)  # what a document of another shape leads to


@dataclass(frozen=True)
class VerifyReport:
    """What was read, and a line for each problem that names the object, and the slice where there is one."""

    url: str
    num_slices: int
    num_shards: int
    num_bytes: int
    seconds: float
    problems: tuple[str, ...]

    def summary(self) -> str:
        """One line."""
        rate = self.num_bytes / 1e6 / max(self.seconds, 1e-9)
        found = f"{len(self.problems)} problem(s)" if self.problems else "all is well"
        return (
            f"{self.url}: {self.num_slices} slices in {self.num_shards} shards, {self.num_bytes / 1e6:.1f} MB read "
            f"({rate:.0f} MB/s): {found}"
        )


def verify(url: str, progress: Progress = silent, num_threads: int | None = None) -> VerifyReport:
    """Read the data set at `url` and check every checksum, value, and what its documents say of each other.

    Memory: a shard for each thread. Raises `InputError` if there is no data set, its root document cannot be
    read, or the store cannot be reached.
    """
    started = time.monotonic()
    store = ObjectStore(url)
    root = dataset.read_root(store)
    if not isinstance(root.get("splits"), dict):
        raise InputError(f"{store.url}/zarr.json: names no splits; convert the data again")
    objects = store.list()
    problems = _check_objects(root, objects)
    splits: dict[str, SplitInfo] = {}
    for name in root["splits"]:
        try:
            splits[name], stated = dataset.read_split_as_it_is(store, name)
            problems += [f"{name}: {line}" for line in check_columns(splits[name], root["splits"][name], stated)]
        except StoreAway:
            raise
        except InputError as error:
            problems.append(str(error).removeprefix(f"{store.url}/"))
        except _DAMAGED as error:
            problems.append(f"zarr.json: its record of the split '{name}' is damaged ({error!r}); convert again")
    problems += _check_apart(splits)
    shards = [shard for info in splits.values() for shard in shards_of(info) if shard.path in objects]
    found = run_in_threads(
        lambda shard: check_shard(store, shard),
        shards,
        num_threads or default_threads(),
        lambda done: progress("verifying", done, len(shards)),
    )
    problems += [line for _, lines in found for line in lines]
    num_slices = sum(info.num_slices for info in splits.values())
    num_bytes = sum(size for size, _ in found)
    lines = tuple(f"{store.url}/{line}" for line in dict.fromkeys(problems))
    return VerifyReport(store.url, num_slices, len(shards), num_bytes, time.monotonic() - started, lines)


def _check_objects(root: Mapping[str, Any], objects: Mapping[str, int]) -> list[str]:
    expected = {"zarr.json"}
    for split, entry in root["splits"].items():
        try:
            arrays = [
                (kind, number, -(-bucket["num_slices"] // bucket["shard_slices"]))
                for number, bucket in enumerate(entry["buckets"])
                for kind in bucket["checksums"]
            ]
        except _DAMAGED:  # said by `read_split`
            return []
        expected |= expected_objects(split, arrays)
    found = {path: size for path, size in objects.items() if path.split("/")[0] != dataset.JOURNAL}
    missing = [f"{path}: is missing; convert the data again" for path in sorted(expected - set(found))]
    return missing + [f"{prefix}: does not belong here; remove it" for prefix in foreign_prefixes(found, expected)]


def _check_apart(splits: Mapping[str, SplitInfo]) -> list[str]:
    """No volume and no subject may be in two splits."""
    problems = []
    for what in ("volumes", "subjects"):
        home: dict[str, str] = {}
        for split, info in splits.items():
            for name in getattr(info, what):
                other = home.setdefault(name, split)
                if other != split:
                    problems.append(f"zarr.json: {what[:-1]} '{name}' is in {other} and in {split}; convert again")
    return problems


def check_columns(info: SplitInfo, entry: Mapping[str, Any], stated: str) -> list[str]:
    """What is wrong with a split's columns: `entry` is what the root document says of it, `stated` their checksum."""
    limits = {"volume": len(info.volumes), "subject": len(info.subjects), "bucket": len(info.buckets)}
    problems = [
        f"{name}: slice {int(number)} has {int(getattr(info, name)[number])}, outside 0 … {limit - 1}; convert again"
        for name, limit in limits.items()
        for number in _first((getattr(info, name) < 0) | (getattr(info, name) >= limit))
    ]
    for name in ("position", "scale"):
        bad = ~np.isfinite(getattr(info, name).reshape(info.num_slices, -1)).all(axis=1)
        problems += [f"{name}: slice {int(number)} is not finite; convert again" for number in _first(bad)]
    for bucket in info.buckets:
        rows = np.sort(info.row[info.bucket == bucket.number])
        if not np.array_equal(rows, np.arange(bucket.num_slices)):
            problems.append(
                f"row: the rows of array {bucket.number} are not 0 … {bucket.num_slices - 1}, each once; convert again"
            )
    if problems:
        return problems  # what follows would stumble over them
    problems = _check_volumes(info, entry)
    if not problems and dataset.columns_checksum({name: getattr(info, name) for name in dataset.COLUMNS}) != stated:
        return ["columns: their SHA-256 is not what the root document says; convert again"]
    return problems


def _check_volumes(info: SplitInfo, entry: Mapping[str, Any]) -> list[str]:
    problems = []
    for number, volume in enumerate(entry["volumes"]):
        slices = np.flatnonzero(info.volume == number)
        subjects = {info.subjects[subject] for subject in info.subject[slices]}
        if subjects != {volume["subject"]}:
            shown = ", ".join(sorted(subjects)) or "none"
            problems.append(f"subject: volume '{volume['name']}' has {shown}, not '{volume['subject']}'; convert again")
        if (info.index[slices] < 0).any() or (np.diff(info.index[slices]) <= 0).any():
            problems.append(f"index: the slices of volume '{volume['name']}' are not in ascending order; convert again")
    return problems


def _first(wrong: np.ndarray) -> Iterable[int]:
    """The first of the slices that are wrong: a shifted column would give a line for each."""
    return np.flatnonzero(wrong)[:1]
