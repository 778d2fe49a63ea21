"""Reports as JSON lines and as TensorBoard's events, over restarts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from larmor.cluster.runs.attempts import Attempt
from larmor.cluster.runs.reports import Reports, last_report, new_reports
from larmor.storage.objects.object_store import ObjectStore


def metrics(step: int, **more: float) -> dict[str, float]:
    return {"loss": 1.0 / step, "slices_per_second": 8.0, "data_share": 0.25, "training_seconds": 2.0 * step, **more}


def attempt(store: ObjectStore, scratch: Path, began: float, step: int = 0, lines: int = 2000) -> Reports:
    return Reports(store, Attempt.begin(store, 1, step, began), scratch, lines)


def lines(store: ObjectStore, path: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in store.read(path).splitlines()]


def events(content: bytes) -> Iterator[Event]:
    """The events of a file: length (8 bytes), its checksum (4), the event, its checksum (4), and so on."""
    place = 0
    while place < len(content):
        length = int.from_bytes(content[place : place + 8], "little")
        yield Event.FromString(content[place + 12 : place + 12 + length])
        place += 16 + length


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    return ObjectStore(str(tmp_path / "run") if request.param == "local" else f"memory://{tmp_path.name}/run")


def test_lines_are_kept_over_a_restart_and_say_whose_they_are(store: ObjectStore, tmp_path: Path) -> None:
    first = attempt(store, tmp_path, began=0.0)
    for step in (10, 20, 30):
        first.add(step, metrics(step))
    first.close()
    second = attempt(store, tmp_path, began=500.0, step=20)
    second.add(30, metrics(30, **{"val/psnr": 30.0}))
    second.wait()
    found = lines(store)
    assert [(line["attempt"], line["step"]) for line in found] == [(1, 10), (1, 20), (1, 30), (2, 30)]
    newest = found[-1]
    assert newest["val/psnr"] == 30.0
    assert newest["goodput"] == pytest.approx(60.0 / newest["time"]), "since the first attempt, which began at 0"
    assert last_report(store) == newest
    second.close()


def test_before_the_first_report_there_is_none(store: ObjectStore) -> None:
    assert last_report(store) is None
    assert new_reports(store)() == []


def test_older_lines_move_to_files_of_their_own(store: ObjectStore, tmp_path: Path) -> None:
    reports = attempt(store, tmp_path, 0.0, lines=3)
    for step in range(1, 9):
        reports.add(step, metrics(step))
    reports.close()
    whole = [*lines(store, "metrics/0001.jsonl"), *lines(store, "metrics/0002.jsonl"), *lines(store)]
    assert [line["step"] for line in whole] == list(range(1, 9))
    assert len(lines(store)) == 2


def test_a_follower_is_told_of_each_report_once(store: ObjectStore, tmp_path: Path) -> None:
    old = attempt(store, tmp_path, 0.0, lines=3)
    old.add(1, metrics(1))
    old.close()
    fetch = new_reports(store)
    assert fetch() == [], "of an earlier attempt"
    reports = attempt(store, tmp_path, 1.0, lines=3)
    seen = []
    for step in range(2, 9):
        reports.add(step, metrics(step, **{"val/psnr": 1.0}))
        reports.wait()
        seen += [record["step"] for record in fetch()]
    reports.close()
    assert seen == list(range(2, 9))
    assert fetch() == []


def test_event_files_hold_every_figure_and_drop_what_a_restart_repeats(store: ObjectStore, tmp_path: Path) -> None:
    for began, step in ((0.0, 0), (5.0, 20)):
        reports = attempt(store, tmp_path, began, step)
        reports.add(step + 10, metrics(step + 10, **{"val/psnr": 25.0 + step}))
        reports.close()
    first, second = (list(events(store.read(path))) for path in store.list("tensorboard"))
    assert [event.file_version for event in (first[0], second[0])] == ["brain.Event:2"] * 2
    assert [(event.session_log.status, event.step) for event in (first[1], second[1])] == [
        (SessionLog.START, 1),
        (SessionLog.START, 21),
    ]
    values = {event.summary.value[0].tag: (event.step, event.summary.value[0].simple_value) for event in second[2:]}
    assert values["validation/psnr"] == (30, 45.0)
    assert values["losses/loss"] == (30, pytest.approx(1 / 30))
    assert values["time/data_share"] == (30, 0.25)
    assert values["run/attempt"] == (30, 2.0)
    assert {"speed/slices_per_second", "run/goodput"} <= values.keys()
