"""What is known of every trial of a sweep: ended or still running, by early stop or by itself."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from larmor.cluster.runs.origin import recorded_metrics
from larmor.recon.recipe.metric import METRICS, Metric
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.fast_yaml import load_yaml
from larmor.tuning.search.objectives import Objectives
from larmor.tuning.search.records import RATED, Parameters, State, TrialRecord
from larmor.tuning.search.space import describe_value
from larmor.tuning.search.sweep_folder import SweepFolder

_BALANCE = ("share/", "score/")


@dataclass(frozen=True)
class TrialView:
    """One trial. `metrics` are those of its best checkpoint, `value` the sweep's own; None if it has none.

    `seeds` are the metrics of each training, if the trial has several.
    """

    id: str
    number: int
    state: State | Literal["running"]
    reason: str
    parameters: Parameters
    value: float | None
    metrics: Mapping[str, float]
    step: int
    num_steps: int
    num_images: int
    seconds: float | None
    history: Sequence[Mapping[str, float]]
    seeds: Sequence[Mapping[str, float]] = ()

    @property
    def balance(self) -> dict[str, float]:
        """The newest shares of the gradient and scores of the critic, `share/…` and `score/…`; empty without any."""
        rows = ({key: value for key, value in row.items() if key.startswith(_BALANCE)} for row in self.history)
        return {key: value for row in rows for key, value in row.items()}

    @property
    def tooltip(self) -> str:
        """The trial in a few lines of HTML."""
        values = "<br>".join(f"{key} = {describe_value(value)}" for key, value in self.parameters.items())
        outcome = "" if self.value is None else f"<br>{self.value:.5g} at best, {self.step} steps"
        return f"<b>{self.id}</b> ({self.state})<br>{values}{outcome}"

    def curve(self, name: str) -> tuple[list[float], list[float]]:
        """Steps and values of one figure of the history."""
        rows = [row for row in self.history if name in row]
        return [row["step"] for row in rows], [row[name] for row in rows]


@dataclass(frozen=True)
class Sweep:
    """A sweep's trials in the order in which they began, seen by its first metric, or `by` the other one. `own` are the
    recorded metrics of one's own."""

    folder: SweepFolder
    config: Mapping[str, Any]
    trials: Sequence[TrialView]
    by: str | None = None
    own: Mapping[str, Metric] = dataclasses.field(default_factory=dict)

    @property
    def objectives(self) -> Objectives:
        return Objectives.of(self.config["sweep"]["metric"], self.own.__getitem__)

    @property
    def described(self) -> dict[str, Metric]:
        """Every metric that its trials may have."""
        return {**METRICS, **self.own}

    @property
    def metric(self) -> str:
        """`val/psnr` or another: values, order of the trials and charts are by it."""
        return f"val/{self.by or self.objectives.first}"

    def seen_by(self, name: str) -> Sweep:
        """The same trials with their values by another of the sweep's metrics; best and front stay what they are."""
        key = f"val/{name}"
        trials = [dataclasses.replace(trial, value=self.figure(trial, key)) for trial in self.trials]
        return dataclasses.replace(self, trials=trials, by=name)

    @property
    def higher_is_better(self) -> bool:
        return self.described[self.by or self.objectives.first].higher_is_better

    @property
    def space(self) -> Mapping[str, str]:
        """Searched key → its range, as the experiment has it."""
        return self.config["sweep"].get("space", {})

    @property
    def keys(self) -> list[str]:
        return list(self.space)

    @property
    def rated(self) -> list[TrialView]:
        """Trials with a value, the best first; of equal ones the earliest."""
        sign = -1 if self.higher_is_better else 1
        return sorted((trial for trial in self.trials if trial.value is not None), key=lambda t: sign * (t.value or 0))

    @property
    def common_step(self) -> int | None:
        """The last validated step that every trial with a value has reached; None if all have gone equally far."""
        reached = {steps[-1] for trial in self.rated if (steps := trial.curve(self.metric)[0])}
        return int(min(reached)) if len(reached) > 1 else None

    def figure(self, trial: TrialView, key: str) -> float | None:
        """A metric of a trial's best checkpoint; by the sweep's first one that of a running trial too."""
        return trial.value if key == self.metric else trial.metrics.get(key)

    def value_until(self, trial: TrialView, step: int | None, key: str | None = None) -> float | None:
        """The best value of a trial up to `step`: so trials that were stopped compare with those that continued."""
        key = key or self.metric
        rows = zip(*trial.curve(key), strict=True)
        values = [value for at, value in rows if step is not None and at <= step and math.isfinite(value)]
        if not values:
            return self.figure(trial, key)
        return max(values) if self.described[key.removeprefix("val/")].higher_is_better else min(values)

    @property
    def comparable(self) -> dict[str, float]:
        """The best value of every trial with one until `common_step`, by id."""
        values = {trial.id: self.value_until(trial, self.common_step) for trial in self.rated}
        return {id: value for id, value in values.items() if value is not None}

    @property
    def comparison(self) -> str:
        """What `comparable` has, in words."""
        step = self.common_step
        return "the best value" if step is None else f"the best until step {step}, which all trials reached"

    @property
    def best(self) -> TrialView | None:
        """What `larmor pull` brings: the best that has finished or was stopped early; of a front the chosen one."""
        ended = self._ended
        return ended[self.objectives.choose([trial.metrics for trial in ended])] if ended else None

    @property
    def front(self) -> list[TrialView]:
        """The best trade-offs, by the first metric; empty if there is but one."""
        ended = self._ended
        places = self.objectives.front([trial.metrics for trial in ended]) if self.objectives.has_front else []
        return sorted((ended[place] for place in places), key=lambda trial: trial.metrics[self.metric])

    @property
    def _ended(self) -> list[TrialView]:
        return [trial for trial in self.trials if trial.state in RATED and self.objectives.are_in(trial.metrics)]

    @property
    def start(self) -> TrialView | None:
        """The trial with the values that the search starts from, if it was tried: the experiment's own, or those in
        `sweep.overrides`."""
        overrides = self.config["sweep"].get("overrides") or {}
        own = {key: overrides.get(key, _dotted(self.config, key)) for key in self.space}
        return next((trial for trial in self.trials if dict(trial.parameters) == own), None)


def read_sweep(url: str, after: int = 0) -> Sweep:
    """Everything about the sweep at `url`, with the history of its trials beyond step `after`.

    Raises `InputError` if none is there.
    """
    folder = SweepFolder(url)
    if not folder.exists():
        raise InputError(f"{url}: there is no sweep here (no sweep.yaml); check the URL")
    config = load_yaml(folder.config_yaml())
    objectives = folder.objectives()
    ended = {record.id: record for record in folder.trials()}
    ids = [*ended, *(name for name in folder.trial_ids() if name not in ended)]
    with ThreadPoolExecutor(8) as pool:
        reading = [
            pool.submit(_read, folder, config, objectives, number, name, ended.get(name), after)
            for number, name in enumerate(ids)
        ]
        return Sweep(folder, config, [trial.result() for trial in reading], own=recorded_metrics(folder))


def _read(
    folder: SweepFolder,
    config: Mapping[str, Any],
    objectives: Objectives,
    number: int,
    name: str,
    record: TrialRecord | None,
    after: int,
) -> TrialView:
    metric = objectives.keys[0]
    run = folder.trial_run(name)
    try:
        own = load_yaml(run.config_yaml())
    except InputError:  # it ended before it had a folder
        own = config
    history = run.history(after)
    step = int(history[-1]["step"]) if history else 0
    metrics = dict(record.metrics) if record else {}
    better = max if objectives.higher_is_better(objectives.first) else min
    values = [row[metric] for row in history if row.get(metric, float("nan")) == row.get(metric)]
    value = metrics.get(metric, better(values) if values else None)
    searched = config["sweep"].get("space", {})
    return TrialView(
        id=name,
        number=number,
        state=record.state if record else "running",
        reason=(record.reason if record else "") or run.failure() or "",
        parameters=(record.parameters if record else {}) or {key: _dotted(own, key) for key in searched},
        value=value,
        metrics=metrics,
        step=step,
        num_steps=int(_dotted(own, "training.num_steps") or 0),
        num_images=int(
            (record and record.num_images)
            or step * (_dotted(own, "training.global_batch_size") or 0) * (_dotted(own, "data.stack") or 1)
        ),
        seconds=record.seconds if record else None,
        history=history,
        seeds=[end.metrics for end in record.seeds] if record else (),
    )


def write_trials_csv(sweep: Sweep, path: Path) -> None:
    """One line for each trial, in the order in which they began; of two metrics `front` says whether it is on it."""
    names = [f"val/{name}" for name in sweep.described]
    balance = list(dict.fromkeys(key for trial in sweep.trials for key in trial.balance))
    front, has_front = sweep.front, sweep.objectives.has_front
    extra = [*balance, *(["front"] if has_front else [])]
    heading = ["number", "trial", "state", *sweep.keys, *names, *extra, "step", "images", "seconds", "reason"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(heading)
        for trial in sweep.trials:
            metrics = {sweep.metric: trial.value, **trial.metrics}
            figures = ["" if metrics.get(name) is None else metrics[name] for name in names]
            values = [trial.parameters.get(key, "") for key in sweep.keys]
            seconds = "" if trial.seconds is None else f"{trial.seconds:.3f}"
            figures += [trial.balance.get(name, "") for name in balance]
            figures += [str(trial in front).lower()] if has_front else []
            row = [trial.number, trial.id, trial.state, *map(_cell, values), *figures]
            writer.writerow([*row, trial.step, trial.num_images, seconds, trial.reason])


def _cell(value: Any) -> Any:
    return value if isinstance(value, str | int | float) else json.dumps(value)


def _dotted(content: Mapping[str, Any], key: str) -> Any:
    value: Any = content
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
