"""What a sweep's folder says of trials that have begun, ended, or both."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from larmor.cluster.experiments.experiment import Experiment
from larmor.storage.objects.errors import InputError
from larmor.tuning.search.objectives import Objectives
from larmor.tuning.search.records import BegunTrial, State, TrainingEnd, TrialRecord, to_json
from larmor.tuning.search.slot import combined, is_start
from larmor.tuning.search.sweep import describe_trial
from larmor.tuning.search.sweep_folder import SweepFolder, best_trial, new_trials
from tests.helpers import result_of


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    return SweepFolder(str(tmp_path))


def record(psnr: float | None, state: State = "finished", began: float = 0.0, id: str = "0001") -> TrialRecord:
    metrics = {} if psnr is None else {"val/psnr": psnr}
    return TrialRecord(id=id, state=state, parameters={"loss.a": 1.0}, metrics=metrics, began=began, seconds=1.0)


def test_a_trial_is_unfinished_from_its_beginning_to_its_end(folder: SweepFolder) -> None:
    assert folder.next_number() == 1
    began = folder.begin_trial("0001", {"loss.a": 0.1, "loss.kind": None})
    folder.begin_trial("0002", {"loss.a": 0.3})
    assert folder.begin_trial("0001", {"loss.a": 0.1, "loss.kind": None}) == began, "again, after a restart"
    assert folder.unfinished() == {"0001": {"loss.a": 0.1, "loss.kind": None}, "0002": {"loss.a": 0.3}}
    folder.write_trial(record(20.0, id="0002"))
    assert list(folder.unfinished()) == ["0001"]
    assert folder.next_number() == 3


def test_a_stopped_trial_that_goes_on_is_unfinished_and_its_seconds_count(folder: SweepFolder) -> None:
    begun = folder.begin_trial("0001", {"loss.a": 0.1})
    assert begun.seconds == 0
    folder.write_trial(replace(record(20.0, "stopped"), seconds=7.0))
    assert folder.unfinished() == {}
    for _ in range(2):  # and again, after a restart
        assert folder.begin_trial("0001", {"loss.a": 0.1}) == replace(begun, seconds=7.0)
        assert list(folder.unfinished()) == ["0001"]
        assert folder.trials() == []
    folder.write_trial(record(21.0))
    folder.begin_trial("0001", {"loss.a": 0.1})
    assert folder.trials()[0].state == "finished", "an end that counts stays"


@pytest.mark.parametrize(("state", "again"), [("stopped", False), ("diverged", False), ("failed", True)])
def test_only_what_failed_is_tried_again(folder: SweepFolder, state: State, again: bool) -> None:
    folder.begin_trial("0001", {"loss.a": 0.1})
    folder.write_trial(record(None, state))
    assert list(folder.unfinished()) == (["0001"] if again else [])


def test_a_stopped_trial_can_be_the_best_and_equal_ones_are_the_earliest() -> None:
    trials = [record(20.0), record(24.0, "stopped"), record(24.0), record(30.0, "failed"), record(None, "diverged")]
    assert best_trial(trials, Objectives.of("psnr")) is trials[1]
    odd = [record(float("nan")), record(float("inf")), *trials, record(float("nan"))]
    assert best_trial(odd, Objectives.of("psnr")) is trials[1]
    with pytest.raises(InputError, match="none of 1 trials has finished"):
        best_trial([record(None, "diverged")], Objectives.of("psnr"))


def test_a_failure_is_recorded_unless_the_trial_was(folder: SweepFolder) -> None:
    folder.write_failure("0001", {"loss.a": 2.0}, "its workers died")
    folder.write_trial(record(20.0, id="0002"))
    folder.write_failure("0002", {"loss.a": 2.0}, "its workers died")
    assert [(trial.state, trial.reason) for trial in folder.trials()] == [
        ("finished", ""),
        ("failed", "its workers died"),
    ]


def test_seeds_make_one_record() -> None:
    ends = [
        TrainingEnd(state="finished", metrics={"val/psnr": 20.0}, steps=10, num_images=40, last={"step": 10}),
        TrainingEnd(state="finished", metrics={"val/psnr": 22.0, "x": 1}, steps=10, num_images=40),
    ]
    begun = BegunTrial({"loss.a": 1.0}, 5.0, 3.0)
    found = combined("0001", begun, ends)
    assert (found.id, found.parameters, found.began, found.seconds) == ("0001", {"loss.a": 1.0}, 5.0, 3.0)
    assert (found.state, found.metrics, found.steps) == ("finished", {"val/psnr": 21.0}, 20)
    assert found.num_images == 80
    assert [end.metrics["val/psnr"] for end in found.seeds] == [20.0, 22.0]
    diverged = combined("0001", begun, [ends[0], TrainingEnd(state="diverged", reason="nan")])
    assert (diverged.state, diverged.reason, diverged.metrics) == ("diverged", "nan", {})
    assert combined("0001", begun, ends[:1]).seeds == ()


def test_a_trial_is_described_however_it_ended() -> None:
    def described(psnr: float | None, state: State = "finished") -> str:
        return describe_trial(replace(record(psnr, state), steps=12), Objectives.of("psnr"))

    assert "→ val/psnr 20.0000 (1 s)" in described(20.0)
    assert "→ val/psnr 20.0000, stopped at step 12" in described(20.0, "stopped")
    assert "→ diverged at step 12" in described(None, "diverged")


def test_of_two_metrics_the_front_and_the_nearest_to_both_are_written(folder: SweepFolder) -> None:
    figures = {"0001": (30.0, 0.9), "0002": (29.5, 0.4), "0003": (29.0, 0.5), "0004": (25.0, 0.3), "0005": (31.0, None)}
    for began, (name, (psnr, hfen)) in enumerate(figures.items()):
        metrics = {"val/psnr": psnr} | ({} if hfen is None else {"val/hfen": hfen})
        folder.write_trial(replace(record(None, began=began, id=name), metrics=metrics))
    folder.write_trial(replace(record(None, "diverged", id="0006"), metrics={"val/psnr": 40.0, "val/hfen": 0.1}))
    result = folder.write_result(Objectives.of(["psnr", "hfen"]))
    assert result.metric == ("val/psnr", "val/hfen")
    assert result.front == ("0001", "0002", "0004")
    assert result.best.id == "0002"
    assert folder.result() == result
    assert "→ val/psnr 29.5000, val/hfen 0.4000 (1 s)" in describe_trial(result.best, Objectives.of(["psnr", "hfen"]))


def test_the_experiments_own_values_are_the_start() -> None:
    base = Experiment()
    assert is_start(base, {"loss.a": 15.0, "critic.clip": 0.01})
    assert not is_start(base, {"loss.a": 15.0, "critic.clip": 0.02})


def test_a_follower_hears_of_each_end_once_and_reads_only_what_is_new(folder: SweepFolder) -> None:
    for number in range(1, 9):
        folder.begin_trial(f"000{number}", {"loss.a": float(number)})
        folder.write_trial(record(20.0, "stopped", began=number, id=f"000{number}"))
        folder.trial_run(f"000{number}").store.write("checkpoints/step-00000001-aa/manifest.json", b"{}")
    fetch = new_trials(folder)
    assert [trial.id for trial in fetch()] == [f"000{number}" for number in range(1, 9)]
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
    folder.write_trial(record(21.0, id="0003"))
    asked.clear()
    assert [trial.metrics for trial in fetch()] == [{"val/psnr": 21.0}]
    assert asked == ["ends", "trials/0003/trial.json"]
    assert fetch() == []


def test_of_a_thousand_trials_the_ends_of_the_last_ones_are_listed(folder: SweepFolder) -> None:
    """What a poll lists and reads does not grow with the sweep; nor does what a trial does at its end."""
    for number in range(1, 1001):
        folder.store.write(f"trials/{number:04d}/trial.json", to_json(record(20.0, began=number, id=f"{number:04d}")))
        folder.store.write(f"ends/{number:06d}-{number:04d}", b"")
    fetch = new_trials(folder)
    assert len(fetch()) == 1000
    listed: list[str] = []
    asked: list[str] = []
    find, read = folder.store.list, folder.store.read

    def noted_list(*where: Any) -> dict[str, int]:
        found = find(*where)
        listed.extend(found)
        return found

    folder.store.list = noted_list  # type: ignore
    folder.store.read = lambda path: (asked.append(path), read(path))[1]  # type: ignore
    assert fetch() == []
    assert len(listed) <= 256
    assert asked == []
    folder.store.write("ends/000997-late", b"")  # its number was taken before those of others
    folder.store.write("trials/late/trial.json", to_json(record(21.0, id="late")))
    assert [trial.id for trial in fetch()] == ["late"]
    assert asked == ["trials/late/trial.json"]
    folder.write_trial(record(22.0, id="new"))
    listed.clear()
    folder.write_trial(record(22.0, id="newer"))
    assert listed == []
    assert sorted(trial.id for trial in fetch()) == ["new", "newer"]
    assert fetch() == []
    folder.begin_trial("begun", {"loss.a": 0.1})
    asked.clear()
    assert list(folder.unfinished()) == ["begun"]
    assert [path for path in asked if path.endswith("begun.json")] == ["trials/begun/begun.json"]


def test_what_lies_in_the_runs_of_trials_is_not_listed(folder: SweepFolder) -> None:
    folder.begin_trial("0001", {"loss.a": 1.0})
    folder.store.list = lambda prefix="": pytest.fail(f"all objects below '{prefix}' are listed")  # type: ignore
    assert (folder.trial_ids(), folder.next_number(), folder.trials()) == (["0001"], 2, [])
    assert list(folder.unfinished()) == ["0001"]


def test_records_lie_in_the_store_as_they_always_did(folder: SweepFolder) -> None:
    """Key by key and in this order: sweeps of other versions read them."""
    seeds = [
        TrainingEnd(state="finished", metrics={"val/psnr": psnr}, last={"step": 6}, seed=seed, steps=6, num_images=24)
        for seed, psnr in enumerate([20.0, 22.0])
    ]
    begun = BegunTrial({"data.crop": (64, 64), "loss.kind": None}, 5.0)
    folder.write_trial(combined("0001", begun, seeds))
    folder.write_trial(combined("0002", begun, [TrainingEnd(state="diverged", reason="nan")]))
    written = folder.store.read("trials/0001/trial.json").decode()
    end: dict[str, Any] = {"state": "finished", "metrics": {"val/psnr": 20.0}, "last": {"step": 6}, "seed": 0}
    end |= {"steps": 6, "num_images": 24}
    expected: dict[str, Any] = {"id": "0001", "state": "finished", "metrics": {"val/psnr": 21.0}, "last": {"step": 6}}
    expected |= {"steps": 12, "num_images": 48, "seeds": [end, end | {"metrics": {"val/psnr": 22.0}, "seed": 1}]}
    expected |= {"parameters": {"data.crop": [64, 64], "loss.kind": None}, "began": 5.0, "seconds": 0.0}
    assert written == json.dumps(expected, indent=2)
    second = json.loads(folder.store.read("trials/0002/trial.json"))
    keys = ["id", "state", "metrics", "last", "steps", "num_images", "reason", "parameters", "began", "seconds"]
    assert list(second) == keys
    result = folder.write_result(Objectives.of("psnr"))
    document = json.loads(folder.store.read("result.json"))
    assert list(document) == ["state", "metric", "trials", "best"]
    assert document["trials"] == [expected, second]
    assert folder.result() == replace(result, trials=tuple(folder.trials()), best=folder.trials()[0])


def test_records_of_other_versions_are_read(folder: SweepFolder) -> None:
    """An earlier one wrote no steps; a later one may write more keys, and states that we do not know."""
    known = {"parameters": {"loss.a": 1.0}, "metrics": {"val/psnr": 20.0}, "began": 1.0, "seconds": 2.0}
    old = {**known, "id": "0001", "state": "failed", "reason": "out of memory"}
    new = {**known, "id": "0002", "state": "finished", "weather": "fine", "began": 2.0}
    new["seeds"] = [{"state": "finished", "metrics": {}, "weather": "fine"}]
    odd = {**known, "id": "0003", "state": "paused", "began": 3.0}
    for record_ in (old, new, odd):
        folder.store.write(f"trials/{record_['id']}/trial.json", json.dumps(record_).encode())
    first, second, third = folder.trials()
    assert (first.reason, first.steps) == ("out of memory", None)
    assert (second.parameters, second.seeds) == ({"loss.a": 1.0}, (TrainingEnd(state="finished"),))
    assert (third.state, third.reason) == ("failed", "its state is 'paused', which this Larmor does not know")
    result = {"state": "finished", "metric": "val/psnr", "trials": [old, new], "best": new, "weather": "fine"}
    folder.store.write("result.json", json.dumps(result).encode())
    assert result_of(folder).best == second


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b'{"id": "0001", "state": "finished"}'])
def test_what_is_no_record_is_named(folder: SweepFolder, content: bytes) -> None:
    for name, read in (("trials/0001/trial.json", folder.trials), ("result.json", folder.result)):
        folder.store.write(name, content)
        with pytest.raises(InputError, match=rf"{folder.url}/{name}: is not the"):
            read()
    folder.store.write("trials/0001/begun.json", content)
    folder.store.delete("trials/0001/trial.json")
    with pytest.raises(InputError, match=r"begun.json: is not the record of a trial that has begun"):
        folder.unfinished()
