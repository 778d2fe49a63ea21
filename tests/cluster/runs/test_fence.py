"""A process that was replaced while it waited for the store changes nothing of what its successor has written."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from larmor.cluster.runs.checkpoint import Checkpoint
from larmor.cluster.runs.lease import Lease, LeaseLost, Owner
from larmor.cluster.runs.run_folder import RunFolder
from larmor.cluster.runs.run_result import RunResult
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore
from larmor.storage.objects.store_errors import StoreAway
from larmor.tuning.search.objectives import Objectives
from larmor.tuning.search.records import TrialRecord
from larmor.tuning.search.sweep_folder import SweepFolder
from tests.faulty_proxy import FaultyProxy
from tests.helpers import add_checkpoint
from tests.workbench import unique_name

T = TypeVar("T")
PSNR = "val/psnr"
TRIAL = TrialRecord(
    id="0001", state="stopped", parameters={"loss.a": 1.0}, metrics={PSNR: 30.0}, began=1.0, seconds=7.0
)


class Interrupted(ObjectStore):
    """A store in which another process takes over while one request, counted from 0, waits."""

    def __init__(self, url: str, number: int, take_over: Callable[[], None]) -> None:
        super().__init__(url)
        self.number, self.take_over = number, take_over
        self.came = False

    def _persist(self, path: str, operate: Callable[[], T]) -> T:
        if self.number == 0:
            self.take_over()
            self.came = True
        self.number -= 1
        return super()._persist(path, operate)


def contents(url: str) -> dict[str, bytes]:
    store = ObjectStore(url)
    return {path: store.read(path) for path in store.list()}


def put_lease(store: ObjectStore, number: int) -> None:
    lease = Lease(number, Owner("far", "boot", 42, 0.0), time.time(), time.time(), 60.0)
    store.write(lease.path, lease.to_bytes())


def make_run(url: str, scratch: Path) -> None:
    """Three checkpoints, of which the last two are kept, and what a run has besides."""
    run = RunFolder(url)
    put_lease(run.store, 1)
    run.create("seed: 1")
    run.write_history(10, [{"step": 10}])
    run.write_failure("diverged")
    for step, psnr in ((10, 20.0), (20, 30.0), (30, 25.0)):
        add_checkpoint(run, scratch, step, {PSNR: psnr})


def successor(url: str, scratch: Path) -> None:
    """Another process begins anew at the same place."""
    store = ObjectStore(url)
    put_lease(store, 2)
    store.write("config.yaml", b"seed: 2")
    run = RunFolder(url, lease=2)
    run.write_history(10, [{"step": 10, "loss": 2.0}])
    run.write_failure("of the successor")
    for step in (40, 50):
        add_checkpoint(run, scratch, step, {PSNR: 1.0}, token="successor")


RUN_ACTS: dict[str, Callable[[RunFolder], Any]] = {
    "prune": lambda run: run.prune(1, 1, PSNR, True),
    "unpublish": lambda run: run.unpublish(Checkpoint("checkpoints/step-00000010-aa", 10, {}, {})),
    "delete": lambda run: run.delete(),
    "create": lambda run: run.create("seed: 1"),
    "write_history": lambda run: run.write_history(10, [{"step": 10}]),
    "write_result": lambda run: run.write_result(RunResult("finished", 30)),
    "write_failure": lambda run: run.write_failure("diverged"),
    "clear_failure": lambda run: run.clear_failure(),
    "publish": lambda run: run.publish(Checkpoint("checkpoints/step-00000060-aa", 60, {}, {})),
}


@pytest.mark.parametrize("act", RUN_ACTS)
@pytest.mark.parametrize("number", range(9))
def test_a_replaced_run_changes_nothing(tmp_path: Path, act: str, number: int) -> None:
    url, after = f"memory://{uuid.uuid4().hex}", {}
    make_run(url, tmp_path / "first")

    def take_over() -> None:
        successor(url, tmp_path / "second")
        after.update(contents(url))

    run = RunFolder(url, lease=1)
    run.store = store = Interrupted(url, number, take_over)
    try:
        RUN_ACTS[act](run)
    except LeaseLost:
        assert store.came
    if store.came:
        assert contents(url) == after


SWEEP_ACTS: dict[str, Callable[[SweepFolder], Any]] = {
    "delete": lambda sweep: sweep.delete(),
    "create": lambda sweep: sweep.create("seed: 1"),
    "begin": lambda sweep: sweep.begin_trial("0002", {"loss.a": 1.0}),
    "begin again": lambda sweep: sweep.begin_trial("0001", {"loss.a": 1.0}),
    "end": lambda sweep: sweep.write_trial(replace(TRIAL, state="finished")),
    "failure": lambda sweep: sweep.write_failure("0003", {}, "no reason"),
    "result": lambda sweep: sweep.write_result(Objectives.of("psnr")),
}


@pytest.mark.parametrize("act", SWEEP_ACTS)
@pytest.mark.parametrize("number", range(9))
def test_a_replaced_sweep_changes_nothing(act: str, number: int) -> None:
    url, after = f"memory://{uuid.uuid4().hex}", {}
    first = SweepFolder(url)
    put_lease(first.store, 1)
    first.create("seed: 1")
    first.begin_trial("0001", {"loss.a": 1.0})
    first.write_trial(TRIAL)

    def take_over() -> None:
        put_lease(ObjectStore(url), 2)
        second = SweepFolder(url, lease=2)
        second.store.write("sweep.yaml", b"seed: 2")
        second.write_trial(replace(TRIAL, state="finished", seconds=9.0))
        after.update(contents(url))

    sweep = SweepFolder(url, lease=1)
    sweep.store = store = Interrupted(url, number, take_over)
    try:
        SWEEP_ACTS[act](sweep)
    except LeaseLost:
        assert store.came
    if store.came:
        assert contents(url) == after


class TestGuard:
    """What `ObjectStore` asks before it changes anything."""

    @pytest.fixture(params=["local", "memory", "s3"])
    def store(self, request: pytest.FixtureRequest, tmp_path: Path, store_environment: dict[str, str]) -> ObjectStore:
        urls = {"local": str(tmp_path / "store"), "memory": f"memory://{uuid.uuid4().hex}"}
        store = ObjectStore(urls.get(request.param, f"s3://larmor/{unique_name('guard')}"))
        for path in ("a", "b/c", "b/d[1]"):
            store.write(path, b"old")
        return store

    def test_what_it_raises_prevents_every_change(self, store: ObjectStore) -> None:
        def guard() -> None:
            raise LeaseLost("taken")

        for attempt in (
            lambda: store.write("a", b"new", guard=guard),
            lambda: store.create("new", b"new", guard=guard),
            lambda: store.delete("b", guard=guard),
            lambda: store.delete("a", guard=guard),
            lambda: store.remove(["a", "b/c"], guard=guard),
        ):
            with pytest.raises(LeaseLost):
                attempt()
        assert contents(store.url) == {"a": b"old", "b/c": b"old", "b/d[1]": b"old"}

    def test_what_is_removed_is_what_was_named(self, store: ObjectStore) -> None:
        asked: list[int] = []
        store.remove(["b/d[1]", "missing", "a"], guard=lambda: asked.append(1))
        assert set(store.list()) == {"b/c"}
        assert asked

    def test_it_is_asked_again_before_a_request_is_repeated(self, faulty_proxy: FaultyProxy) -> None:
        """Between two attempts minutes may pass."""
        store = ObjectStore(f"s3://larmor/{unique_name('guard')}")
        store.write("a", b"old")
        for attempt in (
            lambda guard: store.write("a", b"new", guard=guard),
            lambda guard: store.remove(["a"], guard=guard),
            lambda guard: store.delete("a", guard=guard),
        ):
            answers = iter([None, LeaseLost("taken")])

            def guard() -> None:
                if error := next(answers):  # noqa: B023
                    raise error

            faulty_proxy.plan("status", methods=("PUT", "POST", "DELETE"), limit=1)
            with pytest.raises(LeaseLost):
                attempt(guard)
            faulty_proxy.clear()
        assert store.read("a") == b"old"

    def test_a_removal_that_the_store_refuses_is_an_error(
        self, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """S3 answers 200 then, and names what it has not removed."""
        if not store.url.startswith("s3://"):
            pytest.skip("of S3 alone")
        ask = store.filesystem.call_s3
        monkeypatch.setenv("LARMOR_STORE_PATIENCE", "0.2")
        store = ObjectStore(store.url)
        for code, kind in (("AccessDenied", InputError), ("InternalError", StoreAway)):
            answer = {"Errors": [{"Key": "x/a", "Code": code, "Message": "no"}]}
            monkeypatch.setattr(
                store.filesystem,
                "call_s3",
                lambda method, answer=answer, **more: answer if method == "delete_objects" else ask(method, **more),
            )
            with pytest.raises(kind, match=code):
                store.delete("a")


def test_names_that_look_like_patterns_are_removed_as_they_are(store_environment: dict[str, str]) -> None:
    store = ObjectStore(f"s3://larmor/{unique_name('patterns')}")
    for path in ("x[1]/y", "x1/y", "z*", "zz"):
        store.write(path, b"")
    store.delete("x[1]")
    store.delete("z*")
    assert set(store.list()) == {"x1/y", "zz"}
