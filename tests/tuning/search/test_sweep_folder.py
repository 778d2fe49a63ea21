"""What a sweep's folder says of trials that have begun, ended, or both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from larmor.cluster.experiments.experiment import Experiment
from larmor.storage.objects.errors import InputError
from larmor.tuning.search.objectives import Objectives
from larmor.tuning.search.slot import combined, is_start
from larmor.tuning.search.sweep import describe_trial
from larmor.tuning.search.sweep_folder import SweepFolder, best_trial, new_trials


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
    assert best_trial(trials, Objectives.of("psnr")) is trials[1]
    odd = [record(float("nan")), record(float("inf")), *trials, record(float("nan"))]
    assert best_trial(odd, Objectives.of("psnr")) is trials[1]
    with pytest.raises(InputError, match="none of 1 trials has finished"):
        best_trial([record(None, "diverged")], Objectives.of("psnr"))


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
    assert "→ val/psnr 20.0000 (1 s)" in describe_trial({**base, **record(20.0)}, Objectives.of("psnr"))
    assert "→ val/psnr 20.0000, stopped at step 12" in describe_trial(
        {**base, **record(20.0, "stopped")}, Objectives.of("psnr")
    )
    assert "→ diverged at step 12" in describe_trial({**base, **record(None, "diverged")}, Objectives.of("psnr"))


def test_of_two_metrics_the_front_and_the_nearest_to_both_are_written(folder: SweepFolder) -> None:
    figures = {"0001": (30.0, 0.9), "0002": (29.5, 0.4), "0003": (29.0, 0.5), "0004": (25.0, 0.3), "0005": (31.0, None)}
    for began, (name, (psnr, hfen)) in enumerate(figures.items()):
        metrics = {"val/psnr": psnr} | ({} if hfen is None else {"val/hfen": hfen})
        folder.write_trial(name, {**record(None, began=began), "metrics": metrics})
    folder.write_trial("0006", {**record(None, "diverged"), "metrics": {"val/psnr": 40.0, "val/hfen": 0.1}})
    result = folder.write_result(Objectives.of(["psnr", "hfen"]))
    assert result["metric"] == ["val/psnr", "val/hfen"]
    assert result["front"] == ["0001", "0002", "0004"]
    assert result["best"]["id"] == "0002"
    assert folder.result() == result
    assert "→ val/psnr 29.5000, val/hfen 0.4000 (1 s)" in describe_trial(
        result["best"], Objectives.of(["psnr", "hfen"])
    )


def test_the_experiments_own_values_are_the_start() -> None:
    base = Experiment()
    assert is_start(base, {"loss.a": 15.0, "critic.clip": 0.01})
    assert not is_start(base, {"loss.a": 15.0, "critic.clip": 0.02})


def test_a_follower_hears_of_each_end_once_and_reads_only_what_is_new(folder: SweepFolder) -> None:
    for number in range(1, 9):
        folder.begin_trial(f"000{number}", {"loss.a": float(number)})
        folder.write_trial(f"000{number}", record(20.0, "stopped", began=number))
        folder.trial_run(f"000{number}").store.write("checkpoints/step-00000001-aa/manifest.json", b"{}")
    fetch = new_trials(folder)
    assert [trial["id"] for trial in fetch()] == [f"000{number}" for number in range(1, 9)]
    asked: list[str] = []
    for name in ("read", "list", "folders", "exists"):
        ask = getattr(folder.store, name)

        def noted(path: str = "", *more: Any, ask: Any = ask) -> Any:
            asked.append(path)
            return ask(path, *more)

        setattr(folder.store, name, noted)
    assert fetch() == []
    assert asked == ["ends"]
    folder.begin_trial("0003", {"loss.a": 3.0})  # goes on
    assert fetch() == []
    folder.write_trial("0003", record(21.0))
    asked.clear()
    assert [trial["metrics"] for trial in fetch()] == [{"val/psnr": 21.0}]
    assert asked == ["ends", "trials/0003/trial.json"]
    assert fetch() == []


def test_what_lies_in_the_runs_of_trials_is_not_listed(folder: SweepFolder) -> None:
    folder.begin_trial("0001", {"loss.a": 1.0})
    folder.store.list = lambda prefix="": pytest.fail(f"all objects below '{prefix}' are listed")  # type: ignore
    assert (folder.trial_ids(), folder.next_number(), folder.trials()) == (["0001"], 2, [])
    assert list(folder.unfinished()) == ["0001"]
