"""Which run is meant by a URL: the run itself, or a trial of the sweep that is there. No Ray here."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from cluster.pull import metric_direction
from cluster.run_folder import RunFolder
from storage.errors import InputError
from tuning.sweep_folder import RATED, SweepFolder, best_trial


@dataclass(frozen=True)
class Choice:
    """A run, and what a pulled model's record says of it: sweep, trial, parameters, and notes for the user."""

    run: RunFolder
    about: Mapping[str, Any] = field(default_factory=dict)


def choose_run(url: str, metric: str, trial: str | None = None) -> Choice:
    """The run at `url`; of a sweep the run of `trial` (its id or how it begins), or of its best finished trial.

    By the sweep's own metric the best trial is the one that the sweep reports; by another one, the trial with the best
    checkpoint of those that are kept. Of equal ones the earliest.

    Raises `InputError` for a metric or a trial that is not there, naming those that are, and if no trial has finished.
    """
    name, higher = metric_direction(metric)
    folder = SweepFolder(url)
    if not folder.exists():
        if trial:
            raise InputError(f"{url}: is not a sweep, so it has no trial '{trial}'; leave --trial out")
        return Choice(RunFolder(url))
    trials = folder.trials()
    if trial:
        return _named(folder, trials, trial)
    by = f"val/{yaml.safe_load(folder.config_yaml())['sweep']['metric']}"
    best: Mapping[str, Any]
    if name == by:
        best = _best_finished(folder, trials, metric.removeprefix("val/"))
    else:
        best = _best_by_checkpoint(folder, [item for item in trials if item["state"] in RATED], name, higher)
    notes = [] if folder.result() else [f"the sweep has not finished: the best of {len(trials)} trials that have ended"]
    return Choice(folder.trial_run(best["id"]), _about(folder, best, notes))


def _best_finished(folder: SweepFolder, trials: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    try:
        return best_trial(trials, metric)
    except InputError as error:
        raise InputError(
            f"{folder.url}: {error}; --trial ID pulls from one that has not finished{_known(folder)}"
        ) from error


def _best_by_checkpoint(
    folder: SweepFolder, finished: Sequence[Mapping[str, Any]], name: str, higher: bool
) -> Mapping[str, Any]:
    rated = []
    for trial in finished:
        with contextlib.suppress(InputError):  # a trial without the metric
            value = folder.trial_run(trial["id"]).best(name, higher).metrics[name]
            rated.append((value if higher else -value, trial))
    if not rated:
        raise InputError(f"{folder.url}: no finished trial has a checkpoint with the metric '{name}'{_known(folder)}")
    return max(rated, key=lambda pair: pair[0])[1]


def _named(folder: SweepFolder, trials: Sequence[Mapping[str, Any]], wanted: str) -> Choice:
    ids = folder.trial_ids()
    found = [name for name in ids if name == wanted] or [name for name in ids if name.startswith(wanted)]
    if len(found) != 1:
        problem = f"'{wanted}' begins the ids of {len(found)} trials" if found else f"has no trial '{wanted}'"
        raise InputError(f"{folder.url}: {problem}; choose one of {', '.join(found or ids) or 'none, it has none yet'}")
    ended = {trial["id"]: trial for trial in trials}
    record = ended.get(found[0], {"id": found[0]})
    state = record.get("state", "running")
    reason = record.get("reason") or record.get("error")
    notes = [] if state == "finished" else [f"the trial's state is '{state}'{f' ({reason})' if reason else ''}"]
    return Choice(folder.trial_run(found[0]), _about(folder, record, notes))


def _about(folder: SweepFolder, trial: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    kept = {key: trial[key] for key in ("parameters", "seconds", "num_images") if key in trial}
    return {"sweep": folder.url, "trial": trial["id"], **kept, "notes": notes}


def _known(folder: SweepFolder) -> str:
    ids = folder.trial_ids()
    return f"; its trials are {', '.join(ids)}" if ids else "; it has no trial yet"
