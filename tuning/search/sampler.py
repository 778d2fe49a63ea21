"""Which point is tried next: Optuna's samplers behind Ray Tune, taught by the trials that have ended."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Sequence
from typing import Any

from larmor.storage.objects.errors import InputError
from larmor.tuning.search.experiment import SweepConfig
from larmor.tuning.search.objectives import Objectives
from larmor.tuning.search.records import Parameters, TrialRecord
from larmor.tuning.search.space import Dimension
from larmor.tuning.search.sweep_folder import SweepFolder

_FEWEST_RANDOM = 10  # points before TPE looks at what came of them


def make_searcher(
    config: SweepConfig, dimensions: Sequence[Dimension], first: Sequence[Parameters], known: Sequence[TrialRecord]
) -> Any:
    """Ray Tune's search algorithm: tries `first`, then what the sampler says.

    `known` are records of trials; those that diverged or failed count as the worst, and those that were stopped:
    after fewer steps their figures say something else.
    """
    import optuna

    from larmor.tuning.search.points import PointSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    seed = config.seed + len(known)
    if config.sampler == "tpe":
        # constant_liar: trials that run side by side do not all try the same point
        first_ones = max(_FEWEST_RANDOM, config.num_trials // 3)
        sampler: Any = optuna.samplers.TPESampler(
            seed=seed, multivariate=True, constant_liar=True, n_startup_trials=first_ones
        )
    else:  # a grid is its points, all of them in `first`
        sampler = optuna.samplers.RandomSampler(seed=seed)
    searcher = PointSearch(config.objectives, dimensions, first, sampler)
    for trial in known:
        metrics = trial.metrics if trial.state == "finished" else {}
        searcher.teach(trial.parameters, metrics, trial.last if trial.state == "stopped" else {})
    return searcher


def planned_trials(config: SweepConfig, dimensions: Sequence[Dimension]) -> int:
    """How many trials the whole sweep has."""
    return len(grid_points(dimensions)) if config.sampler == "grid" else config.num_trials


def grid_points(dimensions: Sequence[Dimension]) -> list[Parameters]:
    """Every combination, the last key fastest. Raises `InputError` for a range that has no end of values."""
    axes = []
    for item in dimensions:
        if item.kind == "choice":
            axes.append(list(item.arguments))
        elif item.kind == "randint":
            axes.append(list(range(*item.arguments)))
        else:
            raise InputError(
                f"sweep.space.{item.key}={item}: a grid needs single values; write choice(value, …), or "
                "sweep.sampler=random"
            )
    return [dict(zip((item.key for item in dimensions), values, strict=True)) for values in itertools.product(*axes)]


def earlier_trials(url: str, objectives: Objectives, dimensions: Sequence[Dimension]) -> list[TrialRecord]:
    """The trials of another sweep that teach this one: those that tell all of its keys, inside their ranges.

    Raises `InputError` if there is no sweep at `url`, or none of its trials fits.
    """
    folder = SweepFolder(url)
    if not folder.exists():
        raise InputError(f"sweep.warm_start={url}: there is no sweep here (no sweep.yaml); check the URL")
    keys = {item.key for item in dimensions}
    found = []
    for trial in folder.trials():
        parameters = {key: value for key, value in trial.parameters.items() if key in keys}
        rated = trial.is_rated and objectives.are_in(trial.metrics)
        if rated and parameters.keys() == keys and all(item.contains(parameters[item.key]) for item in dimensions):
            found.append(dataclasses.replace(trial, parameters=parameters))
    if not found:
        wanted = " and ".join(objectives.keys)
        raise InputError(
            f"sweep.warm_start={url}: none of its trials has {wanted} and values inside this space for "
            f"{', '.join(sorted(keys))}; leave it out, or widen the space"
        )
    return found
