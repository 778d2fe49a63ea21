"""A sweep's folder in the store: its configuration, one run folder for each trial, its result. No Ray here.

lease/NUMBER.json     who runs it (cluster/lease.py)
sweep.yaml            the experiment with its search; created only once
trials/ID/…           a run folder (cluster/run_folder.py)
trials/ID/trial.json  parameters, state, metric, seconds; written when the trial has ended
result.json           all trials and the best one; written when the sweep has finished
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from cluster.lease import delete_all_but_lease
from cluster.run_folder import RunFolder
from recon.metrics import HIGHER_IS_BETTER
from storage.errors import InputError
from storage.object_store import ObjectStore


class SweepFolder:
    def __init__(self, url: str) -> None:
        self.store = ObjectStore(url)

    @property
    def url(self) -> str:
        return self.store.url

    def exists(self) -> bool:
        self.store.check_access()
        return self.store.exists("sweep.yaml")

    def create(self, config_yaml: str) -> bool:
        return self.store.create("sweep.yaml", config_yaml.encode())

    def config_yaml(self) -> str:
        return self.store.read("sweep.yaml").decode()

    def delete(self) -> None:
        """Remove everything but the lease."""
        delete_all_but_lease(self.store)

    def trial_run(self, trial: str) -> RunFolder:
        return RunFolder(f"{self.url}/trials/{trial}")

    def write_trial(self, trial: str, record: Mapping[str, Any]) -> None:
        self.store.write(f"trials/{trial}/trial.json", json.dumps({"id": trial, **record}, indent=2).encode())

    def trials(self) -> list[dict[str, Any]]:
        """Records of all trials that have ended, in the order in which they began."""
        paths = [path for path in self.store.list("trials") if path.endswith("/trial.json")]
        return sorted((json.loads(self.store.read(path)) for path in paths), key=lambda record: record["began"])

    def trial_ids(self) -> list[str]:
        """Every trial that has begun, also those that have not ended; sorted."""
        return sorted({path.split("/")[1] for path in self.store.list("trials")})

    def write_result(self, metric: str) -> dict[str, Any]:
        """Write and return all trials and the best. Raises `InputError` if no trial has finished."""
        trials = self.trials()
        result = {"state": "finished", "metric": f"val/{metric}", "trials": trials, "best": best_trial(trials, metric)}
        self.store.write("result.json", json.dumps(result, indent=2).encode())
        return result

    def result(self) -> dict[str, Any] | None:
        """What the finished sweep wrote, or None."""
        try:
            return json.loads(self.store.read("result.json"))
        except FileNotFoundError:
            return None


def best_trial(trials: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    """The finished trial with the best `val/metric`; of equal ones the earliest.

    Raises `InputError` if no trial has finished with that metric.
    """
    name = f"val/{metric}"
    finished = [
        trial
        for trial in trials
        if trial["state"] == "finished" and not math.isnan(trial["metrics"].get(name, math.nan))
    ]
    if not finished:
        errors = [trial["error"] for trial in trials if trial.get("error")]
        reason = f"; the last one failed with: {errors[-1]}" if errors else ""
        raise InputError(f"none of {len(trials)} trials has finished with the metric '{name}'{reason}")
    sign = 1 if HIGHER_IS_BETTER[metric] else -1
    return max(finished, key=lambda trial: sign * trial["metrics"][name])


def new_trials(folder: SweepFolder) -> Callable[[], list[dict[str, Any]]]:
    """A function that returns the trials that have ended since it was last called."""
    seen: set[str] = set()

    def fetch() -> list[dict[str, Any]]:
        new = [trial for trial in folder.trials() if trial["id"] not in seen]
        seen.update(trial["id"] for trial in new)
        return new

    return fetch


def best_parameters(url: str) -> dict[str, Any]:
    """The searched values of a sweep's best trial. Raises `InputError` if the sweep has no finished trial."""
    folder = SweepFolder(url)
    if not folder.exists():
        raise InputError(f"{url}: no sweep is there (no sweep.yaml); check the URL")
    metric = yaml.safe_load(folder.config_yaml())["sweep"]["metric"]
    return dict(best_trial(folder.trials(), metric)["parameters"])
