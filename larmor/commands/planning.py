"""What `train`, `sweep` and `submit` would do, in words (`--dry-run`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from larmor.cluster.experiments.experiment import Experiment
from larmor.cluster.experiments.tracking import check_trackers
from larmor.cluster.launch.run import check
from larmor.cluster.runs.run_folder import RunFolder
from larmor.commands.training import use_own_code
from larmor.storage.objects.store_errors import StoreAway
from larmor.tuning.search.experiment import SweepExperiment
from larmor.tuning.search.sweep import check_sweep, count_trials, trial_experiment
from larmor.tuning.search.sweep_folder import SweepFolder

if TYPE_CHECKING:
    from larmor.storage.loading.foresight import Foreseen

Facts = dict[str, str]
_MIB = 2**20


def plan_training(experiment: Experiment, device: str = "cpu", overwrite: bool = False) -> Facts:
    """Title → what a training would do. A few steps are trained on `device` of this machine; nothing is written.

    Raises `InputError` as `train` does before it begins.
    """
    use_own_code(experiment)
    check_trackers(experiment.tracking)
    run = RunFolder(experiment.run_url)
    done = check(experiment, run, overwrite) is not None
    steps = experiment.training.num_steps
    state = "finished already; nothing to do" if done else _state(run, overwrite)
    return {
        "data": experiment.data.url,
        "output": f"{run.url} ({state})",
        "checkpoints": f"{run.url}/checkpoints, every {experiment.training.checkpoint_every} steps",
        "resources": _resources(experiment),
        **_initial(experiment),
        "trainings": "1",
        **_costs(experiment, device, 1, steps),
    }


def plan_sweep(experiment: SweepExperiment, device: str = "cpu", overwrite: bool = False) -> Facts:
    """The same of a sweep. Its time is that of all trials one after another, none of them stopped early.

    Raises `InputError` as `sweep` does before it begins.
    """
    use_own_code(experiment)
    check_trackers(experiment.tracking)
    folder, trial = SweepFolder(experiment.sweep_url), trial_experiment(experiment)
    done = check_sweep(experiment, folder, overwrite) is not None
    count, at_once = count_trials(experiment), experiment.sweep.concurrent_trials
    return {
        "data": experiment.data.url,
        "output": f"{folder.url}{' (finished already; nothing to do)' if done else ''}",
        "checkpoints": f"{folder.url}, in the folder of each trial, every {trial.training.checkpoint_every} steps",
        "resources": f"{_resources(trial)} for each trial, {at_once or 'as many as there is room for'} at once",
        **_initial(experiment),
        "trainings": f"{count} trials, by {experiment.sweep.sampler}: {', '.join(experiment.sweep.space) or 'no key'}",
        **_costs(trial, device, count, trial.training.num_steps),
    }


def plan_job(experiment: SweepExperiment, run_sweep: bool) -> Facts:
    """The same of a job. Of a store that its cluster reaches and this machine does not, nothing is told.

    Raises `InputError` as `submit` does before it asks the cluster.
    """
    try:
        return plan_sweep(experiment) if run_sweep else plan_training(experiment.training_part())
    except StoreAway as error:
        from larmor.recon.training.probe import count_parameters  # it needs PyTorch

        trial = trial_experiment(experiment) if run_sweep else experiment.training_part()
        return {
            "data": f"{trial.data.url}, which this machine does not reach ({error})",
            "output": experiment.sweep_url if run_sweep else trial.run_url,
            "resources": _resources(trial),
            "trainings": f"{count_trials(experiment)} trials" if run_sweep else "1",
            "steps": str(trial.training.num_steps),
            **_parameters(count_parameters(trial)),
        }


def _parameters(found: Mapping[str, int]) -> Facts:
    return {f"parameters of {name}": f"{count:,}" for name, count in found.items()}


def _state(run: RunFolder, overwrite: bool) -> str:
    if not run.store.exists("config.yaml"):
        return "new"
    return "would be deleted and started again" if overwrite else "would be resumed"


def _initial(experiment: Experiment) -> Facts:
    return {} if experiment.init_from is None else {"initial weights": experiment.init_from.url}


def _resources(experiment: Experiment) -> str:
    cluster = experiment.cluster
    fewest, most = cluster.fewest_workers, cluster.most_workers
    workers = f"{fewest} to {most} workers" if fewest < most else f"{most} worker{'s' if most > 1 else ''}"
    gpu = " and 1 GPU" if cluster.use_gpu else ""
    return f"{workers}, each {cluster.cpus_per_worker} CPU{gpu}"


def _costs(experiment: Experiment, device: str, trainings: int, steps: int) -> Facts:
    from larmor.cluster.launch.dry_run import dry_run  # it needs PyTorch

    found = dry_run(experiment, device)
    where = f"measured with one worker's share of the batch on {device} of this machine"
    seconds = trainings * found.seconds(steps)
    each = "all trials one after another, none stopped early, " if trainings > 1 else ""
    return {
        "epoch": f"{found.samples} samples, {found.epoch_steps:.1f} steps",
        "steps": f"{steps}, {steps / found.epoch_steps:.1f} epochs",
        **_parameters(found.parameters),
        **_reading(experiment, found.reading),
        "memory": f"{found.probe.memory_bytes / _MIB:.0f} MiB for each worker, {where}",
        "time": f"{_duration(seconds)} at {found.probe.step_seconds:.3g} s a step, {each}without validation, "
        "checkpoints and communication",
    }


def _reading(experiment: Experiment, found: Foreseen | None) -> Facts:
    if found is None or not found.requests:
        return {}
    workers = experiment.cluster.most_workers
    return {
        "reading": f"requests of {found.request_bytes.mean() / 10**6:.2g} MB, and up to "
        f"{found.batch_bytes / _MIB:.0f} MiB of batches in the memory of each of {workers} "
        f"worker{'s' if workers > 1 else ''}, without caches"
    }


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"about {seconds / size:.1f} {unit}"
    return f"about {seconds:.0f} s"
