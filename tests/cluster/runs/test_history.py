"""A long run's history: few objects, each row once, whatever was replayed."""

from __future__ import annotations

from pathlib import Path

from larmor.cluster.runs.history import HistoryWriter, read_history
from larmor.cluster.runs.run_folder import RunFolder
from larmor.storage.objects.object_store import ObjectStore


def rows(first: int, last: int, loss: float = 1.0) -> list[dict[str, float]]:
    return [{"step": step, "loss": loss / step} for step in range(first, last + 1)]


def report(writer: HistoryWriter, first: int, last: int, every: int) -> None:
    for step in range(first, last + 1, every):
        writer.add(rows(step, min(step + every - 1, last)))


def test_reports_share_objects(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path))
    for last in range(20, 5001, 20):
        run.write_history(last, rows(last - 19, last))
    assert list(run.store.list("history")) == [f"history/{last:08d}.json" for last in (2000, 4000, 6000)]
    assert run.history() == rows(1, 5000)


def test_only_what_is_new_is_read(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path)
    report(HistoryWriter(store, 100), 1, 450, 7)
    asked: list[str] = []
    read = store.read
    store.read = lambda path: (asked.append(path), read(path))[1]  # type: ignore
    assert read_history(store, after=310) == rows(311, 450)
    assert sorted(asked) == ["history/00000400.json", "history/00000500.json"]


def test_a_restart_adds_to_what_is_there(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path)
    report(HistoryWriter(store, 100), 1, 230, 20)
    report(HistoryWriter(store, 100), 151, 290, 7)  # from the checkpoint of step 150, in another rhythm
    assert read_history(store) == rows(1, 290)


def test_the_objects_of_earlier_versions_are_read(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path)
    for last in (20, 40, 60):
        store.write(f"history/{last:08d}.json", str(rows(last - 19, last)).replace("'", '"').encode())
    HistoryWriter(store, 100).add(rows(51, 80))
    assert read_history(store) == rows(1, 80)
