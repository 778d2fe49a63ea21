"""A long run's history: few objects, each row once, whatever was replayed."""

from __future__ import annotations

import json
import math
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from larmor.cluster.runs.history import HistoryWriter, read_history
from larmor.cluster.runs.history_table import read_columns
from larmor.cluster.runs.run_folder import RunFolder
from larmor.storage.objects.object_store import ObjectStore
from tests.helpers import property_test


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


def test_what_is_new_in_a_week_costs_what_is_new(tmp_path: Path) -> None:
    """A million steps, reported every 10: 500 objects, of which one is listed and read."""
    store = ObjectStore(tmp_path)
    for last in range(2000, 1_000_001, 2000):
        store.write(f"history/{last:08d}.json", json.dumps(rows(last - 9, last)).encode())
    listed: list[str] = []
    bytes_read: list[int] = []
    read, find = store.read, store.list

    def noted_read(path: str) -> bytes:
        content = read(path)
        bytes_read.append(len(content))
        return content

    def noted_list(*where: Any) -> dict[str, int]:
        found = find(*where)
        listed.extend(found)
        return found

    store.read, store.list = noted_read, noted_list  # type: ignore
    assert read_history(store, after=999_995) == rows(999_996, 1_000_000)
    assert listed == ["history/01000000.json"]
    assert len(bytes_read) == 1
    assert len(read_columns(store)["step"]) == 5000
    assert len(bytes_read) == 501


@property_test
@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 12)), max_size=8), st.integers(0, 70), st.booleans())
def test_columns_have_what_rows_have(reports: list[tuple[int, int]], after: int, earlier_version: bool) -> None:
    """Whatever was replayed, in objects of either version."""
    store = ObjectStore(f"memory://{uuid.uuid4().hex}")
    writer = HistoryWriter(store, 20)
    for first, length in reports:
        part = [{**row, **({"val/psnr": 1.0} if row["step"] % 5 == 0 else {})} for row in rows(first, first + length)]
        if earlier_version:
            store.write(f"history/{first + length:08d}.json", json.dumps(part).encode())
        else:
            writer.add(part)
    expected, found = read_history(store, after), read_columns(store, after)
    assert [row["step"] for row in expected] == sorted({row["step"] for row in expected})
    assert found["step"].tolist() == [row["step"] for row in expected]
    for name in {name for row in expected for name in row}:
        values = [row.get(name, math.nan) for row in expected]
        assert np.array_equal(found[name], values, equal_nan=True)


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
