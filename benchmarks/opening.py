"""How long it takes to open a large sweep and a long history: `python benchmarks/opening.py [URL]`.

It generates the folders: a sweep of 1,000 trials, and the history of a training of a week (a million steps of 0.6 s,
reported every 10). For each way in it prints wall and processor seconds, requests to the store, and what they brought.
Nothing is trained. URL is a folder or `s3://BUCKET/PREFIX`; without one a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable
from typing import Any

import larmor
from larmor.cluster.experiments.experiment import dump_yaml
from larmor.cluster.runs.run_folder import RunFolder
from larmor.cluster.runs.runs import find_runs
from larmor.commands.training import load_experiment
from larmor.storage.objects.object_store import ObjectStore
from larmor.storage.objects.parallel import run_in_threads
from larmor.tuning.report.trial_records import read_sweep
from larmor.tuning.search.records import TrialRecord, to_json
from larmor.tuning.search.sweep_folder import SweepFolder, new_trials

_STEPS_OF_AN_OBJECT = 2000
_SPACE = ["space.loss.a=loguniform(0.1,100)", "space.loss.b=loguniform(0.001,10)"]


class Asked:
    """Requests of this process to object stores, and the bytes and names that they brought."""

    def __init__(self) -> None:
        self.requests = self.received = self.listed = 0
        for name in ("read", "list", "folders", "exists", "size"):
            setattr(ObjectStore, name, self._counted(getattr(ObjectStore, name)))

    def _counted(self, ask: Callable[..., Any]) -> Callable[..., Any]:
        def counted(store: ObjectStore, *arguments: Any, **options: Any) -> Any:
            self.requests += 1
            answer = ask(store, *arguments, **options)
            if isinstance(answer, bytes):
                self.received += len(answer)
            elif isinstance(answer, list | dict):
                self.listed += len(answer)
            return answer

        return counted


def rows(first: int, last: int, draw: random.Random) -> list[dict[str, float]]:
    """As a training of Larmor's own system reports them, validated every 1,000 steps."""
    names = ("adversarial", "adversarial_residual", "content", "critic_loss", "critic_loss_residual")
    return [
        {
            "step": step,
            **{name: draw.random() for name in names},
            **({"val/psnr": 30 + draw.random(), "val/ssim": draw.random()} if step % 1000 == 0 else {}),
        }
        for step in range(first, last + 1)
    ]


def write_week(url: str, steps: int) -> None:
    run, draw = RunFolder(url), random.Random(0)
    run.create(dump_yaml(load_experiment("laptop", []).training_part()))
    for last in range(_STEPS_OF_AN_OBJECT, steps + 1, _STEPS_OF_AN_OBJECT):
        content = json.dumps(rows(last - _STEPS_OF_AN_OBJECT + 1, last, draw))
        run.store.write(f"history/{last:08d}.json", content.encode())


def write_trials(url: str, count: int) -> None:
    experiment = load_experiment("laptop", _SPACE)
    folder = SweepFolder(url)
    folder.create(dump_yaml(experiment))
    config, draw = dump_yaml(experiment.training_part()), random.Random(0)
    history = json.dumps(rows(1, 500, draw)).encode()

    def write(number: int) -> None:
        name = f"{number:04d}"
        values = {"loss.a": draw.uniform(1, 100), "loss.b": draw.uniform(0.01, 1)}
        metrics = {"val/psnr": draw.uniform(25, 31), "step": 500.0}
        record = TrialRecord(
            id=name, state="finished", metrics=metrics, steps=500, parameters=values, began=number, seconds=60.0
        )
        run = folder.trial_run(name)
        run.create(config)
        run.store.write("history/00002000.json", history)
        folder.store.write(f"trials/{name}/trial.json", to_json(record))
        folder.store.write(f"ends/{number:06d}-{name}", b"")

    run_in_threads(write, range(1, count + 1), 8)


def measure(asked: Asked, title: str, act: Callable[[], Any]) -> None:
    asked.requests = asked.received = asked.listed = 0
    wall, processor = time.perf_counter(), time.process_time()
    act()
    print(
        f"| {title} | {time.perf_counter() - wall:.2f} | {time.process_time() - processor:.2f} | {asked.requests:,} "
        f"| {asked.received / 1e6:.2f} | {asked.listed:,} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", nargs="?")
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="larmor-opening-") as scratch:
        url = (options.url or scratch).rstrip("/")
        sweep, week = f"{url}/sweep-{options.trials}", f"{url}/week-{options.steps}"
        if not ObjectStore(week).exists("config.yaml"):
            write_week(week, options.steps)
        if not ObjectStore(sweep).exists("sweep.yaml"):
            write_trials(sweep, options.trials)
        report(Asked(), sweep, week, options.steps)


def report(asked: Asked, sweep: str, week: str, steps: int) -> None:
    import pandas  # noqa: F401  # its import is not what is measured

    folder = SweepFolder(sweep)
    fetch = new_trials(folder)
    print("| | s | processor s | requests | MB read | names listed |")
    print("|---|---|---|---|---|---|")
    measure(asked, "sweep: follow, first look", fetch)
    measure(asked, "sweep: follow, nothing new", fetch)
    folder.write_trial(TrialRecord(id="0001", state="finished", parameters={}, began=1.0, metrics={"val/psnr": 30.0}))
    measure(asked, "sweep: follow, a trial has ended", fetch)
    measure(asked, "sweep: which trials are unfinished", folder.unfinished)
    measure(asked, "sweep: all of it, for the report", lambda: read_sweep(sweep))
    measure(asked, "sweep: `larmor runs`", lambda: find_runs(sweep))
    measure(asked, "week: `larmor.history`, the last 100 steps", lambda: larmor.history(week, after=steps - 100))
    measure(asked, "week: `larmor.history`", lambda: larmor.history(week))
    measure(asked, "week: rows", lambda: RunFolder(week).history())


if __name__ == "__main__":
    main()
