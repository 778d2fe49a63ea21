"""Of all processes that want a run's folder one has it, and a dead one keeps nobody out."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from larmor.cluster.experiments.experiment import Experiment
from larmor.cluster.launch.run import claimed
from larmor.cluster.runs.checkpoint import Checkpoint
from larmor.cluster.runs.lease import (
    Lease,
    LeaseLost,
    Owner,
    check_lease,
    delete_all_but_lease,
    hold,
    newest,
    refuse_if_held,
)
from larmor.cluster.runs.run_folder import RunFolder
from larmor.cluster.runs.run_result import RunResult
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore
from larmor.storage.objects.store_errors import StoreAway
from tests.faulty_proxy import FaultyProxy
from tests.helpers import random_kspace, write_dataset
from tests.workbench import command, environment, unique_name

HERE = Owner.this_process()
ELSEWHERE = Owner("far", "other boot", 42, 0.0)
LONG = 3600.0  # seconds: whoever waited for it would never finish


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, store_environment: dict[str, str]) -> ObjectStore:
    return ObjectStore(str(tmp_path / "run") if request.param == "local" else f"s3://larmor/{unique_name('lease')}")


@pytest.fixture
def said() -> list[str]:
    return []


def put(store: ObjectStore, number: int, owner: Owner, age: float = 0.0, seconds: float = LONG) -> Lease:
    """A lease as a process leaves it that cannot let go, last renewed `age` seconds ago."""
    then = time.time() - age
    lease = Lease(number, owner, then, then, seconds)
    store.write(lease.path, lease.to_bytes())
    return lease


def leases(store: ObjectStore) -> list[str]:
    return list(store.list("lease"))


class TestOne:
    def test_numbers_grow_and_old_ones_go(self, store: ObjectStore, said: list[str]) -> None:
        for expected in (1, 2, 3):
            with hold(store, said.append) as number:
                assert number == expected
                assert leases(store) == [f"lease/{expected:08d}.json"]
        lease = newest(store)
        assert lease
        assert lease.released
        assert said == []

    def test_the_second_is_told_who_has_it(self, store: ObjectStore, said: list[str]) -> None:
        with hold(store, said.append):
            for attempt in (lambda: refuse_if_held(store), lambda: hold(store, said.append).__enter__()):
                with pytest.raises(InputError) as caught:
                    attempt()
                message = str(caught.value)
                for part in (
                    store.url,
                    f"process {HERE.pid} on {HERE.host}, since 2",
                    "UTC",
                    "stop it",
                    "another name",
                ):
                    assert part in message
        refuse_if_held(store)

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, InputError])
    def test_it_is_let_go_after_an_error(self, store: ObjectStore, said: list[str], error: type[BaseException]) -> None:
        with pytest.raises(error), hold(store, said.append):
            raise error
        with hold(store, said.append) as number:
            assert number == 2

    def test_it_is_renewed(self, store: ObjectStore, said: list[str]) -> None:
        with hold(store, said.append, seconds=0.3):
            first = newest(store)
            assert first
            for _ in range(600):
                now = newest(store)
                assert now
                if now.renewed > first.renewed:
                    break
                time.sleep(0.05)
            assert now is not None
            assert now.renewed > first.renewed
            assert now == dataclasses.replace(first, renewed=now.renewed)

    def test_a_lease_that_makes_no_sense_is_named(self, store: ObjectStore, said: list[str]) -> None:
        store.write("lease/00000004.json", b'{"number": 4}')
        with pytest.raises(InputError, match=r"lease/00000004.json: is not a lease of Larmor; remove it"):
            hold(store, said.append).__enter__()

    def test_it_outlives_the_folder(self, store: ObjectStore, said: list[str]) -> None:
        store.write("config.yaml", b"")
        store.write("checkpoints/a/b", b"")
        with hold(store, said.append) as number:
            delete_all_but_lease(store, lambda: check_lease(store, number))
            assert list(store.list()) == leases(store) == ["lease/00000001.json"]


@contextmanager
def races(store: ObjectStore, owners: list[Owner], seconds: float = LONG) -> Iterator[list[int]]:
    """All `owners` try to take the folder at the same moment: the numbers of those who have it now."""
    barrier = threading.Barrier(len(owners))
    with ExitStack() as stack:

        def run(owner: Owner) -> int | None:
            barrier.wait()
            try:
                return stack.enter_context(hold(store, lambda text: None, seconds, owner))
            except InputError:
                return None

        with ThreadPoolExecutor(len(owners)) as pool:
            yield [number for number in pool.map(run, owners) if number is not None]


class TestRace:
    @pytest.mark.parametrize("before", ["none", "released", "dead", "long ago"])
    def test_of_sixteen_one_wins(self, store: ObjectStore, before: str) -> None:
        if before == "released":
            with hold(store, print):
                pass
        if before == "dead":
            put(store, 7, dataclasses.replace(HERE, pid=2**22 + 1))
        if before == "long ago":
            put(store, 7, ELSEWHERE, age=3 * 3600, seconds=60)
        with races(store, [HERE] * 16) as won:
            assert won == [{"none": 1, "released": 2}.get(before, 8)]
            assert leases(store) == [f"lease/{won[0]:08d}.json"]

    def test_of_eight_machines_one_wins(self, store: ObjectStore) -> None:
        """They cannot look each other's processes up: all wait for a silent one, then for a sign of the winner."""
        put(store, 7, ELSEWHERE, seconds=0.6)
        machines = [Owner(f"machine{number}", "boot", 1, 0.0) for number in range(8)]
        with races(store, machines, seconds=3.0) as won:
            assert won == [8]

    def test_numbers_that_were_cleaned_away_are_not_taken_twice(
        self, store: ObjectStore, said: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Between a look and the write others take two turns, and remove what they no longer need."""
        put(store, 1, dataclasses.replace(HERE, pid=2**22 + 1))
        create = store.create

        def late(path: str, data: bytes) -> bool:
            monkeypatch.setattr(store, "create", create)
            other = ObjectStore(store.url)
            for _ in range(2):
                with hold(other, said.append):
                    pass
            assert leases(store) == ["lease/00000003.json"]
            return create(path, data)

        monkeypatch.setattr(store, "create", late)
        with hold(store, said.append) as number:
            assert number == 4
            assert leases(store) == ["lease/00000004.json"]


class TestConditions:
    """A store that ignores `If-None-Match` would give one number to everybody."""

    def test_a_store_without_them_is_refused_before_anything_is_written(
        self, faulty_proxy: FaultyProxy, said: list[str]
    ) -> None:
        store = ObjectStore(f"s3://larmor/{unique_name('conditions')}")
        faulty_proxy.plan("unconditional", methods=("PUT",))
        for _ in range(2):
            with (
                pytest.raises(InputError, match=r"ignores If-None-Match.*larmor store start"),
                hold(store, said.append),
            ):
                pass
        assert store.list() == {}
        faulty_proxy.clear()
        with hold(store, said.append) as number:
            assert number == 1

    def test_one_that_has_them_keeps_nothing_of_the_question(self, store: ObjectStore, said: list[str]) -> None:
        with hold(store, said.append):
            assert list(store.list()) == leases(store) == ["lease/00000001.json"]

    def test_a_conflict_is_no_answer(self, faulty_proxy: FaultyProxy, said: list[str]) -> None:
        """AWS says 409 where two write at once, which means try again; nobody may have it yet."""
        store = ObjectStore(f"s3://larmor/{unique_name('conditions')}")
        faulty_proxy.plan("status", status=409, methods=("PUT",), limit=2)
        assert store.create("mine", b"mine")
        assert store.read("mine") == b"mine"
        faulty_proxy.plan("status", status=409, methods=("PUT",), limit=1)
        assert not store.create("mine", b"another's"), "it is there"
        assert store.read("mine") == b"mine"

    def test_of_several_in_conflict_one_wins(self, faulty_proxy: FaultyProxy) -> None:
        store = ObjectStore(f"s3://larmor/{unique_name('conditions')}")
        faulty_proxy.plan("status", status=409, methods=("PUT",), share=0.5)
        with ThreadPoolExecutor(6) as pool:
            won = list(pool.map(lambda number: store.create("mine", b"%d" % number), range(6)))
        assert won.count(True) == 1
        assert store.read("mine") == b"%d" % won.index(True)


class TestTakeOver:
    def test_from_a_process_that_was_killed_at_once(self, store: ObjectStore, said: list[str]) -> None:
        program = (
            "import sys, time\nfrom larmor.cluster.runs.lease import hold\n"
            "from larmor.storage.objects.object_store import ObjectStore\n"
            f"with hold(ObjectStore({store.url!r}), print, {LONG}): print('held', flush=True); time.sleep(600)"
        )
        with subprocess.Popen([sys.executable, "-c", program], env=environment(), stdout=subprocess.PIPE) as process:
            assert process.stdout
            assert process.stdout.readline() == b"held\n"
            with pytest.raises(InputError, match=f"process {process.pid} on"):
                refuse_if_held(store)
            os.kill(process.pid, signal.SIGKILL)
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet buried: a zombie
            with hold(store, said.append) as number:
                assert number == 2
        assert said == []

    def test_from_a_machine_that_says_nothing_more(self, store: ObjectStore, said: list[str]) -> None:
        put(store, 3, ELSEWHERE, seconds=0.6)
        with hold(store, said.append) as number:
            assert number == 4
        assert len(said) == 1
        assert "process 42 on far" in said[0]
        assert "waiting up to 1 s" in said[0]

    @pytest.mark.parametrize("ahead", [-1000.0, 0.0, 1000.0])
    def test_never_from_one_that_lives_whatever_its_clock_says(
        self, store: ObjectStore, said: list[str], ahead: float
    ) -> None:
        lease = put(store, 3, ELSEWHERE, age=-ahead, seconds=30.0)
        end = threading.Event()

        def keep() -> None:
            while not end.wait(0.5):
                store.write(lease.path, dataclasses.replace(lease, renewed=time.time() + ahead).to_bytes())

        thread = threading.Thread(target=keep)
        thread.start()
        try:
            with pytest.raises(InputError, match="process 42 on far"):
                hold(store, said.append).__enter__()
        finally:
            end.set()
            thread.join()
        assert leases(store) == [lease.path]

    def test_as_soon_as_it_is_let_go(self, store: ObjectStore, said: list[str]) -> None:
        lease = put(store, 3, ELSEWHERE, seconds=60.0)

        def let_go(text: str) -> None:
            said.append(text)
            store.write(lease.path, dataclasses.replace(lease, released=True).to_bytes())

        with hold(store, let_go) as number:
            assert number == 4
        assert len(said) == 1

    def test_a_process_number_that_is_in_use_again_proves_nothing(self) -> None:
        assert HERE.is_alive(HERE) is True
        assert dataclasses.replace(HERE, began=HERE.began - 1000).is_alive(HERE) is None
        assert dataclasses.replace(HERE, pid=2**22 + 1).is_alive(HERE) is False
        assert dataclasses.replace(HERE, pid=2**22 + 1, system="another container").is_alive(HERE) is None

    def test_an_owner_that_is_cut_off_from_the_store_lets_it_run_out(self, store: ObjectStore, said: list[str]) -> None:
        with pytest.raises(StoreAway), hold(store, said.append):
            raise StoreAway("gone")
        lease = newest(store)
        assert lease
        assert not lease.released


class TestFence:
    @pytest.fixture
    def run(self, store: ObjectStore) -> Iterator[RunFolder]:
        """Held, as it believes, by this process; but lease 9 is there."""
        with hold(store, print) as number:
            run = RunFolder(store.url, number)
            run.write_history(1, [{"step": 1}])
            run.publish(Checkpoint("checkpoints/step-00000001-aa", 1, {}, {}))
            put(store, 9, ELSEWHERE)
            yield run

    def test_nothing_that_counts_is_written_without_the_lease(self, run: RunFolder) -> None:
        before = run.store.list()
        for attempt in (
            run.check_lease,
            lambda: run.write_history(2, [{"step": 2}]),
            lambda: run.publish(Checkpoint("checkpoints/step-00000002-aa", 2, {}, {})),
            lambda: run.prune(1, 1, "val/psnr", True),
            lambda: run.unpublish(run.checkpoints()[0]),
            lambda: run.write_result(RunResult("finished", 1)),
            lambda: run.write_failure("no reason"),
        ):
            with pytest.raises(LeaseLost, match=r"taken it over \(process 42 on far, since .*this one stops"):
                attempt()
        assert run.store.list() == before

    def test_the_new_lease_is_neither_renewed_nor_let_go_by_the_old_owner(self, run: RunFolder) -> None:
        store = run.store
        with pytest.raises(LeaseLost):
            check_lease(store, 8)
        check_lease(store, 9)
        theirs = newest(store)
        assert theirs
        assert theirs.number == 9
        assert not theirs.released

    def test_a_folder_without_a_lease_is_free(self, tmp_path: Path) -> None:
        run = RunFolder(str(tmp_path / "run"))
        run.check_lease()
        run.write_history(1, [{"step": 1}])


class TestRun:
    @pytest.fixture
    def experiment(self, tmp_path: Path) -> Experiment:
        write_dataset(ObjectStore(tmp_path / "data"), {"train": random_kspace(2)})
        return Experiment.model_validate({"data": {"url": str(tmp_path / "data")}})

    def test_what_a_block_claims_is_its_own(self, store: ObjectStore, experiment: Experiment) -> None:
        run, second = RunFolder(store.url), RunFolder(store.url)
        with claimed(experiment, run, False, print):
            assert run.lease == 1
            run.write_history(1, [{"step": 1}])
            with pytest.raises(InputError, match=f"process {HERE.pid}"), claimed(experiment, second, True, print):
                pass
            assert run.history(), "the other one has deleted nothing"
        with claimed(experiment, second, True, print):
            assert second.lease == 2
            assert second.history() == []

    def test_another_experiment_is_refused_and_the_lease_let_go(
        self, store: ObjectStore, experiment: Experiment
    ) -> None:
        run, other = RunFolder(store.url), experiment.model_copy(update={"seed": 1})
        with claimed(experiment, run, False, print):
            pass
        with pytest.raises(InputError, match="differs in seed"), claimed(other, run, False, print):
            pass
        refuse_if_held(store)

    def test_the_command_is_refused_at_once(self, tiny_heads: str, store_environment: dict[str, str]) -> None:
        """Before it starts a cluster, and also if it would overwrite."""
        name = unique_name("held")
        with hold(ObjectStore(f"s3://larmor/runs/{name}"), print):
            arguments = command("train", "laptop", f"name={name}", f"data.url={tiny_heads}", "data.crop=[64,64]")
            done = subprocess.run([*arguments, "--overwrite"], env=environment(), capture_output=True, text=True)
        assert done.returncode == 1
        assert f"process {HERE.pid} on {HERE.host}" in done.stderr
        assert "Traceback" not in done.stderr
