"""The list of runs: every state, from what lies in the store."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from larmor.cluster.runs.attempts import Attempt
from larmor.cluster.runs.lease import Lease, Owner
from larmor.cluster.runs.reports import Reports
from larmor.cluster.runs.run_folder import RunFolder
from larmor.cluster.runs.run_result import RunResult
from larmor.cluster.runs.runs import find_runs, table_lines, to_json
from larmor.storage.objects.errors import InputError
from tests.helpers import add_checkpoint

FIGURES = {
    "loss": 1.0,
    "slices_per_second": 12.3,
    "seconds": 30.0,
    "training_seconds": 40.0,
}

NOW = 1_800_000_000.0
ELSEWHERE = Owner(host="another", system="another", pid=1, began=0.0)


def make_run(url: str, num_steps: int = 100) -> RunFolder:
    run = RunFolder(url)
    run.create(yaml.safe_dump({"training": {"num_steps": num_steps, "best_metric": "psnr"}}))
    return run


def begin(run: RunFolder, *steps: int, began: float = 0.0, at: int = 0) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        reports = Reports(run.store, Attempt.begin(run.store, 2, at, began), Path(scratch))
        for step in steps:
            reports.add(step, FIGURES)
        reports.close()


def hold(run: RunFolder, **changes: Any) -> None:
    lease = Lease(1, Owner.this_process(), began=NOW - 1000, renewed=NOW - 10, time_to_live=60.0)
    lease = dataclasses.replace(lease, **changes)
    run.store.write(lease.path, lease.to_bytes())


@pytest.fixture
def output(tmp_path: Path) -> str:
    url = str(tmp_path / "output")
    make_run(f"{url}/runs/a-new")
    begin(make_run(f"{url}/runs/b-going"), 10, 20)
    hold(make_run(f"{url}/runs/b-going"), renewed=time.time())
    add_checkpoint(make_run(f"{url}/runs/b-going"), tmp_path, 20, {"val/psnr": 31.25})
    diverged = make_run(f"{url}/runs/c-failed")
    begin(diverged, 10)
    diverged.write_failure("training diverged: loss is nan at step 20; lower the learning rates")
    done = make_run(f"{url}/runs/d-done")
    begin(done, 60)
    begin(done, 100, at=50)
    done.write_result(RunResult("finished", 1))
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


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, "running"),
        ({"owner": ELSEWHERE}, "running"),
        ({"owner": ELSEWHERE, "renewed": NOW - 3 * 60}, "stopped"),
        ({"owner": dataclasses.replace(ELSEWHERE, host=Owner.this_process().host)}, "running"),
        ({"owner": dataclasses.replace(Owner.this_process(), pid=2**22 + 1)}, "stopped"),
        ({"released": True}, "stopped"),
    ],
)
def test_the_lease_tells_a_running_run_from_a_stopped_one(output: str, changes: dict[str, Any], state: str) -> None:
    run = RunFolder(f"{output}/runs/b-going")
    hold(run, **changes)
    assert [run.state for run in find_runs(run.url, now=NOW)] == [state]


def test_runs_are_found_from_above_and_from_within(output: str) -> None:
    names = [run.name for run in find_runs(output)]
    assert [run.name for run in find_runs(f"{output}/runs")] == names
    assert [run.name for run in find_runs(f"{output}/runs/c-failed/")] == ["c-failed"]
    make_run(f"{output}/sweeps/s/trials/t1")
    assert [run.name for run in find_runs(f"{output}/sweeps/s")] == ["t1"]


@pytest.mark.parametrize("place", ["nothing", "runs/a-new/checkpoints"])
def test_where_no_run_is_that_is_said(output: str, place: str) -> None:
    with pytest.raises(InputError, match="there is no run here"):
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
