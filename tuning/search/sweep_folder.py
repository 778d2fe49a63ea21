"""A sweep's folder in the store: its configuration, one run folder for each trial, its result. No Ray here.

lease/NUMBER.json     who runs it (cluster/runs/lease.py)
sweep.yaml            the experiment with its search; created only once
origin.json, …        data set, mask and versions (cluster/runs/origin.py)
trials/ID/…           a run folder (cluster/runs/run_folder.py): the training with the experiment's own seed
trials/ID/seeds/N/…   run folders of the trainings with the N following seeds, if there are several
trials/ID/begun.json  parameters; written when the trial begins, or resumes after it was stopped
trials/ID/trial.json  parameters, state, metrics, steps, images, seconds; written when the trial has ended
ends/NUMBER-ID        an empty object for each time that a trial has ended: whoever follows lists these alone
result.json           all trials, the best one and, of two metrics, the front; written when the sweep has finished
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from larmor.cluster.runs.lease import check_lease, delete_all_but_lease
from larmor.cluster.runs.origin import metric_of
from larmor.cluster.runs.run_folder import RunFolder
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.fast_yaml import load_yaml
from larmor.storage.objects.object_store import ObjectStore
from larmor.storage.objects.parallel import run_in_threads
from larmor.tuning.search.objectives import Objectives
from larmor.tuning.search.records import (
    ENDED,
    BegunTrial,
    Parameters,
    SweepResult,
    TrialRecord,
    read_begun,
    read_result,
    read_trial,
    to_json,
)

_ENDS = "ends"
_LATE = 256  # numbers: trials that end at once may take theirs in any order
_THREADS = 8
R = TypeVar("R")


class TrialRun(RunFolder):
    """A trial's run folder. It is the lease of its sweep that fences it."""

    def __init__(self, url: str, sweep: ObjectStore, lease: int | None) -> None:
        super().__init__(url, lease)
        self._sweep = sweep

    def check_lease(self) -> None:
        if self.lease is not None:
            check_lease(self._sweep, self.lease)


class SweepFolder:
    """The folder of one sweep; with the number of a `lease`, records are written only while that lease is the newest.

    Methods raise what `ObjectStore` raises, and `LeaseLost`.
    """

    def __init__(self, url: str, lease: int | None = None) -> None:
        self.store = ObjectStore(url)
        self.lease = lease
        self._last_end = 0  # known here: only later ones are listed

    @property
    def url(self) -> str:
        return self.store.url

    def exists(self) -> bool:
        self.store.check_access()
        return self.store.exists("sweep.yaml")

    def create(self, config_yaml: str) -> bool:
        return self.store.create("sweep.yaml", config_yaml.encode(), guard=self.check_lease)

    def config_yaml(self) -> str:
        return self.store.read("sweep.yaml").decode()

    def delete(self) -> None:
        """Remove everything but the lease."""
        delete_all_but_lease(self.store, self.check_lease)

    def check_lease(self) -> None:
        """Raises `LeaseLost` if another process runs the sweep now."""
        if self.lease is not None:
            check_lease(self.store, self.lease)

    def trial_run(self, trial: str, seed_number: int = 0) -> RunFolder:
        """The run of a trial's first training, or of that with the `seed_number`-th seed after it."""
        url = f"{self.url}/trials/{trial}" + (f"/seeds/{seed_number}" if seed_number else "")
        return TrialRun(url, self.store, self.lease)

    def begin_trial(self, trial: str, parameters: Parameters) -> BegunTrial:
        """Record what a trial is, unless it has begun before; return the record.

        A trial that was stopped and is resumed has no end any more: its record is removed, and its seconds are kept.
        """
        begun = BegunTrial(dict(parameters), time.time())
        path, end = f"trials/{trial}/begun.json", f"trials/{trial}/trial.json"
        if not self.store.create(path, to_json(begun), guard=self.check_lease):
            begun = read_begun(self.store.read(path), f"{self.url}/{path}")
        ended = self.trial(trial)
        if ended is not None and ended.state == "stopped":
            begun = dataclasses.replace(begun, seconds=ended.seconds or 0.0)
            self.store.write(path, to_json(begun), guard=self.check_lease)
            self.store.remove([end], guard=self.check_lease)
        return begun

    def unfinished(self) -> dict[str, Parameters]:
        """Parameters of the trials, by id, that have begun and not ended, or ended with an error; by age."""
        ended = {trial.id for trial in self.trials() if trial.state in ENDED}
        begun = self._records("begun.json", read_begun, [id for id in self.trial_ids() if id not in ended])
        return {id: begun[id].parameters for id in sorted(begun, key=lambda id: begun[id].began)}

    def next_number(self) -> int:
        """A number that no trial has for its name."""
        numbers = [int(name) for name in self.trial_ids() if name.isdigit()]
        return max(numbers, default=0) + 1

    def write_trial(self, trial: TrialRecord) -> None:
        self.store.write(f"trials/{trial.id}/trial.json", to_json(trial), guard=self.check_lease)
        self._note_end(trial.id)

    def _note_end(self, trial: str) -> None:
        number = max([self._last_end, *map(number_of_end, self.ends(self._last_end))]) + 1
        while not self.store.create(f"{_ENDS}/{number:06d}-{trial}", b"", guard=self.check_lease):
            number += 1
        self._last_end = number

    def write_failure(self, trial: str, parameters: Parameters, reason: str) -> None:
        """The record of a trial that its own workers could not write, unless they did."""
        if not self.store.exists(f"trials/{trial}/trial.json"):
            began = self.begin_trial(trial, parameters).began
            seconds = time.time() - began
            self.write_trial(
                TrialRecord(
                    id=trial, state="failed", reason=reason, parameters=parameters, began=began, seconds=seconds
                )
            )

    def trials(self) -> list[TrialRecord]:
        """Records of all trials that have ended, in the order in which they began.

        Raises `InputError` for an object that is no record.
        """
        return sorted(self._records("trial.json", read_trial).values(), key=lambda record: record.began)

    def trial(self, id: str) -> TrialRecord | None:
        """The record of one trial; None if it has not ended."""
        return self._record(f"trials/{id}/trial.json", read_trial)

    def ends(self, after: int = 0) -> dict[str, str]:
        """Each time that a trial has ended, in order: a name for it, and the trial's id; of the first `after` none."""
        found = self.store.list(_ENDS, False, f"{_ENDS}/{after:06d}~" if after else "")
        return {path: path.partition("-")[2] for path in found}

    def _record(self, path: str, read: Callable[[bytes, str], R]) -> R | None:
        try:
            return read(self.store.read(path), f"{self.url}/{path}")
        except FileNotFoundError:
            return None

    def _records(self, name: str, read: Callable[[bytes, str], R], ids: Sequence[str] | None = None) -> dict[str, R]:
        """A record of every trial that has it (or of `ids`), by the trial's id. What else is in a trial's folder is not
        listed."""
        ids = self.trial_ids() if ids is None else ids
        records = run_in_threads(lambda id: self._record(f"trials/{id}/{name}", read), ids, _THREADS)
        return {id: record for id, record in zip(ids, records, strict=True) if record is not None}

    def trial_ids(self) -> list[str]:
        """Every trial that has begun, also those that have not ended; sorted."""
        return [path.split("/")[1] for path in self.store.folders("trials")]

    def objectives(self) -> Objectives:
        """What the sweep counts."""
        return Objectives.of(load_yaml(self.config_yaml())["sweep"]["metric"], partial(metric_of, self))

    def write_result(self, objectives: Objectives) -> SweepResult:
        """Write and return all trials, the front and the best. Raises `InputError` if no trial has finished."""
        trials = tuple(self.trials())
        result = SweepResult("finished", objectives.keys[0], trials, best_trial(trials, objectives))
        if objectives.has_front:
            front = tuple(trial.id for trial in front_trials(trials, objectives))
            result = dataclasses.replace(result, metric=objectives.keys, front=front)
        self.store.write("result.json", to_json(result), guard=self.check_lease)
        return result

    def result(self) -> SweepResult | None:
        """What the finished sweep wrote, or None."""
        return self._record("result.json", read_result)


def best_trial(
    trials: Sequence[TrialRecord], objectives: Objectives, weights: Mapping[str, float] | None = None
) -> TrialRecord:
    """Of the trials that have finished or were stopped early the best one; of two metrics see `Objectives.choose`.

    Raises `InputError` if there is none with these metrics.
    """
    rated = _rated(trials, objectives)
    if not rated:
        errors = [trial.reason for trial in trials if trial.reason]
        reason = f"; the last one failed with: {errors[-1]}" if errors else ""
        named = " and ".join(f"'{key}'" for key in objectives.keys)
        raise InputError(f"none of {len(trials)} trials has finished with the metric {named}{reason}")
    return rated[objectives.choose([trial.metrics for trial in rated], weights)]


def ranked_trials(trials: Sequence[TrialRecord], objectives: Objectives) -> list[TrialRecord]:
    """Those that have finished or were stopped early, the best one first; of equal ones the earliest."""
    left, ranked = _rated(trials, objectives), []
    while left:
        ranked.append(left.pop(objectives.choose([trial.metrics for trial in left])))
    return ranked


def front_trials(trials: Sequence[TrialRecord], objectives: Objectives) -> list[TrialRecord]:
    """The best trade-offs of the trials that have finished or were stopped early, in the order of `trials`."""
    rated = _rated(trials, objectives)
    return [rated[place] for place in objectives.front([trial.metrics for trial in rated])]


def _rated(trials: Sequence[TrialRecord], objectives: Objectives) -> list[TrialRecord]:
    return [trial for trial in trials if trial.is_rated and objectives.are_in(trial.metrics)]


def number_of_end(path: str) -> int:
    """Of a name that `SweepFolder.ends` gives."""
    return int(path.rpartition("/")[2].partition("-")[0])


def new_trials(folder: SweepFolder) -> Callable[[], list[TrialRecord]]:
    """A function that returns the trials that have ended, or ended anew, since it was last called; at first all.

    Its cost is that of what is new: the ends are listed from a little before the newest known one on.
    """
    seen: set[str] | None = None
    newest = 0

    def fetch() -> list[TrialRecord]:
        nonlocal seen, newest
        ends = folder.ends(max(0, newest - _LATE))
        if seen is None:  # those of an earlier call count too, also if a version of then noted no ends
            found: list[TrialRecord | None] = list(folder.trials())
        else:
            found = [folder.trial(id) for id in dict.fromkeys(ends[path] for path in ends.keys() - seen)]
        seen = set(ends)  # the next listing has none before these
        newest = max((number_of_end(path) for path in ends), default=newest)
        return sorted((trial for trial in found if trial), key=lambda record: record.began)

    return fetch


def best_parameters(url: str) -> Parameters:
    """The searched values of a sweep's best trial. Raises `InputError` if the sweep has no finished trial."""
    folder = SweepFolder(url)
    if not folder.exists():
        raise InputError(f"{url}: there is no sweep here (no sweep.yaml); check the URL")
    return best_trial(folder.trials(), folder.objectives()).parameters
