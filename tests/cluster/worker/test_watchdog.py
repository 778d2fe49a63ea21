"""Who keeps the others waiting is named, and nobody else is."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from larmor.cluster.runs.run_folder import RunFolder
from larmor.cluster.worker.heartbeat import Heartbeat, Place, explain_hang, read_heartbeats, write_heartbeat
from larmor.cluster.worker.ranks import Ranks
from larmor.cluster.worker.stopping import StopRequest, order_stop
from larmor.cluster.worker.watchdog import Watchdog
from larmor.cluster.worker.worker import RunWorker
from larmor.recon.training.step_clock import PHASES
from larmor.recon.training.train import train
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore
from tests.cluster.launch.test_systems import kspace_url, tiny  # noqa: F401


def beat(rank: int, step: int = 7, phase: str = "critic", turn: int = 1, moves: int = 50, count: int = 3) -> Heartbeat:
    return Heartbeat(rank, step, phase, turn, 30.0, moves, count, f"host{rank}", 100 + rank)


def later(*beats: Heartbeat) -> dict[int, Heartbeat]:
    """The same ranks one heartbeat later, without a move."""
    return {item.rank: dataclasses.replace(item, count=item.count + 1) for item in beats}


def by_rank(*beats: Heartbeat) -> dict[int, Heartbeat]:
    return {item.rank: item for item in beats}


def test_a_rank_without_a_heartbeat_is_named() -> None:
    before = by_rank(beat(0), beat(1), beat(2))
    now = {**later(beat(0), beat(2)), 1: beat(1)}
    problem = explain_hang(before, now, me=0, world_size=3)
    assert problem is not None
    assert "rank 1 (process 101 on host1): no sign of life" in problem
    assert "rank 2" not in problem


def test_a_rank_that_never_came_is_named() -> None:
    problem = explain_hang(by_rank(beat(0)), later(beat(0)), me=0, world_size=2)
    assert problem is not None
    assert problem.startswith("rank 1: no sign of life")


@pytest.mark.parametrize(("step", "phase"), [(7, "data"), (6, "checkpoint")])
def test_a_rank_that_is_behind_is_named(step: int, phase: str) -> None:
    beats = beat(0), beat(1, step, phase, turn=0), beat(2)
    problem = explain_hang(by_rank(*beats), later(*beats), me=2, world_size=3)
    assert problem is not None
    assert f"rank 1 (process 101 on host1), in {phase} after step {step}: the others wait for it in critic" in problem
    assert "rank 0" not in problem


class Recorder(RunWorker):
    """Writes down every phase that the training enters."""

    def progress(self, step: int, phase: str) -> None:
        super().progress(step, phase)
        if not self.entered or self.entered[-1] != (step, phase):
            self.entered.append((step, phase))

    entered: list[tuple[int, str]]


def test_of_two_ranks_in_a_training_the_one_that_came_less_far_is_named(kspace_url: str, tmp_path: Path) -> None:  # noqa: F811
    """Wherever in the loop the two are: with several critic steps, a validation, a report and a checkpoint."""
    torch.set_num_threads(1)
    every = [f"training.{name}=2" for name in ("num_steps", "log_every", "validate_every", "checkpoint_every")]
    experiment = tiny(kspace_url, "critic.steps=2", *every)
    with Recorder(Ranks(), RunFolder(str(tmp_path)), experiment.training, torch.device("cpu")) as worker:
        worker.entered = []
        assert train(experiment, worker)
    entered = worker.entered
    assert {phase for _, phase in entered} == set(PHASES)
    for behind in range(len(entered)):
        for ahead in range(behind + 1, len(entered)):
            beats = [arrived(entered[: count + 1], rank) for rank, count in enumerate((ahead, behind))]
            problem = explain_hang(by_rank(*beats), later(*beats), me=0, world_size=2)
            assert problem is not None
            step, phase = entered[behind]
            assert f"rank 1 (process 101 on host1), in {phase} after step {step}: the others" in problem


def arrived(entered: list[tuple[int, str]], rank: int) -> Heartbeat:
    """The heartbeat of a rank that entered these phases."""
    place = Place()
    for step, phase in entered:
        place.at(step, phase)
    return dataclasses.replace(place.heartbeat(rank, count=3), host=f"host{rank}", pid=100 + rank)


def test_ranks_at_the_same_place_point_to_the_network() -> None:
    beats = beat(0), beat(1)
    problem = explain_hang(by_rank(*beats), later(*beats), me=0, world_size=2)
    assert problem is not None
    assert "all 2 ranks wait for each other in critic after step 7" in problem


def test_nobody_hangs_while_one_moves() -> None:
    beats = beat(0), beat(1, phase="data", turn=0)
    now = later(beat(0), beat(1, phase="data", turn=0, moves=51))
    assert explain_hang(by_rank(*beats), now, me=0, world_size=2) is None


def test_a_process_that_was_started_again_counts_as_alive() -> None:
    before = by_rank(beat(0), beat(1))
    now = {**later(beat(0)), 1: dataclasses.replace(beat(1), pid=999)}
    problem = explain_hang(before, now, me=0, world_size=2)
    assert problem is not None
    assert "no sign of life" not in problem


def test_progress_is_what_a_heartbeat_says(tmp_path: Path) -> None:
    place = Place()
    place.at(4, "data")
    place.at(4, "critic")
    store = ObjectStore(str(tmp_path))
    write_heartbeat(store, place.heartbeat(rank=3, count=9))
    found = read_heartbeats(store, world_size=5)
    assert found.keys() == {3}
    assert (found[3].step, found[3].phase, found[3].moves, found[3].count) == (4, "critic", 2, 9)
    assert place.is_first_step
    for step in range(5, 8):
        place.at(step, "data")
        place.at(step, "critic")
        place.at(step, "generator")
        place.at(step, "validation")
    assert not place.is_first_step


def at_work(place: Place, end: threading.Event) -> Callable[[], None]:
    def work() -> None:
        step = 0
        while not end.wait(0.02):
            place.at(step := step + 1, "critic")

    return work


def watched(store: ObjectStore, rank: int, world_size: int, place: Place, found: list[str]) -> Watchdog:
    return Watchdog(store, rank, world_size, place, StopRequest(60), hang_seconds=1.5, give_up=found.append)


def warmed_up() -> Place:
    place = Place()
    for step in range(20):
        place.at(step, "critic")
    return place


def wait_until(true: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_two_ranks_that_wait_for_a_third_name_it(tmp_path: Path) -> None:
    store, found = ObjectStore(str(tmp_path)), [[], [], []]  # type: ignore[var-annotated]
    places = [warmed_up() for _ in range(3)]
    for rank in (0, 2):
        places[rank].at(20, "generator")
    dogs = [watched(store, rank, 3, places[rank], found[rank]) for rank in range(3)]
    with dogs[0], dogs[1], dogs[2]:
        wait_until(lambda: found[0] and found[2])
    for rank in (0, 2):
        assert "the training hangs after step 20: rank 1 (process" in found[rank][0]
        assert "in critic after step 19: the others wait for it in generator after step 20" in found[rank][0]
    assert any("hang-00000020-rank-0000" in path for path in store.list("warnings"))


def test_a_rank_that_waits_for_one_that_works_is_patient(tmp_path: Path) -> None:
    store, found, end = ObjectStore(str(tmp_path)), [], threading.Event()  # type: ignore[var-annotated]
    places = [warmed_up(), warmed_up()]
    worker = threading.Thread(target=at_work(places[1], end))
    worker.start()
    with watched(store, 0, 2, places[0], found), watched(store, 1, 2, places[1], found):
        time.sleep(4)
        assert found == []
        end.set()
        worker.join()
        wait_until(lambda: found)


def test_nobody_is_accused_while_the_store_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, found = ObjectStore(str(tmp_path)), []  # type: ignore[var-annotated]

    def away(*arguments: object) -> None:
        raise InputError("the store is away")

    monkeypatch.setattr(store, "write", away)
    with watched(store, 0, 1, warmed_up(), found):
        time.sleep(3)
    assert found == []


def test_an_order_reaches_the_training(tmp_path: Path) -> None:
    store, request = ObjectStore(str(tmp_path)), StopRequest(60)
    with Watchdog(store, 0, 1, warmed_up(), request, hang_seconds=100):
        order_stop(store, "an order")
        wait_until(lambda: request.reason == "an order")
