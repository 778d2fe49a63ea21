"""Checkpoints that are uploaded while the training goes on: whole or not there, kept as told, used only undamaged."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from larmor.cluster.runs.checkpoint import FileEntry
from larmor.cluster.runs.lease import LeaseLost, hold
from larmor.cluster.runs.run_folder import RunFolder
from larmor.cluster.worker import checkpoints as checkpoints_module
from larmor.cluster.worker.checkpoints import Checkpoints
from larmor.cluster.worker.ranks import Ranks
from larmor.cluster.worker.scratch import Scratch
from larmor.cluster.worker.upload import Retention
from larmor.cluster.worker.worker import RunWorker
from larmor.recon.recipe.recipe import TrainingConfig
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.store_errors import StoreAway
from tests.faulty_proxy import FaultyProxy
from tests.helpers import add_checkpoint, contents_of, flip_byte
from tests.workbench import environment, unique_name

PSNR = "val/psnr"
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders go; empty again at the end of every test."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


@pytest.fixture(params=["local", "s3"])
def run(request: pytest.FixtureRequest, tmp_path: Path, store_environment: dict[str, str]) -> RunFolder:
    return RunFolder(str(tmp_path / "run") if request.param == "local" else f"s3://larmor/{unique_name('checkpoints')}")


def worker_of(run: RunFolder, **training: int) -> RunWorker:
    return RunWorker(Ranks(), run, TrainingConfig(**training), CPU)


def writer(step: int) -> Callable[[Path], None]:
    """What the training writes at a step."""

    def write(folder: Path) -> None:
        (folder / "engine").mkdir()
        (folder / "generator.safetensors").write_bytes(b"weights of step %d" % step)
        (folder / "engine" / "state.pt").write_bytes(b"moments of step %d" % step)

    return write


def save(worker: RunWorker, *steps: int, psnr: float = 30.0) -> None:
    for step in steps:
        worker.save(step, {PSNR: psnr}, writer(step))


def restored(run: RunFolder) -> int | None:
    """The step of the checkpoint that a new worker gets, all its files being as they were written."""
    found: list[dict[str, bytes]] = []
    with worker_of(run) as worker:
        if not worker.restore(lambda folder: found.append(contents_of(folder))):
            return None
    step = int(found[0]["generator.safetensors"].split()[-1])
    assert found == [
        {"generator.safetensors": b"weights of step %d" % step, "engine/state.pt": b"moments of step %d" % step}
    ]
    return step


def steps(run: RunFolder) -> list[int]:
    return [checkpoint.step for checkpoint in run.checkpoints()]


def folders(run: RunFolder) -> set[str]:
    return {"/".join(path.split("/")[:2]) for path in run.store.list("checkpoints")}


class TestSave:
    def test_at_the_end_everything_is_published(self, run: RunFolder, scratch: Path) -> None:
        with worker_of(run, keep_checkpoints=9) as worker:
            save(worker, 10, 20, 30)
            assert steps(run)[:2] == [10, 20], "one at most is on its way"
        assert steps(run) == [10, 20, 30]
        assert restored(run) == 30
        assert list(scratch.iterdir()) == []
        assert worker.checkpoints.blocked_seconds > 0
        assert worker.checkpoints.upload_seconds > 0

    def test_also_if_the_training_ends_with_an_error(self, run: RunFolder, scratch: Path) -> None:
        def interrupted() -> None:
            with worker_of(run) as worker:
                save(worker, 10)
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert restored(run) == 10
        assert list(scratch.iterdir()) == []

    def test_what_could_not_be_written_leaves_nothing(self, run: RunFolder, scratch: Path) -> None:
        def write(folder: Path) -> None:
            writer(20)(folder)
            raise OSError("no space left")

        def train() -> None:
            with worker_of(run) as worker:
                save(worker, 10)
                worker.save(20, {}, write)

        with pytest.raises(OSError, match="no space"):
            train()
        assert steps(run) == [10]
        assert len(folders(run)) == 1
        assert list(scratch.iterdir()) == []

    def test_the_newest_and_the_best_ones_are_kept(self, run: RunFolder) -> None:
        figures = {10: 31.0, 20: 33.0, 30: 32.0, 40: 30.0, 50: 29.0, 60: 28.0}
        with worker_of(run, keep_checkpoints=1, keep_best=2) as worker:
            for step, psnr in figures.items():
                save(worker, step, psnr=psnr)
                worker.checkpoints.flush()
                seen = [figures[other] for other in figures if other <= step]
                best = sorted(seen, reverse=True)[:2]
                assert {figures[kept] for kept in steps(run)} == {*best, figures[step]}
                assert len(folders(run)) == len(steps(run))

    def test_without_the_lease_nothing_is_published(self, run: RunFolder, scratch: Path) -> None:
        def train() -> None:
            with worker_of(run) as worker:
                save(worker, 10)
                worker.checkpoints.flush()
                with hold(run.store, print):
                    pass
                save(worker, 20)

        with hold(run.store, print) as run.lease:
            pass
        with pytest.raises(LeaseLost):
            train()
        assert steps(run) == [10]
        assert list(scratch.iterdir()) == []


class TestByThemselves:
    """`Checkpoints` without a worker around them."""

    @pytest.fixture
    def run(self, tmp_path: Path) -> RunFolder:
        return RunFolder(str(tmp_path / "run"))

    @pytest.fixture
    def checkpoints(self, run: RunFolder, scratch: Path) -> Iterator[Checkpoints]:
        with contextlib.closing(Ranks()) as ranks:
            folder = Scratch()
            yield Checkpoints(run, ranks, folder, CPU, Retention(2, 1, PSNR, True))
            folder.remove()

    def test_what_is_saved_is_restored(self, run: RunFolder, checkpoints: Checkpoints) -> None:
        found: list[dict[str, bytes]] = []
        assert not checkpoints.restore(lambda folder: found.append(contents_of(folder)))
        checkpoints.save(10, {PSNR: 30.0}, writer(10))
        checkpoints.flush()
        checkpoints.flush()
        assert checkpoints.restore(lambda folder: found.append(contents_of(folder)))
        assert [files["generator.safetensors"] for files in found] == [b"weights of step 10"]

    def test_it_is_published_after_what_must_come_before(self, run: RunFolder, checkpoints: Checkpoints) -> None:
        known: list[list[int]] = []
        for step in (10, 20):
            checkpoints.save(step, {}, writer(step), lambda: known.append(steps(run)))
        checkpoints.close(None)
        assert known == [[], [10]]
        assert steps(run) == [10, 20]

    @pytest.mark.parametrize(("error", "left"), [(KeyboardInterrupt(), [10]), (LeaseLost("taken"), [])])
    def test_after_an_error_it_is_published_unless_the_store_or_the_run_is_lost(
        self, run: RunFolder, checkpoints: Checkpoints, error: BaseException, left: list[int]
    ) -> None:
        closing, read_parts = threading.Event(), run.read_parts

        def waits(*arguments: Any) -> Any:
            """The other ranks' files are there only after the error."""
            return read_parts(*arguments) if closing.is_set() else None

        run.read_parts = waits  # type: ignore[method-assign, assignment]
        checkpoints.save(10, {}, writer(10))
        threading.Timer(0.2, closing.set).start()
        checkpoints.close(error)
        closing.wait()
        assert checkpoints._upload is not None
        checkpoints._upload.wait()
        assert steps(run) == left


class TestSlowAndBrokenStores:
    @pytest.fixture
    def run(self, faulty_proxy: FaultyProxy) -> RunFolder:
        return RunFolder(f"s3://larmor/{unique_name('checkpoints')}")

    def test_the_training_goes_on_while_the_store_is_slow(self, run: RunFolder, faulty_proxy: FaultyProxy) -> None:
        faulty_proxy.plan("slow", methods=("PUT",), matches="checkpoints", seconds=1.0)
        with worker_of(run) as worker:
            worker.begin(0)
            save(worker, 10)
            worker.report(11, {"training_seconds": 1.0}, [{"step": 11}])
            assert steps(run) == [], "still on its way"
            save(worker, 20)  # waits for the first
            assert steps(run) == [10]
            worker.report(21, {"training_seconds": 2.0}, [{"step": 21}])
            assert steps(run) == [10]
        assert steps(run) == [10, 20]
        assert [row["step"] for row in run.history()] == [11, 21]

    def test_reports_do_not_wait_for_a_store_that_is_away(self, run: RunFolder) -> None:
        """It comes back only once the training has reported several times: who waited would wait for ever."""
        back, write = threading.Event(), run.store.write

        def away(path: str, *more: Any, **options: Any) -> None:
            if path.startswith(("history", "metrics", "tensorboard")):
                assert back.wait(20), "the training waits for its reports"
            write(path, *more, **options)

        run.store.write = away  # type: ignore[method-assign]
        with worker_of(run) as worker:
            worker.begin(0)
            for step in (1, 2, 3):
                worker.report(step, {"training_seconds": 1.0, PSNR: 30.0}, [{"step": step}])
            save(worker, 3)
            assert steps(run) == []
            back.set()
        assert steps(run) == [3]
        assert [row["step"] for row in run.history()] == [1, 2, 3]
        assert len(run.store.read("metrics.jsonl").splitlines()) == 3

    def test_a_checkpoint_is_published_once_its_reports_are_stored(self, run: RunFolder) -> None:
        publish, known = run.publish, []

        def noted(checkpoint: Any) -> None:
            known.append((checkpoint.step, [row["step"] for row in run.history()]))
            publish(checkpoint)

        run.publish = noted  # type: ignore[method-assign]
        slow, write = {"history": 0.5}, run.store.write

        def slowly(path: str, *more: Any, **options: Any) -> None:
            time.sleep(slow.get(path.split("/")[0], 0))
            write(path, *more, **options)

        run.store.write = slowly  # type: ignore[method-assign]
        with worker_of(run) as worker:
            worker.begin(0)
            for step in (1, 2):
                worker.report(step, {"training_seconds": 1.0}, [{"step": step}])
                save(worker, step)
        assert [step for step, _ in known] == [1, 2]
        assert all(step in rows for step, rows in known)

    def test_reports_that_cannot_be_stored_end_the_training(
        self, run: RunFolder, faulty_proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LARMOR_STORE_PATIENCE", "0.2")
        run = RunFolder(run.url)

        def train() -> None:
            with worker_of(run) as worker:
                worker.begin(0)
                faulty_proxy.plan("status", methods=("PUT",), matches="history")
                worker.report(1, {"training_seconds": 1.0}, [{"step": 1}])
                save(worker, 1)

        with pytest.raises(StoreAway, match=r"the checkpoint of step 1 could not be stored.*history"):
            train()
        faulty_proxy.clear()
        assert steps(run) == []

    @pytest.mark.parametrize("where", ["state.pt", "parts", "manifest.json"])
    @pytest.mark.parametrize("noticed", ["next save", "end"])
    def test_an_upload_that_fails_for_good_ends_the_training(
        self,
        run: RunFolder,
        faulty_proxy: FaultyProxy,
        scratch: Path,
        monkeypatch: pytest.MonkeyPatch,
        where: str,
        noticed: str,
    ) -> None:
        monkeypatch.setenv("LARMOR_STORE_PATIENCE", "0.2")
        run = RunFolder(run.url)

        def train() -> None:
            with worker_of(run) as worker:
                save(worker, 10)
                worker.checkpoints.flush()
                faulty_proxy.plan("status", methods=("PUT",), matches=where)
                save(worker, 20)
                if noticed == "next save":
                    save(worker, 30)

        with pytest.raises(StoreAway, match="the checkpoint of step 20 could not be stored"):
            train()
        faulty_proxy.clear()
        assert steps(run) == [10]
        assert restored(run) == 10
        assert list(scratch.iterdir()) == []

    def test_what_arrives_damaged_is_fetched_again(self, run: RunFolder, faulty_proxy: FaultyProxy) -> None:
        with worker_of(run) as worker:
            save(worker, 10)
        faulty_proxy.plan("flip", matches=r"(state\.pt|generator)", limit=2)
        assert restored(run) == 10
        assert faulty_proxy.counts["flip"] == 2
        assert run.warnings() == []


KILLED = """
import os, signal, sys, torch
from larmor.cluster.runs.run_folder import RunFolder
from tests.cluster.worker.test_checkpoints import save, worker_of

class Run(RunFolder):
    armed = False

def dies(*arguments):
    if Run.armed:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments)

run = Run(sys.argv[1])
original = getattr(run, sys.argv[2])
setattr(run, sys.argv[2], dies)
with worker_of(run) as worker:
    save(worker, 10)
    worker.checkpoints.flush()
    Run.armed = True
    save(worker, 90)
"""


@pytest.mark.parametrize(
    ("moment", "left"),
    [("upload_part", 10), ("write_part", 10), ("read_parts", 10), ("publish", 10), ("prune", 90)],
)
def test_a_process_that_is_killed_while_it_uploads(run: RunFolder, scratch: Path, moment: str, left: int) -> None:
    """What it leaves is never chosen, and goes with the next checkpoint, though its step was higher."""
    arguments = [sys.executable, "-c", KILLED, run.url, moment]
    done = subprocess.run(arguments, env=environment(), capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(list(scratch.iterdir())) == 1
    assert restored(run) == left
    assert list(scratch.iterdir()) == [], "its temporary folder went too"
    with worker_of(run) as worker:
        save(worker, 20, psnr=31.0)
    assert steps(run) == sorted({10, 20, left} if left == 10 else {20, left})
    assert folders(run) == {item.folder for item in run.checkpoints()}


class TestRestore:
    @pytest.fixture
    def run(self, tmp_path: Path) -> RunFolder:
        run = RunFolder(str(tmp_path / "run"))
        with worker_of(run, keep_checkpoints=9) as worker:
            save(worker, 10, 20, 30)
        return run

    def damage(self, run: RunFolder, step: int, kind: str) -> str:
        """Damage the checkpoint of a step; its folder."""
        (found,) = [item for item in run.checkpoints() if item.step == step]
        state = f"{found.folder}/engine/state.pt"
        if kind == "changed":
            flip_byte(run.store, state, 3)
        elif kind == "short":
            run.store.write(state, run.store.read(state)[:-1])
        elif kind == "gone":
            run.store.delete(state)
        else:
            run.store.write(f"{found.folder}/manifest.json", b'{"format"')
        return found.folder

    @pytest.mark.parametrize("second", ["none", "changed", "gone"])
    @pytest.mark.parametrize("kind", ["changed", "short", "gone", "manifest"])
    def test_the_one_before_is_used_and_the_reason_kept(self, run: RunFolder, kind: str, second: str) -> None:
        damaged = {30: self.damage(run, 30, kind)}
        if second != "none":
            damaged[20] = self.damage(run, 20, second)
        used = 20 if second == "none" else 10
        before = {path for path in run.store.list("checkpoints") if not path.startswith(tuple(damaged.values()))}
        assert restored(run) == used
        warnings = run.warnings()
        assert len(warnings) == len(damaged)
        for folder, text in zip(sorted(damaged.values()), sorted(warnings), strict=True):
            assert text.startswith(f"{folder} was skipped: ")
            assert ("manifest.json is not JSON" if kind == "manifest" and folder == damaged[30] else "state.pt") in text
            assert text.endswith(f"the training resumed from step {used}")
        assert restored(run) == used
        assert before <= set(run.store.list("checkpoints")), "the good ones are untouched"
        with worker_of(run, keep_checkpoints=9) as worker:
            save(worker, 30)
        assert folders(run) == {item.folder for item in run.checkpoints()}

    @pytest.mark.parametrize("kind", ["changed", "short", "gone"])
    def test_a_model_stays_if_only_the_state_beside_it_is_damaged(self, run: RunFolder, kind: str) -> None:
        with worker_of(run, keep_checkpoints=9) as worker:
            save(worker, 40, psnr=35.0)
        folder = self.damage(run, 40, kind)
        for _ in range(2):
            assert restored(run) == 30
        with worker_of(run, keep_checkpoints=1) as worker:
            save(worker, 50, 60)
        best = run.best(PSNR, True)
        assert (best.folder, best.metrics) == (folder, {PSNR: 35.0})
        assert "engine/state.pt" in best.problem
        assert run.store.read(f"{folder}/generator.safetensors") == b"weights of step 40"
        assert folders(run) == {folder, run.latest().folder}  # type: ignore[union-attr]

    def test_damaged_weights_are_no_model(self, run: RunFolder) -> None:
        with worker_of(run, keep_checkpoints=9) as worker:
            save(worker, 40, psnr=35.0)
        flip_byte(run.store, f"{run.best(PSNR, True).folder}/generator.safetensors", 3)
        assert restored(run) == 30
        assert run.best(PSNR, True).step == 10

    def test_if_none_is_whole_it_is_an_error_and_nothing_is_removed(self, run: RunFolder) -> None:
        damaged = [self.damage(run, step, kind) for step, kind in ((10, "changed"), (20, "gone"), (30, "manifest"))]
        before = contents_of(Path(run.url))
        for _ in range(2):
            with pytest.raises(InputError, match="none of its 3 checkpoints can be used") as caught:
                restored(run)
            for folder in damaged:
                assert folder in str(caught.value)
            assert "--overwrite" in str(caught.value)
        assert contents_of(Path(run.url)) == before

    def test_half_uploaded_ones_are_not_damaged_ones(self, run: RunFolder) -> None:
        for item in run.checkpoints():
            run.unpublish(item)
        assert restored(run) is None

    def test_an_error_of_the_reader_is_no_damage(self, run: RunFolder) -> None:
        def read(folder: Path) -> None:
            raise InputError("written by 4 workers")

        with pytest.raises(InputError, match="4 workers"), worker_of(run) as worker:
            worker.restore(read)
        assert run.warnings() == []
        assert steps(run) == [10, 20, 30]

    def test_a_newer_format_is_refused(self, run: RunFolder) -> None:
        newest = run.checkpoints()[-1]
        run.store.write(f"{newest.folder}/manifest.json", b'{"format": 2}')
        with pytest.raises(InputError, match="update Larmor"):
            restored(run)


class TestScratch:
    def test_of_others_only_those_of_dead_processes_are_removed(self, scratch: Path) -> None:
        program = (
            "import sys; from larmor.cluster.worker.scratch import Scratch\n"
            "mine = Scratch(); print(mine.path, flush=True)\n"
            "sys.stdin.readline()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", program],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout
            theirs = Path(process.stdout.readline().strip())
            ours = Scratch()
            assert set(scratch.iterdir()) == {theirs, ours.path}
            process.kill()
        Scratch().remove()
        assert set(scratch.iterdir()) == {ours.path}
        ours.remove()
        ours.remove()
        assert set(scratch.iterdir()) == set()

    def test_a_planted_link_is_not_followed(self, scratch: Path, tmp_path: Path) -> None:
        """Whoever may write to the temporary folder guesses the names in it."""
        mine = tmp_path / "mine"
        mine.mkdir()
        (mine / "precious").write_text("precious")
        (mine / ".lock").write_text("precious too")
        (scratch / "larmor-checkpoint-file").mkdir()
        (scratch / "larmor-checkpoint-file" / ".lock").symlink_to(mine / "precious")
        (scratch / "larmor-checkpoint-folder").symlink_to(mine)
        (scratch / "larmor-checkpoint-loop").mkdir()
        (scratch / "larmor-checkpoint-loop" / ".lock").symlink_to(".lock")
        os.mkfifo(scratch / "larmor-checkpoint-pipe")
        (scratch / "larmor-checkpoint-waits").mkdir()
        os.mkfifo(scratch / "larmor-checkpoint-waits" / ".lock")
        Scratch().remove()
        assert contents_of(mine) == {"precious": b"precious", ".lock": b"precious too"}

    def test_a_folder_of_another_account_is_left_alone(self, scratch: Path) -> None:
        if os.getuid() != 0:
            pytest.skip("only root can give files away")
        theirs = scratch / "larmor-checkpoint-theirs"
        theirs.mkdir()
        (theirs / ".lock").write_text("")
        for path in (theirs, theirs / ".lock"):
            os.chown(path, 12345, 12345)
        Scratch().remove()
        assert (theirs / ".lock").is_file()


class FailingRun(RunFolder):
    """On one rank, what `fails` names raises `error`."""

    fails, error = "", InputError("only here")

    def _maybe(self, name: str) -> None:
        if self.fails == name:
            raise self.error

    def upload_part(self, folder: Path, checkpoint: str) -> dict[str, FileEntry]:
        self._maybe("upload")
        return super().upload_part(folder, checkpoint)

    def download(self, *arguments: Any) -> None:
        self._maybe("download")
        super().download(*arguments)

    def write_history(self, *arguments: Any) -> None:
        self._maybe("history")
        super().write_history(*arguments)


def two_ranks(rank: int, url: str, rendezvous: str, results: str) -> None:
    """One of two processes; what goes wrong on one of them goes wrong on both."""
    from larmor.cluster.runs.checkpoint import DamagedCheckpoint

    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    ranks, run = Ranks(), FailingRun(url)

    def attempt(act: Callable[[], Any]) -> str:
        try:
            return f"{act()}"
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    def write(folder: Path) -> None:
        (folder / f"rank-{rank}").write_bytes(b"%d" % rank)

    def only_on(who: int, name: str, error: Exception) -> None:
        run.fails, run.error = (name if rank == who else ""), error  # type: ignore[assignment]

    said: list[str] = []
    with RunWorker(ranks, run, TrainingConfig(keep_checkpoints=9), CPU) as worker:
        for step in (10, 20):
            worker.save(step, {}, write)
        worker.checkpoints.flush()
        said.append(f"{steps(run)} {[sorted(item.files) for item in run.checkpoints()]}")
        for who, error in ((1, InputError("only here")), (0, TypeError("a mistake"))):
            only_on(who, "upload", error)
            worker.save(30, {}, write)
            said.append(attempt(worker.checkpoints.flush))
        only_on(0, "history", LeaseLost("taken"))
        worker.begin(20)
        worker.report(1, {"training_seconds": 1.0}, [{"step": 1}])
        worker.save(30, {}, write)
        said.append(attempt(worker.checkpoints.flush))
        only_on(1, "download", DamagedCheckpoint("broken"))
        said.append(attempt(lambda: worker.restore(lambda folder: None)).replace(url, ""))
        run.fails = ""
        found: list[dict[str, bytes]] = []
        said.append(f"{worker.restore(lambda folder: found.append(contents_of(folder)))} {sorted(found[0].items())}")
    Path(f"{results}-{rank}").write_text("\n".join(said))
    checkpoints_module._PATIENCE_AT_ERROR = 0.5
    only_on(1, "upload", InputError("only here"))  # its files will never be there
    with contextlib.suppress(KeyboardInterrupt), RunWorker(ranks, run, TrainingConfig(), CPU) as worker:
        worker.save(40, {}, write)
        raise KeyboardInterrupt
    assert steps(run) == [10, 20]
    ranks.close()
    torch.distributed.destroy_process_group()


def three_ranks(rank: int, url: str, rendezvous: str, results: str) -> None:
    """One of three processes that start from the same checkpoint; what each got from the store, and from all."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=3)
    run, fetched = RunFolder(url), []
    download = run.store.download
    run.store.download = lambda path, *more: (fetched.append(path), download(path, *more))[1]  # type: ignore
    found: list[dict[str, bytes]] = []
    with contextlib.closing(Ranks()) as ranks, RunWorker(ranks, run, TrainingConfig(), CPU) as worker:
        assert worker.restore(lambda folder: found.append(contents_of(folder)))
    Path(f"{results}-{rank}").write_text(json.dumps([fetched, {n: c.hex() for n, c in found[0].items()}]))
    torch.distributed.destroy_process_group()


def test_a_checkpoint_comes_from_the_store_once_however_many_ranks_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(str(tmp_path / "run"))
    files = {f"engine/state-{number}": bytes([number]) * (1000 + number) for number in range(7)} | {"empty": b""}
    checkpoint = add_checkpoint(run, tmp_path / "source", 10, {}, files)
    arguments = tuple(str(tmp_path / name) for name in ("run", "rendezvous", "said"))
    torch.multiprocessing.spawn(three_ranks, arguments, nprocs=3)
    said = [json.loads((tmp_path / f"said-{rank}").read_text()) for rank in range(3)]
    fetched = [path for paths, _ in said for path in paths]
    assert sorted(fetched) == sorted(f"{checkpoint.folder}/{name}" for name in files)
    assert all(paths for paths, _ in said), "every rank takes a part"
    assert [found for _, found in said] == [{name: content.hex() for name, content in files.items()}] * 3


def test_an_error_of_one_rank_is_everybodys(tmp_path: Path) -> None:
    arguments = tuple(str(tmp_path / name) for name in ("run", "rendezvous", "said"))
    torch.multiprocessing.spawn(two_ranks, arguments, nprocs=2)
    said = [(tmp_path / f"said-{rank}").read_text().splitlines() for rank in range(2)]
    assert said[0] == said[1]
    whole, upload, mistake, history, damaged, good = said[0]
    assert whole == "[10, 20] [['rank-0', 'rank-1'], ['rank-0', 'rank-1']]"
    assert upload == "InputError: the checkpoint of step 30 could not be stored: only here"
    assert mistake == "RuntimeError: rank 0: TypeError: a mistake"
    assert history == "LeaseLost: taken"
    assert damaged.startswith("InputError: : none of its 2 checkpoints can be used (")
    assert damaged.count("broken") == 2
    assert good == "True [('rank-0', b'0'), ('rank-1', b'1')]"
