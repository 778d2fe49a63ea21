"""The list of runs: every state, from what lies in the store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from cluster.attempts import Attempt
from cluster.reports import Reports
from cluster.run_folder import RunFolder
from cluster.runs import find_runs, table_lines, to_json
from storage.errors import InputError
from tests.helpers import add_checkpoint

FIGURES = {
    "loss": 1.0,
    "slices_per_second": 12.3,
    "seconds": 30.0,
    "training_seconds": 40.0,
}


def make_run(url: str, num_steps: int = 100) -> RunFolder:
    run = RunFolder(url)
    run.create(yaml.safe_dump({"training": {"num_steps": num_steps, "best_metric": "psnr"}}))
    return run


def begin(run: RunFolder, *steps: int, began: float = 0.0, at: int = 0) -> None:
    reports = Reports(run.store, Attempt.begin(run.store, 2, at, began))
    for step in steps:
        reports.add(step, FIGURES)
    reports.close()


@pytest.fixture
def output(tmp_path: Path) -> str:
    url = str(tmp_path / "output")
    make_run(f"{url}/runs/a-new")
    begin(make_run(f"{url}/runs/b-going"), 10, 20)
    add_checkpoint(make_run(f"{url}/runs/b-going"), tmp_path, 20, {"val/psnr": 31.25})
    diverged = make_run(f"{url}/runs/c-failed")
    begin(diverged, 10)
    diverged.write_failure("training diverged: loss is nan at step 20; lower the learning rates")
    done = make_run(f"{url}/runs/d-done")
    begin(done, 60)
    begin(done, 100, at=50)
    done.write_result({"state": "finished"})
    return url


def test_states(output: str) -> None:
    found = find_runs(output)
    assert [(run.name, run.state) for run in found] == [
        ("a-new", "new"),
        ("b-going", "running"),
        ("c-failed", "failed"),
        ("d-done", "finished"),
    ]
    new, going, failed, done = found
    assert (new.step, new.best, new.goodput, new.restarts, new.last_report) == (0, None, None, 0, None)
    assert (going.step, going.num_steps, going.best, going.world_size) == (20, 100, 31.25, 2)
    assert failed.failure is not None
    assert (done.step, done.restarts, done.slices_per_second) == (100, 1, 12.3)


def test_silence_is_what_tells_a_stopped_run(output: str) -> None:
    going = find_runs(f"{output}/runs/b-going")[0]
    assert going.last_report is not None
    later = going.last_report + 3 * FIGURES["seconds"] + 60
    assert [run.state for run in find_runs(f"{output}/runs/b-going", now=later)] == ["stopped"]
    begin(RunFolder(f"{output}/runs/b-going"), began=later, at=20)
    assert [run.state for run in find_runs(f"{output}/runs/b-going", now=later + 200)] == ["running"], "it is starting"
    assert [run.state for run in find_runs(f"{output}/runs/b-going", now=later + 700)] == ["stopped"]


def test_runs_are_found_from_above_and_from_within(output: str) -> None:
    names = [run.name for run in find_runs(output)]
    assert [run.name for run in find_runs(f"{output}/runs")] == names
    assert [run.name for run in find_runs(f"{output}/runs/c-failed/")] == ["c-failed"]
    make_run(f"{output}/sweeps/s/trials/t1")
    assert [run.name for run in find_runs(f"{output}/sweeps/s")] == ["t1"]


@pytest.mark.parametrize("place", ["nothing", "runs/a-new/checkpoints"])
def test_where_no_run_is_that_is_said(output: str, place: str) -> None:
    with pytest.raises(InputError, match="no run is there"):
        find_runs(f"{output}/{place}")


def test_the_table_and_the_json_say_the_same(output: str) -> None:
    found = find_runs(output)
    heading, *rows, reason = table_lines(found)
    assert heading.split()[:3] == ["run", "state", "step"]
    assert rows[1].split()[:6] == ["b-going", "running", "20/100", "psnr", "31.25", "12.3"]
    assert reason.startswith("c-failed: training diverged")
    records = json.loads(to_json(found))
    assert [record["state"] for record in records] == [run.state for run in found]
    assert records[1]["last_report"].endswith("+00:00")
