"""Ray Tune over Ray Train: every trial is a training of its own with its own run folder."""

from __future__ import annotations

import os
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from cluster.experiment import dump_yaml
from cluster.lease import Say, hold, refuse_if_held
from cluster.ray_cluster import require_resources, worker_bundle
from cluster.ray_train import train_on_ray
from cluster.run import check_data, claimed, finish, refuse_another
from recon.metrics import HIGHER_IS_BETTER
from tuning.experiment import SweepExperiment
from tuning.space import Dimension, describe_value, parse_space, starting_point, with_values
from tuning.sweep_folder import SweepFolder

# keys in which the same sweep may differ when it is started again
MAY_DIFFER = ("cluster.", "sweep.num_trials")
# a trial's driver only waits for its workers: it takes no CPU from them, and stays on the head node
DRIVER = {"node:__internal_head__": 0.001}


def check_sweep(experiment: SweepExperiment, folder: SweepFolder, overwrite: bool) -> dict[str, Any] | None:
    """The result, if the sweep has all its trials already. Writes nothing.

    Raises `InputError` for a bad space, data that do not fit, if another process is known to write to the folder, or
    if another sweep of that name is there and `overwrite` is False. The same sweep again goes on; it may have more
    trials.
    """
    trial = with_values(experiment, experiment.sweep.overrides)
    parse_space(experiment.sweep.space, trial)
    check_data(trial)
    if folder.exists() and not overwrite:
        refuse_another(experiment, folder.config_yaml(), folder.url, MAY_DIFFER)
        result = folder.result()
        if result and len(result["trials"]) >= experiment.sweep.num_trials:
            return result
    refuse_if_held(folder.store)
    return None


def _claim(experiment: SweepExperiment, folder: SweepFolder, overwrite: bool) -> None:
    if overwrite:
        folder.delete()
    if not folder.create(dump_yaml(experiment)):
        refuse_another(experiment, folder.config_yaml(), folder.url, MAY_DIFFER)


def run_sweep(experiment: SweepExperiment, folder: SweepFolder, overwrite: bool, say: Say = print) -> dict[str, Any]:
    """Run the trials that are missing on the connected cluster, as many at once as it holds.

    With `overwrite` an old sweep is deleted, but only once the new one can start. Trials that ended in an
    earlier call count, and teach the sampler. Raises `InputError` if no trial finishes, the cluster cannot
    hold one, or another process writes to the folder; `say` is told if it takes waiting to find that out.
    """
    base = with_values(experiment, experiment.sweep.overrides)
    bundle = worker_bundle(base.cluster.cpus_per_worker, base.cluster.use_gpu)
    require_resources([bundle] * base.cluster.fewest_workers, base.cluster.wait_seconds)
    with hold(folder.store, say):
        _claim(experiment, folder, overwrite)
        _run_missing_trials(experiment, base, bundle, folder)
        return folder.write_result(experiment.sweep.metric)


def _run_missing_trials(
    experiment: SweepExperiment, base: Any, bundle: Mapping[str, float], folder: SweepFolder
) -> None:
    import ray
    from ray import tune

    dimensions = parse_space(experiment.sweep.space, base)
    have = ray.cluster_resources()
    concurrent = min(max(1, int(have[name] // (amount * base.cluster.most_workers))) for name, amount in bundle.items())
    done = [trial for trial in folder.trials() if trial["state"] == "finished"]
    missing = experiment.sweep.num_trials - len(done)
    metric = experiment.sweep.metric
    if missing > 0:
        os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
        os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # Larmor shows the trials itself
        with tempfile.TemporaryDirectory(prefix="larmor-tune-") as scratch:
            tune.Tuner(
                tune.with_resources(_trial_function(base.model_dump(mode="json"), folder.url), DRIVER),
                tune_config=tune.TuneConfig(
                    metric=f"val/{metric}",
                    mode="max" if HIGHER_IS_BETTER[metric] else "min",
                    num_samples=missing,
                    max_concurrent_trials=concurrent,
                    search_alg=_sampler(experiment, dimensions, base, done),
                    scheduler=_scheduler(experiment, base),
                ),
                run_config=tune.RunConfig(name=experiment.name, storage_path=scratch, verbose=0),
            ).fit()


def describe_trial(trial: Mapping[str, Any], metric: str) -> str:
    """One line about a trial that has ended."""
    values = ", ".join(f"{key} = {describe_value(value)}" for key, value in trial["parameters"].items())
    outcome = (
        f"val/{metric} {trial['metrics'][f'val/{metric}']:.4f}" if trial["state"] == "finished" else trial["state"]
    )
    return f"trial {trial['id']}: {values} → {outcome} ({trial['seconds']:.0f} s)"


def _trial_function(base: Mapping[str, Any], sweep_url: str) -> Callable[[dict[str, Any]], None]:
    def run_trial(values: dict[str, Any]) -> None:
        from ray import tune
        from ray.tune.integration.ray_train import TuneReportCallback

        from cluster.experiment import Experiment, build

        folder = SweepFolder(sweep_url)
        trial = f"{tune.get_context().get_trial_id()}-{uuid.uuid4().hex[:6]}"
        experiment = with_values(build(base, Experiment, "sweep"), values, name=trial)
        run = folder.trial_run(trial)
        record: dict[str, Any] = {"parameters": values, "began": time.time(), "metrics": {}}
        try:
            with claimed(experiment, run, False, print):
                train_on_ray(experiment, run, callbacks=[TuneReportCallback()])
                record |= {"state": "finished", "metrics": finish(experiment, run)["metrics"]}
        except Exception as error:
            record |= {"state": "failed", "error": str(error)[:2000]}
            raise
        finally:
            record.setdefault("state", "stopped")
            folder.write_trial(trial, {**record, "seconds": time.time() - record["began"]})

    return run_trial


def _sampler(experiment: SweepExperiment, dimensions: list[Dimension], base: Any, done: list[dict[str, Any]]) -> Any:
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = {item.key: _distribution(item) for item in dimensions}
    metric, seed = experiment.sweep.metric, experiment.sweep.seed + len(done)
    samplers = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
    first = starting_point(dimensions, base)
    known: dict[str, Any] = {}
    if done:
        known = {
            "points_to_evaluate": [trial["parameters"] for trial in done],
            "evaluated_rewards": [trial["metrics"][f"val/{metric}"] for trial in done],
        }
    elif first is not None:
        known = {"points_to_evaluate": [first]}
    return OptunaSearch(
        space,
        metric=f"val/{metric}",
        mode="max" if HIGHER_IS_BETTER[metric] else "min",
        sampler=samplers[experiment.sweep.sampler](seed=seed),
        **known,
    )


def _distribution(item: Dimension) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if item.kind == "choice":
        return CategoricalDistribution(item.arguments)
    if item.kind == "randint":
        return IntDistribution(item.arguments[0], item.arguments[1] - 1)
    low, high = item.arguments
    return FloatDistribution(low, high, log=item.kind == "loguniform")


def _scheduler(experiment: SweepExperiment, base: Any) -> Any:
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    if experiment.sweep.scheduler == "none":
        return FIFOScheduler()
    return ASHAScheduler(time_attr="step", max_t=base.training.num_steps, grace_period=base.training.validate_every)
