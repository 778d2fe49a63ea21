"""Attempts are numbered and kept; goodput is what counts over all the time since the first."""

from __future__ import annotations

from pathlib import Path

import pytest

from larmor.cluster.runs.attempts import Attempt, first_and_last, goodput
from larmor.storage.objects.object_store import ObjectStore


def test_attempts_are_numbered_in_order(tmp_path: Path) -> None:
    store = ObjectStore(str(tmp_path / "run"))
    assert first_and_last(store) is None
    first = Attempt.begin(store, world_size=2, step=0, began=1000.0)
    assert first_and_last(store) == (first, first)
    Attempt.begin(store, world_size=2, step=40, began=2000.0)
    third = Attempt.begin(store, world_size=1, step=60, began=3000.0)
    assert first_and_last(store) == (first, third)
    assert (third.number, third.world_size, third.step) == (3, 1, 60)


def test_a_number_that_is_taken_meanwhile_is_passed_over(tmp_path: Path) -> None:
    store = ObjectStore(str(tmp_path / "run"))
    store.write("attempts/0002.json", b"{}")  # another process, whose number 1 is gone
    assert Attempt.begin(store, 1, 0, 0.0).number == 3


def test_goodput_counts_restarts_as_lost_time() -> None:
    # 100 steps of 2 s; the last 20 of them were trained twice, and 60 s nothing ran
    began, now = 1000.0, 1000.0 + 100 * 2 + 20 * 2 + 60
    assert goodput({"training_seconds": 200.0}, began, now) == pytest.approx(200 / 300)
