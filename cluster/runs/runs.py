"""What a store holds of runs, as a table: how far each is, how it stands, how good and how fast it is.

Looks at a few small objects of each run, needs neither Ray nor torch.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from larmor.cluster.runs.attempts import first_and_last
from larmor.cluster.runs.lease import Lease, Owner, newest
from larmor.cluster.runs.origin import metric_of
from larmor.cluster.runs.reports import last_report
from larmor.cluster.runs.run_folder import RunFolder
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.fast_yaml import load_yaml
from larmor.storage.objects.object_store import ObjectStore
from larmor.storage.objects.parallel import run_in_threads
from larmor.storage.objects.text_table import aligned

State = Literal["new", "running", "stopped", "failed", "finished"]
_RENEWALS_MISSED = 2  # times to live without a renewal: clocks of two machines may differ a little
_THREADS = 8


@dataclass(frozen=True)
class RunSummary:
    """One row; times in seconds since 1970. What is not known yet is None.

    `state`: finished: the result is there; failed: the reason is there; running: a process holds the run's lease and
    renews it; else stopped.
    `new`: claimed, but no worker has begun. `best`: of all whole checkpoints, by `metric`.
    """

    name: str
    url: str
    state: State
    step: int
    num_steps: int
    metric: str
    best: float | None
    slices_per_second: float | None
    goodput: float | None
    restarts: int
    world_size: int | None
    last_report: float | None
    failure: str | None


def find_runs(url: str, now: float | None = None) -> list[RunSummary]:
    """The runs below `url`: of an output_url its `runs/`, of a sweep its `trials/`, of a folder of runs all of them,
    or `url` itself.

    Raises `InputError` if nothing of that is there.
    """
    store = ObjectStore(url)
    store.check_access()
    if store.exists("config.yaml"):
        return [summarise(RunFolder(url), now)]
    folders = store.folders("runs") or store.folders("trials") or store.folders()
    found = run_in_threads(lambda path: _if_run(f"{store.url}/{path}", now), folders, _THREADS)
    runs = [run for run in found if run is not None]
    if not runs:
        raise InputError(f"{url}: there is no run here; give an output_url, a sweep's URL, or a run's URL")
    return runs


def summarise(run: RunFolder, now: float | None = None) -> RunSummary:
    """The row of one run."""
    config = load_yaml(run.config_yaml())["training"]
    report, attempts, failure = last_report(run.store), first_and_last(run.store), run.failure()
    metric = config["best_metric"]
    try:
        best = run.best(f"val/{metric}", metric_of(run, metric).higher_is_better).metrics[f"val/{metric}"]
    except InputError:  # no checkpoint yet, or none that is whole
        best = None
    state: State
    if run.result() is not None:
        state = "finished"
    elif failure is not None:
        state = "failed"
    elif attempts is None:
        state = "new"
    else:
        state = "running" if _is_held(newest(run.store), time.time() if now is None else now) else "stopped"
    report = report or {}
    return RunSummary(
        name=run.url.rstrip("/").split("/")[-1],
        url=run.url,
        state=state,
        step=int(report.get("step", 0)),
        num_steps=config["num_steps"],
        metric=metric,
        best=best,
        slices_per_second=report.get("slices_per_second"),
        goodput=report.get("goodput"),
        restarts=attempts[1].number - 1 if attempts else 0,
        world_size=attempts[1].world_size if attempts else None,
        last_report=report.get("time"),
        failure=failure,
    )


def table_lines(runs: Sequence[RunSummary]) -> list[str]:
    """A line for each run under a line of headings."""
    rows = [("run", "state", "step", "best", "slices/s", "goodput", "restarts", "last report")]
    for run in runs:
        rows.append(
            (
                run.name,
                run.state,
                f"{run.step}/{run.num_steps}",
                "–" if run.best is None else f"{run.metric} {run.best:.4g}",
                "–" if run.slices_per_second is None else f"{run.slices_per_second:.1f}",
                "–" if run.goodput is None else f"{run.goodput:.0%}",
                str(run.restarts),
                "–" if run.last_report is None else _ago(time.time() - run.last_report),
            )
        )
    return aligned(rows) + [f"{run.name}: {run.failure}" for run in runs if run.failure]


def to_json(runs: Sequence[RunSummary]) -> str:
    """A list of objects with the fields of `RunSummary`, times as ISO 8601."""

    def record(run: RunSummary) -> dict[str, object]:
        when = run.last_report and datetime.fromtimestamp(run.last_report, UTC).isoformat(timespec="seconds")
        return {**dataclasses.asdict(run), "last_report": when}

    return json.dumps([record(run) for run in runs], indent=2)


def _if_run(url: str, now: float | None) -> RunSummary | None:
    run = RunFolder(url)
    return summarise(run, now) if run.store.exists("config.yaml") else None


def _is_held(lease: Lease | None, now: float) -> bool:
    """Whether somebody drives the run: a process of this machine is looked up, of others the last renewal counts."""
    if lease is None or lease.released or lease.owner.is_alive(Owner.this_process()) is False:
        return False
    return now - lease.renewed < _RENEWALS_MISSED * lease.time_to_live


def _ago(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{max(seconds, 0):.0f} s ago"
