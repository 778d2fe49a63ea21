"""Which run is meant by a URL: the run itself, or a trial of the sweep that is there. No Ray here."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import yaml

from larmor.cluster.runs.pull import TrialOrigin, metric_direction
from larmor.cluster.runs.run_folder import RunFolder
from larmor.recon.recipe.metric import check_metric
from larmor.storage.objects.errors import InputError
from larmor.tuning.search.objectives import Objectives
from larmor.tuning.search.records import TrialRecord
from larmor.tuning.search.sweep_folder import SweepFolder, best_trial, front_trials, ranked_trials


@dataclass(frozen=True)
class Choice:
    """A run, and the metric by which its best checkpoint is meant.

    `about` is what a pulled model's record says of a sweep's trial; None for a run that is no trial.
    """

    run: RunFolder
    metric: str
    about: TrialOrigin | None = None


def choose_run(url: str, metric: str | None = None, trial: str | None = None, prefer: str | None = None) -> Choice:
    """The run at `url`; of a sweep the run of `trial` (its id or how it begins), or of its best finished trial.

    Without a metric, or by the sweep's own, the best trial is the one that the sweep reports; of two metrics `prefer`
    (see `Objectives.weights`) chooses from the front. By another metric it is the trial with the best checkpoint of
    those that are kept. Of equal ones the earliest.

    Raises `InputError` for a metric or a trial that is not there, naming those that are, if no trial has finished, and
    for a preference where there is no front or something else chooses.
    """
    if metric:
        check_metric(metric)
    folder = SweepFolder(url)
    if not folder.exists():
        return _of_run(url, metric, trial, prefer)
    trials, objectives = folder.trials(), folder.objectives()
    weights = _weights(url, objectives, metric, trial, prefer)
    if trial:
        return _named(folder, trials, trial, metric or objectives.first)
    notes = [] if folder.result() else [f"the sweep has not finished: the best of {len(trials)} trials that have ended"]
    if metric is None or (check_metric(metric) == objectives.first and not objectives.has_front):
        best = _best_finished(folder, trials, objectives, weights)
        notes += _of_front(trials, objectives, weights)
    else:
        name, higher = metric_direction(folder, metric)
        best = _best_by_checkpoint(folder, [item for item in trials if item.is_rated], name, higher)
    return Choice(folder.trial_run(best.id), metric or objectives.first, _about(folder, best, notes))


def choose_best(url: str, count: int, without: str | None = None) -> list[Choice]:
    """The runs of the `count` best trials of the sweep at `url` by its (first) metric, the best one first; `without`
    the trial of this id.

    Raises `InputError` for anything else than a sweep, and one with fewer finished trials.
    """
    folder = SweepFolder(url)
    if not folder.exists():
        raise InputError(f"{url}: is neither a model directory nor a sweep; name one of them")
    objectives = Objectives.of(folder.objectives().first)
    ranked = [trial for trial in ranked_trials(folder.trials(), objectives) if trial.id != without]
    if len(ranked) < count:
        raise InputError(
            f"{url}: has {len(ranked)} rated trials{' beside the model' if without else ''}, and {count} are wanted; "
            "give a smaller --members"
        )
    return [Choice(folder.trial_run(one.id), objectives.first, _about(folder, one, [])) for one in ranked[:count]]


def _of_run(url: str, metric: str | None, trial: str | None, prefer: str | None) -> Choice:
    if trial:
        raise InputError(f"{url}: is not a sweep, so it has no trial '{trial}'; leave --trial out")
    if prefer:
        raise InputError(f"{url}: is not a sweep, so it has no front of trade-offs; give --metric, not --prefer")
    run = RunFolder(url)
    content = yaml.safe_load(run.config_yaml())
    training = content.get("training", {}) if isinstance(content, dict) else {}
    return Choice(run, metric or training.get("best_metric", "psnr"))


def _weights(
    url: str, objectives: Objectives, metric: str | None, trial: str | None, prefer: str | None
) -> dict[str, float] | None:
    if not prefer:
        return None
    if not objectives.has_front:
        raise InputError(f"{url}: has no front of trade-offs, its metric is {objectives.first}; leave --prefer out")
    if metric or trial:
        other = "--trial" if trial else "--metric"
        raise InputError(f"--prefer {prefer}: {other} also chooses a trial; give only one of them")
    return objectives.weights(prefer)


def _of_front(trials: Sequence[TrialRecord], objectives: Objectives, weights: Mapping[str, float] | None) -> list[str]:
    """What is to be known of a choice from a front."""
    if not objectives.has_front:
        return []
    names = [name for name in objectives.names if weights is None or weights[name] > 0]
    rule = f"nearest to the best {' and '.join(names)}" if len(names) > 1 else f"the best {names[0]}"
    weighed = f", weights {', '.join(f'{weights[name]:g}' for name in names)}" if weights and len(names) > 1 else ""
    return [f"of {len(front_trials(trials, objectives))} trials on the front, {rule}{weighed}"]


def _best_finished(
    folder: SweepFolder, trials: Sequence[TrialRecord], objectives: Objectives, weights: Mapping[str, float] | None
) -> TrialRecord:
    try:
        return best_trial(trials, objectives, weights)
    except InputError as error:
        raise InputError(
            f"{folder.url}: {error}; --trial ID pulls from one that has not finished{_known(folder)}"
        ) from error


def _best_by_checkpoint(folder: SweepFolder, finished: Sequence[TrialRecord], name: str, higher: bool) -> TrialRecord:
    rated = []
    for trial in finished:
        with contextlib.suppress(InputError):  # a trial without the metric
            value = folder.trial_run(trial.id).best(name, higher).metrics[name]
            rated.append((value if higher else -value, trial))
    if not rated:
        raise InputError(f"{folder.url}: no finished trial has a checkpoint with the metric '{name}'{_known(folder)}")
    return max(rated, key=lambda pair: pair[0])[1]


def _named(folder: SweepFolder, trials: Sequence[TrialRecord], wanted: str, metric: str) -> Choice:
    ids = folder.trial_ids()
    found = [name for name in ids if name == wanted] or [name for name in ids if name.startswith(wanted)]
    if len(found) != 1:
        problem = (
            f"'{wanted}' is the beginning of the ids of {len(found)} trials" if found else f"has no trial '{wanted}'"
        )
        raise InputError(f"{folder.url}: {problem}; choose one of {', '.join(found or ids) or 'none, it has none yet'}")
    record = next((trial for trial in trials if trial.id == found[0]), None)
    if record is None:
        about = TrialOrigin(folder.url, found[0], notes=("the trial's state is 'running'",))
        return Choice(folder.trial_run(found[0]), metric, about)
    reason = f" ({record.reason})" if record.reason else ""
    notes = [] if record.state == "finished" else [f"the trial's state is '{record.state}'{reason}"]
    return Choice(folder.trial_run(found[0]), metric, _about(folder, record, notes))


def _about(folder: SweepFolder, trial: TrialRecord, notes: Sequence[str]) -> TrialOrigin:
    return TrialOrigin(folder.url, trial.id, trial.parameters, trial.seconds, trial.num_images, tuple(notes))


def _known(folder: SweepFolder) -> str:
    ids = folder.trial_ids()
    return f"; its trials are {', '.join(ids)}" if ids else "; it has no trial yet"
