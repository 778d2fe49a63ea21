"""Ray Tune over Ray Train: Tune says what is tried and what is stopped, slots of warm workers train it."""

from __future__ import annotations

import os
import signal
import tempfile
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from larmor.cluster.experiments.experiment import Experiment, dump_yaml
from larmor.cluster.launch.initial import check_initial, pin_initial
from larmor.cluster.launch.run import CHANGEABLE, check_data, refuse_another
from larmor.cluster.on_ray.ray_cluster import require_resources, worker_bundle
from larmor.cluster.runs.lease import Say, hold, refuse_if_held
from larmor.cluster.runs.origin import check_origin, pinned, record_origin
from larmor.cluster.worker.stopping import ending_at
from larmor.recon.recipe.own_metric import find_metric
from larmor.recon.recipe.own_name import is_own
from larmor.storage.objects.parallel import run_in_threads
from larmor.tuning.search.experiment import SweepConfig, SweepExperiment
from larmor.tuning.search.ladder import Ladder
from larmor.tuning.search.objectives import Objectives
from larmor.tuning.search.records import ENDED, Parameters, SweepResult, TrialRecord
from larmor.tuning.search.sampler import earlier_trials, grid_points, make_searcher, planned_trials
from larmor.tuning.search.space import Dimension, describe_value, parse_space, starting_point, with_values
from larmor.tuning.search.sweep_folder import SweepFolder

# keys in which the same sweep may differ when it is started again
MAY_DIFFER = (*CHANGEABLE, "sweep.num_trials", "sweep.concurrent_trials")
GOODBYE_SECONDS = 10.0


def check_sweep(experiment: SweepExperiment, folder: SweepFolder, overwrite: bool) -> SweepResult | None:
    """The result, if the sweep has all its trials already. Writes nothing.

    Raises `InputError` for a bad space, data or initial weights that do not fit, if another process is known to write
    to the folder, or if another sweep of that name, or one with another data set or mask, is there and `overwrite` is
    False. The same sweep again resumes; it may have more trials.
    """
    base, config = trial_experiment(experiment), experiment.sweep
    dimensions = parse_space(config.space, base)
    planned = planned_trials(config, dimensions)
    if config.warm_start:
        earlier_trials(config.warm_start, config.objectives, dimensions)
    check_data(base)
    if folder.exists() and not overwrite:
        refuse_another(experiment, folder.config_yaml(), folder.url, MAY_DIFFER)
        check_origin(base, folder)
        result = folder.result()
        if result and sum(trial.state in ENDED for trial in result.trials) >= planned:
            return result
    check_initial(base, folder, overwrite)
    refuse_if_held(folder.store)
    return None


def count_trials(experiment: SweepExperiment) -> int:
    """How many trials the whole sweep has."""
    return planned_trials(experiment.sweep, parse_space(experiment.sweep.space, trial_experiment(experiment)))


def trial_experiment(experiment: SweepExperiment) -> Experiment:
    """What a trial trains, but for the searched values. It keeps the checkpoints that are best by the first metric."""
    config = experiment.sweep
    names = config.objectives.names
    metrics: Parameters = {"training.best_metric": names[0]}
    if own := [name for name in names if is_own(name)]:
        metrics = {**metrics, "training.metrics": list(dict.fromkeys([*experiment.training.metrics, *own]))}
    return with_values(experiment, {**config.overrides, **metrics})


def run_sweep(
    experiment: SweepExperiment, folder: SweepFolder, overwrite: bool, say: Say = lambda _: None
) -> SweepResult:
    """Run the trials that are missing on the connected cluster, as many at once as it has room for.

    With `overwrite` an old sweep is deleted, but only once the new one can start. Trials that ended in an earlier call
    count, and teach the sampler; those that had begun resume from their checkpoints, before all others. `say` is told
    what is waited for. Raises `InputError` if no trial finishes, or the cluster cannot hold one, and `Stopped` after
    SIGTERM or SIGINT.
    """
    base, config = trial_experiment(experiment), experiment.sweep
    dimensions = parse_space(config.space, base)
    bundle = worker_bundle(base.cluster.cpus_per_worker, base.cluster.use_gpu)
    bundles = [bundle] * base.cluster.fewest_workers
    require_resources(bundles * (config.concurrent_trials or 1), base.cluster.wait_seconds)
    message = f"the sweep ends; {folder.url} keeps its trials and their checkpoints, and the same command resumes it"
    with (
        hold(folder.store, say) as folder.lease,
        ending_at(signal.SIGTERM, signal.SIGINT, message=message),
    ):
        if overwrite:
            folder.delete()
        if not folder.create(dump_yaml(experiment)):
            refuse_another(experiment, folder.config_yaml(), folder.url, MAY_DIFFER)
        base = pin_initial(pinned(base), folder)
        record_origin(base, folder)
        ended = [trial for trial in folder.trials() if trial.state in ENDED]
        missing = planned_trials(config, dimensions) - len(ended)
        unfinished = folder.unfinished()
        ladder = _ladder(config, base, folder, ended, unfinished) if config.scheduler == "asha" else None
        whole = any(trial.state == "finished" for trial in ended)
        legs = len(ladder.waiting()) if ladder and (ladder.ready() or not whole) else 0
        if missing > 0 or legs:
            room = wait_for_room(bundle, base.cluster.fewest_workers, base.cluster.most_workers, say)
            count = min(max(missing, 0) + legs, config.concurrent_trials or room)
            earlier = earlier_trials(config.warm_start, config.objectives, dimensions) if config.warm_start else []
            first = first_points(config, dimensions, base, list(unfinished.values()), [*ended, *earlier], ended)
            points = make_searcher(config, dimensions, first[:missing], [*ended, *earlier])
            _run_trials(experiment, base, folder, points, unfinished, ended, ladder, max(missing, 0), count)
        return folder.write_result(config.objectives)


def first_points(
    config: SweepConfig,
    dimensions: Sequence[Dimension],
    base: Experiment,
    unfinished: Sequence[Parameters],
    known: Sequence[TrialRecord],
    ended: Sequence[TrialRecord],
) -> list[Parameters]:
    """What is tried before the sampler is asked: unfinished trials; of a grid all that is left; else its own values."""
    if config.sampler == "grid":
        past = [*unfinished, *(trial.parameters for trial in ended)]
        return [*unfinished, *(point for point in grid_points(dimensions) if point not in past)]
    own = starting_point(dimensions, base)
    return [*unfinished, *([own] if own is not None and not known and not unfinished else [])]


def wait_for_room(bundle: Mapping[str, float], fewest: int, most: int, say: Say) -> int:
    """How many trials of `most` workers the cluster has room for now; at least one, which waits for `fewest`."""
    import ray

    told = False
    while True:
        free = ray.available_resources()
        workers = min(int(free.get(name, 0) // amount) for name, amount in bundle.items())
        if workers >= fewest:
            return max(1, workers // most)
        if not told:
            say("the cluster is busy: waiting until there is room for a trial; requests are served in order")
            told = True
        time.sleep(1)


def describe_trial(trial: TrialRecord, objectives: Objectives) -> str:
    """One line about a trial that has ended."""
    values = ", ".join(f"{key} = {describe_value(value)}" for key, value in trial.parameters.items())
    found = trial.metrics if trial.is_rated else {}
    figure = ", ".join(f"{key} {found[key]:.4f}" for key in objectives.keys if key in found)
    state: str = trial.state if trial.state != "finished" or not figure else ""
    if state and trial.steps is not None:
        state = f"{state} at step {trial.steps}"
    outcome = ", ".join(part for part in (figure, state) if part)
    return f"trial {trial.id}: {values} → {outcome} ({trial.seconds or 0:.0f} s)"


def _run_trials(
    experiment: SweepExperiment,
    base: Experiment,
    folder: SweepFolder,
    points: Any,
    unfinished: Mapping[str, Parameters],
    ended: Sequence[TrialRecord],
    ladder: Ladder | None,
    missing: int,
    count: int,
) -> None:
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # a trial that diverged has no metric
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # Larmor shows the trials itself
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # a person who interrupts a sweep means to resume it, not to end it
    import ray
    from ray import tune
    from ray.tune.schedulers import FIFOScheduler

    from larmor.tuning.search.desk import Desk
    from larmor.tuning.search.slots import Slots
    from larmor.tuning.search.tune_trial import RESOURCES, DeskTrainable

    config, name = experiment.sweep, f"larmor-desk-{uuid.uuid4().hex}"
    place = {"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}}
    actor: Any = ray.remote(Desk).options(name=name, max_concurrency=1000, **place)
    desk: Any = actor.remote(unfinished, folder.next_number(), base.cluster.max_failures + 1)
    searcher, scheduler = points, FIFOScheduler()
    if ladder:
        from larmor.tuning.search.asha import LegSearch, WaitAtRungs

        searcher = LegSearch(points, ladder, desk, missing, ended)
        scheduler = WaitAtRungs(ladder, desk, config.objectives.keys[0], config.reduction_factor)
    slots = Slots(base, folder, config, name, count)
    slots.start()
    with tempfile.TemporaryDirectory(prefix="larmor-tune-") as scratch:
        tune.Tuner(
            tune.with_resources(tune.with_parameters(DeskTrainable, desk=desk), RESOURCES),
            tune_config=tune.TuneConfig(
                num_samples=(missing + len(ladder.waiting())) * (len(ladder.rungs) + 1) if ladder else missing,
                max_concurrent_trials=count,
                search_alg=searcher,
                scheduler=scheduler,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=experiment.name,
                storage_path=scratch,
                verbose=0,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=3),  # of a trial's process here; slots have their own
            ),
        ).fit()
    for trial, failure in ray.get(desk.close.remote()).items():
        folder.write_failure(trial, failure.parameters, failure.reason)
    slots.join(GOODBYE_SECONDS)


def _ladder(
    config: SweepConfig,
    base: Experiment,
    folder: SweepFolder,
    ended: Sequence[TrialRecord],
    unfinished: Iterable[str],
) -> Ladder:
    """The rungs, with what trials of an earlier call reached on them; unfinished ones until their last checkpoint."""
    training, first_metric = base.training, config.objectives.first
    first = config.first_rung(training.num_steps, training.validate_every)
    ladder = Ladder(first, config.reduction_factor, training.num_steps, find_metric(first_metric).higher_is_better)
    key = f"val/{first_metric}"
    stopped = {trial.id: trial.state == "stopped" for trial in ended if trial.is_rated}
    trials = [*stopped, *unfinished]
    for trial, reached in zip(trials, run_in_threads(lambda id: _reached(folder, id, key), trials, 8), strict=True):
        ladder.remember(trial, reached, waits=stopped.get(trial, False))
    return ladder


def _reached(folder: SweepFolder, trial: str, key: str) -> dict[int, float]:
    """Step → figure of a trial until its last checkpoint."""
    run = folder.trial_run(trial)
    last = run.latest()
    rows = run.history() if last is not None else []
    return {int(row["step"]): row[key] for row in rows if key in row and last is not None and row["step"] <= last.step}
