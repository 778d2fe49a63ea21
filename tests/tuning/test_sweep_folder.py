"""What a sweep's folder says of trials that have begun, ended, or both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from storage.errors import InputError
from tuning.slot import combined
from tuning.sweep import describe_trial
from tuning.sweep_folder import SweepFolder, best_trial


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    return SweepFolder(str(tmp_path))


def record(psnr: float | None, state: str = "finished", began: float = 0.0) -> dict[str, Any]:
    metrics = {} if psnr is None else {"val/psnr": psnr}
    return {"parameters": {"loss.a": 1.0}, "metrics": metrics, "state": state, "began": began, "seconds": 1.0}


def test_a_trial_is_unfinished_from_its_beginning_to_its_end(folder: SweepFolder) -> None:
    assert folder.next_number() == 1
    began = folder.begin_trial("0001", {"loss.a": 0.1, "loss.kind": None})
    folder.begin_trial("0002", {"loss.a": 0.3})
    assert folder.begin_trial("0001", {"loss.a": 0.1, "loss.kind": None}) == began, "again, after a restart"
    assert folder.unfinished() == {"0001": {"loss.a": 0.1, "loss.kind": None}, "0002": {"loss.a": 0.3}}
    folder.write_trial("0002", record(20.0))
    assert list(folder.unfinished()) == ["0001"]
    assert folder.next_number() == 3


def test_a_stopped_trial_that_goes_on_is_unfinished_and_its_seconds_count(folder: SweepFolder) -> None:
    began, before = folder.begin_trial("0001", {"loss.a": 0.1})
    assert before == 0
    folder.write_trial("0001", {**record(20.0, "stopped"), "seconds": 7.0})
    assert folder.unfinished() == {}
    for _ in range(2):  # and again, after a restart
        assert folder.begin_trial("0001", {"loss.a": 0.1}) == (began, 7.0)
        assert list(folder.unfinished()) == ["0001"]
        assert folder.trials() == []
    folder.write_trial("0001", record(21.0))
    folder.begin_trial("0001", {"loss.a": 0.1})
    assert folder.trials()[0]["state"] == "finished", "an end that counts stays"


@pytest.mark.parametrize(("state", "again"), [("stopped", False), ("diverged", False), ("failed", True)])
def test_only_what_failed_is_tried_again(folder: SweepFolder, state: str, again: bool) -> None:
    folder.begin_trial("0001", {"loss.a": 0.1})
    folder.write_trial("0001", record(None, state))
    assert list(folder.unfinished()) == (["0001"] if again else [])


def test_a_stopped_trial_can_be_the_best_and_equal_ones_are_the_earliest() -> None:
    trials = [record(20.0), record(24.0, "stopped"), record(24.0), record(30.0, "failed"), record(None, "diverged")]
    assert best_trial(trials, "psnr") is trials[1]
    odd = [record(float("nan")), record(float("inf")), *trials, record(float("nan"))]
    assert best_trial(odd, "psnr") is trials[1]
    with pytest.raises(InputError, match="none of 1 trials has finished"):
        best_trial([record(None, "diverged")], "psnr")


def test_a_failure_is_recorded_unless_the_trial_was(folder: SweepFolder) -> None:
    failure = {"state": "failed", "reason": "its workers died", "parameters": {"loss.a": 2.0}}
    folder.write_failure("0001", failure)
    folder.write_trial("0002", record(20.0))
    folder.write_failure("0002", failure)
    assert [(trial["state"], trial.get("reason")) for trial in folder.trials()] == [
        ("finished", None),
        ("failed", "its workers died"),
    ]


def test_seeds_make_one_record() -> None:
    ends = [
        {"state": "finished", "metrics": {"val/psnr": 20.0}, "steps": 10, "num_images": 40, "last": {"step": 10}},
        {"state": "finished", "metrics": {"val/psnr": 22.0, "x": 1}, "steps": 10, "num_images": 40},
    ]
    found = combined(ends)
    assert (found["state"], found["metrics"], found["steps"]) == ("finished", {"val/psnr": 21.0}, 20)
    assert found["num_images"] == 80
    assert [end["metrics"]["val/psnr"] for end in found["seeds"]] == [20.0, 22.0]
    diverged = combined([ends[0], {"state": "diverged", "reason": "nan"}])
    assert (diverged["state"], diverged["reason"], diverged["metrics"]) == ("diverged", "nan", {})
    assert "seeds" not in combined(ends[:1])


def test_a_trial_is_described_however_it_ended() -> None:
    base = {"id": "0003", "steps": 12}
    assert "→ val/psnr 20.0000 (1 s)" in describe_trial({**base, **record(20.0)}, "psnr")
    assert "→ val/psnr 20.0000, stopped at step 12" in describe_trial({**base, **record(20.0, "stopped")}, "psnr")
    assert "→ diverged at step 12" in describe_trial({**base, **record(None, "diverged")}, "psnr")
