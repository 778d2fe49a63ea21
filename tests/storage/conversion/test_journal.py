"""A conversion that was killed goes on where it stopped, and ends with the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from larmor.storage.conversion.convert import ConvertOptions, VolumeReport, convert
from larmor.storage.conversion.journal import open_journal
from larmor.storage.conversion.verify import verify
from larmor.storage.dataset import dataset, layout
from larmor.storage.formats.recognise import find_sources
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore
from larmor.storage.objects.store_errors import StoreAway
from tests.helpers import contents_of, random_kspace, write_heads
from tests.workbench import command, environment, succeed

MATRIX = (36, 32)
HELD_OUT = {"test": ["ann"], "validation": ["dan"]}
PLAN = f"{dataset.JOURNAL}/plan.json"


class Killed(Exception):
    """Stands for the end of the process."""


class Executioner:
    """Lets `allowed` writes of any store through; the next, and all after it, do not happen."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.allowed, self.count, self._lock = 10**9, 0, threading.Lock()
        for name in ("write", "create", "delete"):
            patch.setattr(ObjectStore, name, self._guarded(getattr(ObjectStore, name)))

    def _guarded(self, method: Any) -> Any:
        def guarded(*arguments: Any) -> Any:
            with self._lock:
                self.count += 1
                if self.count > self.allowed:
                    raise Killed
            return method(*arguments)

        return guarded

    def spare(self, allowed: int = 10**9) -> None:
        self.allowed, self.count = allowed, 0


@pytest.fixture
def executioner(monkeypatch: pytest.MonkeyPatch) -> Executioner:
    monkeypatch.setattr(layout, "SHARD_BYTES", 5 * 8 * MATRIX[0] * MATRIX[1])
    return Executioner(monkeypatch)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Four heads, and two scans of two coils."""
    write_heads(tmp_path / "scans", ["ann", "bob", "dan"])
    for name in ("eve", "fay"):
        np.save(tmp_path / "scans" / f"{name}.npy", random_kspace(6, (2, 20, 24)))
    return tmp_path / "scans"


def run(scans: Path, target: object, **options: object) -> list[VolumeReport]:
    settings = ConvertOptions(**{"matrix": MATRIX, "held_out": HELD_OUT, "num_threads": 2, **options})  # type: ignore[arg-type]
    return convert(find_sources([str(scans)]), str(target), settings)


def count_writes(executioner: Executioner, scans: Path, target: Path, **options: object) -> int:
    executioner.spare()
    run(scans, target, **options)
    return executioner.count


@pytest.mark.parametrize("num_threads", [1, 3])
def test_killed_at_any_write_it_goes_on_and_ends_with_the_same_bytes(
    scans: Path, tmp_path: Path, executioner: Executioner, num_threads: int
) -> None:
    options = {"sensitivity_maps": num_threads > 1, "num_threads": num_threads}
    total = count_writes(executioner, scans, tmp_path / "whole", **options)
    wanted = contents_of(tmp_path / "whole")
    assert total > 70, "there is something to kill"
    for allowed in range(0, total, 1 if num_threads == 1 else 7):
        target = tmp_path / f"killed-{allowed}"
        executioner.spare(allowed)
        with pytest.raises(Killed):
            run(scans, target, **options)
        assert threading.active_count() < 20
        executioner.spare()
        run(scans, target, **options)
        assert contents_of(target) == wanted, f"killed after {allowed} writes"


def test_killed_again_and_again_it_still_comes_to_its_end(
    scans: Path, tmp_path: Path, executioner: Executioner
) -> None:
    run(scans, tmp_path / "whole")
    for _ in range(100):
        executioner.spare(60)  # the documents, which come last, are some 50 writes
        try:
            run(scans, tmp_path / "data")
            break
        except Killed:
            continue
    assert contents_of(tmp_path / "data") == contents_of(tmp_path / "whole"), "each try gets further"


def test_killed_while_it_replaces_a_data_set(scans: Path, tmp_path: Path, executioner: Executioner) -> None:
    """Before anything is removed the old one is whole; afterwards the new one comes, and nothing of the old stays."""
    run(scans, tmp_path / "old", matrix=(40, 40), sensitivity_maps=True)
    old = contents_of(tmp_path / "old")
    run(scans, tmp_path / "new")
    new = contents_of(tmp_path / "new")
    store = ObjectStore(tmp_path / "data")
    for allowed in range(0, 90, 3):
        executioner.spare()
        store.delete()
        for path, content in old.items():
            store.write(path, content)
        executioner.spare(allowed)
        try:
            run(scans, tmp_path / "data", overwrite=True)
        except Killed:
            executioner.spare()
            if store.exists("zarr.json"):
                kept = {k: v for k, v in contents_of(tmp_path / "data").items() if not k.startswith(dataset.JOURNAL)}
                assert kept in (old, new), f"killed after {allowed} writes: a mixture is published"
            run(scans, tmp_path / "data", overwrite=True)
        assert contents_of(tmp_path / "data") == new, f"killed after {allowed} writes"


def test_what_was_done_is_not_done_again(scans: Path, tmp_path: Path, executioner: Executioner) -> None:
    total = count_writes(executioner, scans, tmp_path / "whole")
    executioner.spare(30)
    with pytest.raises(Killed):
        run(scans, tmp_path / "data")
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").glob("*/kspace*/c/*/0/0/0")}
    assert len(shards) > 3
    executioner.spare()
    reports = run(scans, tmp_path / "data", num_threads=1)
    assert all(report.resumed for report in reports)
    recorded = {path: seen for path, seen in shards.items() if path.stat().st_mtime_ns == seen}
    assert len(recorded) >= len(shards) - 2, "but for those whose record was not written any more"
    assert executioner.count < total - len(reports)


def test_a_lost_shard_is_written_again(scans: Path, tmp_path: Path, executioner: Executioner) -> None:
    run(scans, tmp_path / "whole")
    executioner.spare(30)
    with pytest.raises(Killed):
        run(scans, tmp_path / "data")
    executioner.spare()
    for number, path in enumerate(sorted((tmp_path / "data").glob("*/kspace*/c/*/0/0/0"))[:2]):
        path.write_bytes(path.read_bytes()[:100]) if number else path.unlink()
    run(scans, tmp_path / "data")
    assert contents_of(tmp_path / "data") == contents_of(tmp_path / "whole")


@pytest.mark.parametrize("change", ["options", "sources", "content", "splits"])
def test_another_conversion_in_its_place_is_refused(
    scans: Path, tmp_path: Path, executioner: Executioner, change: str
) -> None:
    executioner.spare(12)
    with pytest.raises(Killed):
        run(scans, tmp_path / "data")
    executioner.spare()
    options: dict[str, object] = {}
    if change == "options":
        options = {"min_foreground": 0.2}
    elif change == "splits":
        options = {"held_out": {"test": ["bob"], "validation": ["dan"]}}
    elif change == "sources":
        (scans / "eve.npy").unlink()
    else:
        os.utime(scans / "eve.npy", ns=(1, 1))
    before = contents_of(tmp_path / "data")
    with pytest.raises(InputError, match=r"unfinished conversion of other sources, or with other options.*--overwrite"):
        run(scans, tmp_path / "data", **options)
    assert contents_of(tmp_path / "data") == before
    run(scans, tmp_path / "data", overwrite=True, **options)
    run(scans, tmp_path / "fresh", **options)
    assert contents_of(tmp_path / "data") == contents_of(tmp_path / "fresh")


def test_a_store_that_is_away_costs_nothing_that_was_done(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = ObjectStore.write

    def away(store: ObjectStore, path: str, data: bytes) -> None:
        if path.endswith("sources/3.json"):
            raise StoreAway("the store is away")
        write(store, path, data)

    monkeypatch.setattr(ObjectStore, "write", away)
    with pytest.raises(StoreAway):
        run(scans, tmp_path / "data", num_threads=1)
    monkeypatch.undo()
    assert (tmp_path / "data" / dataset.JOURNAL / "sources" / "2.json").exists()
    assert sum(report.resumed for report in run(scans, tmp_path / "data")) == 3, "nothing was begun after it"


def test_a_source_that_changes_while_it_is_converted_is_noticed(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = find_sources([str(scans)])
    changed = threading.Event()

    def progress(what: str, done: int, total: int | None) -> None:
        if what == "checking" and done == total and not changed.is_set():
            changed.set()
            np.save(scans / "eve.npy", random_kspace(6, (2, 20, 24), seed=9))

    with pytest.raises(InputError, match=r"eve.npy: was changed or removed since the conversion began"):
        convert(sources, str(tmp_path / "data"), ConvertOptions(MATRIX, held_out=HELD_OUT), progress)
    with pytest.raises(InputError, match="there is no data set here"):
        dataset.read_root(ObjectStore(tmp_path / "data"))


@pytest.mark.parametrize("place", ["local", "s3"])
def test_several_processes_may_do_the_same_conversion(
    scans: Path, tmp_path: Path, request: pytest.FixtureRequest, place: str
) -> None:
    url = str(tmp_path / "data")
    if place == "s3":
        request.getfixturevalue("store_environment")
        url = f"s3://larmor/{uuid.uuid4().hex}"
    run(scans, tmp_path / "whole")
    outcomes: list[object] = []
    refusals: list[str] = []

    def one(_: int) -> None:
        try:
            outcomes.append(run(scans, url))
        except InputError as error:
            refusals.append(str(error))

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(one, range(3)))
    assert outcomes
    for refusal in refusals:
        assert "there is a data set here already" in refusal, "it came after the first had ended"
    store = ObjectStore(url)
    found = {path: store.read(path) for path in store.list() if not path.startswith(dataset.JOURNAL)}
    assert found == contents_of(tmp_path / "whole")
    assert not store.exists(PLAN)


@pytest.mark.parametrize("is_published", [True, False])
def test_a_conversion_that_ends_while_another_begins(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_published: bool
) -> None:
    """Its journal was there when the other wanted to make its own, and is gone when it looks whose it was."""
    store, create, lost = ObjectStore(tmp_path / "data"), ObjectStore.create, list[str]()

    def too_late(self: ObjectStore, path: str, data: bytes) -> bool:
        if not lost:
            lost.append(path)
            if is_published:
                run(scans, store.url)
            return False
        return create(self, path, data)

    monkeypatch.setattr(ObjectStore, "create", too_late)
    if is_published:
        with pytest.raises(InputError, match="there is a data set here already"):
            open_journal(store, {"sources": []}, overwrite=False)
    else:
        assert not open_journal(store, {"sources": []}, overwrite=False).resumed
    assert lost == [PLAN]


def test_two_different_conversions_in_one_place_make_no_mixture(scans: Path, tmp_path: Path) -> None:
    def one(matrix: tuple[int, int]) -> str:
        try:
            run(scans, tmp_path / "data", matrix=matrix)
            return "done"
        except InputError as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(one, [(36, 32), (40, 40)]))
    assert outcomes.count("done") == 1
    assert verify(str(tmp_path / "data")).problems == ()


def test_a_conversion_that_lost_its_place_stops(scans: Path, tmp_path: Path) -> None:
    taken = {"identity": "another", "cleared": False, "plan": {}}
    store = ObjectStore(tmp_path / "data")

    def progress(what: str, done: int, total: int | None) -> None:
        if what == "checking" and done == total:
            store.write(PLAN, json.dumps(taken).encode())

    options = ConvertOptions(MATRIX, held_out=HELD_OUT)
    with pytest.raises(InputError, match="another conversion has started here in the meantime"):
        convert(find_sources([str(scans)]), str(tmp_path / "data"), options, progress)
    assert json.loads(store.read(PLAN)) == taken, "the other's journal is left alone"
    assert not store.exists("zarr.json")


@pytest.mark.usefixtures("store_environment")
def test_a_killed_process_is_resumed_by_the_same_command(tmp_path: Path) -> None:
    for name in ("ann", "bob", "cat"):
        np.save(tmp_path / f"{name}.npy", random_kspace(60, (2, 96, 96)))
    url = f"s3://larmor/{uuid.uuid4().hex}"
    store = ObjectStore(url)
    arguments = ("convert", str(tmp_path), "--validation", "bob", "--test", "cat", "--threads", "1", "--to")
    process = subprocess.Popen(command(*arguments, url), env=environment(), stdout=subprocess.DEVNULL)
    while process.poll() is None and not store.list(f"{dataset.JOURNAL}/sources"):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert store.exists(PLAN), "it was killed too late to show anything"
    printed = succeed(*arguments, url)
    assert "resumed an interrupted conversion" in printed
    assert "180 slices in" in printed
    verified = succeed("verify", url)
    assert "180 slices in 3 shards" in verified
    assert "all is well" in verified


def test_killed_with_guides_it_ends_with_the_same_bytes(scans: Path, tmp_path: Path, executioner: Executioner) -> None:
    guides = tmp_path / "guides"
    write_heads(guides, ["x", "y", "z"])
    for old, new in (("x", "dan"), ("y", "ann"), ("z", "bob")):
        (guides / f"{old}.nii.gz").rename(guides / f"{new}.nii.gz")
    for name in ("fay", "eve"):
        np.save(guides / f"{name}.npy", random_kspace(6, (2, 20, 24), seed=len(name) + ord(name[0])))
    settings = ConvertOptions(MATRIX, held_out=HELD_OUT, num_threads=2, sensitivity_maps=True)

    def convert_both(target: str) -> None:
        found = find_sources([str(scans)]), find_sources([str(guides)])
        convert(found[0], str(tmp_path / target), settings, guides=found[1])

    executioner.spare()
    convert_both("whole")
    wanted = contents_of(tmp_path / "whole")
    assert "train/guide_1/c/0/0/0/0" in wanted
    for allowed in range(0, executioner.count, 29):
        executioner.spare(allowed)
        with pytest.raises(Killed):
            convert_both(f"killed-{allowed}")
        executioner.spare()
        convert_both(f"killed-{allowed}")
        assert contents_of(tmp_path / f"killed-{allowed}") == wanted, f"killed after {allowed} writes"
    assert not verify(str(tmp_path / "whole")).problems


def test_a_guide_that_changes_meanwhile_is_noticed(scans: Path, tmp_path: Path, executioner: Executioner) -> None:
    (scans / "eve.npy").unlink()
    (scans / "fay.npy").unlink()
    guides = [path.rename(tmp_path / path.name) for path in write_heads(tmp_path / "guides", ["bob", "dan", "ann"])]
    settings = ConvertOptions(MATRIX, held_out=HELD_OUT, num_threads=1)
    sources, second = find_sources([str(scans)]), find_sources([str(path) for path in guides])
    executioner.spare(6)  # read, and hardly anything is stored
    with pytest.raises(Killed):
        convert(sources, str(tmp_path / "data"), settings, guides=second)
    write_heads(tmp_path, ["bob"])
    executioner.spare()
    with pytest.raises(InputError, match="unfinished conversion of other sources"):
        convert(sources, str(tmp_path / "data"), settings, guides=second)
