"""Train, and search for the values to train with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from larmor.cluster.experiments.experiment import Experiment, as_override
from larmor.cluster.experiments.tracking import check_trackers
from larmor.cluster.launch.run import check, claimed, finish, with_the_rest_sent
from larmor.cluster.on_ray.ray_cluster import connected, require_resources, worker_bundle
from larmor.cluster.on_ray.ray_train import train_on_ray
from larmor.cluster.runs.reports import new_reports
from larmor.cluster.runs.run_folder import RunFolder
from larmor.cluster.runs.run_result import RunResult
from larmor.commands.feedback import QUIET, Feedback, Say
from larmor.commands.follow import Follower
from larmor.recon.recipe.own_code import check_code, make_importable
from larmor.recon.recipe.own_name import is_own
from larmor.recon.recipe.systems import SYSTEMS
from larmor.storage.objects.errors import InputError
from larmor.tuning.search.experiment import SweepExperiment, load_sweep_experiment
from larmor.tuning.search.records import Parameters, SweepResult, TrialRecord
from larmor.tuning.search.space import describe_value
from larmor.tuning.search.sweep import check_sweep, count_trials, run_sweep
from larmor.tuning.search.sweep_folder import SweepFolder, best_parameters, new_trials


def load_experiment(
    source: str, overrides: Sequence[str] = (), best_of: str | None = None, say: Say = QUIET.say
) -> SweepExperiment:
    """An experiment's YAML file, or a shipped one by name, with `key=value` overrides.

    With `best_of`, the URL of a sweep, its best parameters are taken first, and `say` is told which. Raises
    `InputError` for a missing file, for an unknown key (naming the valid ones) and for an impossible value.
    """
    found = best_parameters(best_of) if best_of else {}
    for key, value in found.items():
        say(f"{key} = {describe_value(value)} (best of {best_of})")
    if best_of:
        _check_whose_system(found, load_sweep_experiment(source, overrides), best_of)
    experiment = load_sweep_experiment(source, [*(as_override(key, value) for key, value in found.items()), *overrides])
    if best_of and experiment.own_parts:
        _check_whose_code(experiment, load_sweep_experiment(source, overrides), best_of)
    return experiment


def _check_whose_system(found: Parameters, asked: Experiment, best_of: str) -> None:
    """A system is imported when the experiment is read: before that, none may come from the sweep, nor its code."""
    system = str(found.get("system", asked.system))
    if system != asked.system and system not in SYSTEMS:
        raise InputError(
            f"{best_of}: names code of its own (system={system}), which runs only if you name it: add system={system} "
            "if you know it"
        )
    if is_own(asked.system) and any(key.partition(".")[0] == "code" for key in found):
        raise InputError(f"{best_of}: names code of its own (code), which runs only if you name it")


def _check_whose_code(experiment: Experiment, asked: Experiment, best_of: str) -> None:
    """A sweep, which may be somebody else's, brings values and no code."""
    new = [f"{key}={name}" for key, name in experiment.own_parts.items() if asked.own_parts.get(key) != name]
    if new or experiment.code != asked.code:
        raise InputError(
            f"{best_of}: names code of its own ({', '.join(new) or 'code'}), which runs only if you name it: add "
            f"{' '.join(new) or 'code=…'} if you know it"
        )


def train(
    experiment: str | Experiment,
    overrides: Sequence[str] = (),
    *,
    address: str | None = None,
    local: bool = False,
    device: str = "cpu",
    best_of: str | None = None,
    overwrite: bool = False,
    feedback: Feedback = QUIET,
) -> RunResult:
    """Train, or resume a training exactly where it stopped (`larmor train`).

    `experiment`, `overrides` and `best_of` are as for `load_experiment`; `experiment` may also be one that is already
    loaded. `address` is a running Ray cluster (auto, HOST:PORT or ray://…); without it a cluster starts on this
    machine. With `local` the training runs in this process on `device` (cpu or cuda), without Ray.

    Returns the run's result: `step` and `metrics` of its best checkpoint, `warnings`. Raises `InputError` for
    a bad experiment, and for a run of that name with another experiment (unless `overwrite`). Raises
    `TrainingDiverged` if the training diverges.
    """
    if isinstance(experiment, str):
        experiment = load_experiment(experiment, overrides, best_of, feedback.say)
    config = experiment.training_part() if isinstance(experiment, SweepExperiment) else experiment
    use_own_code(config)
    check_trackers(config.tracking)
    run = RunFolder(config.run_url)
    result = check(config, run, overwrite)
    if result is not None:
        feedback.say(f"{run.url}: already finished; nothing to do")
        return with_the_rest_sent(config, run, result)
    feedback.say(f"run: {run.url}")
    return _train(config, run, address, device if local else None, overwrite, feedback)


def use_own_code(experiment: Experiment) -> None:
    """Let code of the user's own be imported here, and try its parts out.

    Raises `InputError` for code that is not there or not the one that is named, and for a part that does not work.
    """
    check_code(experiment.code)
    make_importable(experiment.code.paths)
    if experiment.own_parts:
        from larmor.recon.training.own_parts import check_own_parts  # it needs PyTorch

        check_own_parts(experiment)


def _train(
    config: Experiment, run: RunFolder, address: str | None, device: str | None, overwrite: bool, feedback: Feedback
) -> RunResult:
    """With a device in this process, without one on Ray. An old run is not deleted for one that cannot start."""
    if device:
        from larmor.cluster.launch.run_locally import check_local, train_locally  # they need PyTorch

        check_local(config, device)
    with (
        contextlib.nullcontext() if device else _cluster(config, address, feedback.say),
        claimed(config, run, overwrite, feedback.say) as pinned,
    ):
        with Follower(new_reports(run.store), feedback.report):
            if device:
                train_locally(pinned, run, device, feedback.say)
            else:
                train_on_ray(pinned, run, say=feedback.say)
        return finish(pinned, run)


@contextlib.contextmanager
def _cluster(config: Experiment, address: str | None, say: Say) -> Iterator[None]:
    with connected(address, config.code.paths, say):
        bundle = worker_bundle(config.cluster.cpus_per_worker, config.cluster.use_gpu)
        require_resources([bundle] * config.cluster.fewest_workers, config.cluster.wait_seconds)
        yield


def sweep(
    experiment: str | SweepExperiment,
    overrides: Sequence[str] = (),
    *,
    address: str | None = None,
    overwrite: bool = False,
    feedback: Feedback = QUIET,
) -> SweepResult:
    """Search a, b and the clipping constant, or any key of the experiment, with Ray Tune (`larmor sweep`).

    The arguments are as for `train`. The section `sweep` of the experiment defines the search, and an override
    `space.KEY=loguniform(low,high)` adds a dimension. An interrupted sweep is resumed. `feedback.report` gets the
    record of each trial that has ended.

    Returns the sweep's result: `best`, the record of its best trial, and with two metrics `front`, the names of the
    trials on it. Raises `InputError` as `train` does, and if no trial finished.
    """
    config = load_experiment(experiment, overrides) if isinstance(experiment, str) else experiment
    use_own_code(config)
    check_trackers(config.tracking)
    folder = SweepFolder(config.sweep_url)
    result = check_sweep(config, folder, overwrite)
    if result is not None:
        return result
    planned = count_trials(config)
    feedback.say(f"sweep: {folder.url}, {planned} trials, by {' and '.join(config.sweep.objectives.keys)}")
    ended = set()

    def show(trial: TrialRecord) -> None:
        feedback.report(trial)
        ended.add(trial.id)
        feedback.progress("trials", len(ended), planned)

    with connected(address, config.code.paths, feedback.say):
        feedback.progress("trials", 0, planned)
        with Follower(new_trials(folder), show):
            return run_sweep(config, folder, overwrite, feedback.say)
