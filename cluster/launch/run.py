"""Start or resume a run: claim its folder, train under Ray or in this process, record the result."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import yaml
from pydantic import ValidationError

from larmor.cluster.experiments.experiment import PINS, Experiment, differing_keys, dump_yaml
from larmor.cluster.launch.initial import adopt_initial, check_initial
from larmor.cluster.runs.initial import Initial
from larmor.cluster.runs.lease import Say, hold, refuse_if_held
from larmor.cluster.runs.origin import check_origin, pinned, record_origin
from larmor.cluster.runs.run_folder import RunFolder
from larmor.cluster.runs.run_result import RunResult
from larmor.cluster.worker.tracking import send_the_rest
from larmor.recon.decoding.trials import open_trials, split_trials
from larmor.recon.recipe.own_metric import find_metric
from larmor.recon.recipe.signal import check_modality, check_phase
from larmor.storage.dataset.dataset import read_split
from larmor.storage.loading.config import check_identity
from larmor.storage.loading.stacks import check_stack
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore

CHANGEABLE = (
    "cluster.",
    "code.paths",  # where it lies; what it is, is pinned
    "data.client",
    "data.read_threads",
    "data.read_ahead_bytes",
    "data.memory_cache_bytes",
    "data.disk_cache",
    "generator.start.cache_bytes",
    "generator.start.disk_cache_bytes",
    "training.backend",
    "training.compile",
    "training.cuda_graphs",
    "training.zero_stage",
    "training.log_every",
    "training.checkpoint_every",
    "training.keep_",
    "training.validation_images",
    "tracking.",
)
"""What keys may begin with that say how something is trained and not what: checkpoints and samples belong to none."""


def check_data(experiment: Experiment) -> None:
    """Raises `InputError` if the data set that the experiment names is not there, or lacks a split, the size or
    the phase."""
    data = ObjectStore(experiment.data.url)
    data.check_access()
    if experiment.decoding is not None:
        split_trials(open_trials(experiment.data), experiment.decoding)
        return
    crop = experiment.data.crop
    for split in (experiment.data.train_split, experiment.data.validation_split):
        info = read_split(data, split)
        check_identity(experiment.data, info.identity)
        check_modality(info.modality, experiment.signal)
        check_phase(experiment.signal, split, info.image_volumes)
        check_stack(info, experiment.data.stack)
        height, width = info.largest_matrix
        if crop[0] > height or crop[1] > width:
            raise InputError(
                f"data.crop={crop[0]}×{crop[1]} does not fit into the slices of {height}×{width}; lower it"
            )


def check(experiment: Experiment, run: RunFolder, overwrite: bool) -> RunResult | None:
    """The result, if `run` has finished already. Writes nothing.

    The same experiment again resumes, for longer if it has more steps; keys that are `CHANGEABLE` may differ. Raises
    `InputError` if another experiment has the folder and `overwrite` is False, or one with another data set or mask; if
    the data set lacks what the experiment needs; if `init_from` leads nowhere or to weights that do not fit; and if
    another process is known to write to the folder.
    """
    check_data(experiment)
    run.store.check_access()
    if not overwrite and run.store.exists("config.yaml"):
        known_yaml = run.config_yaml()
        refuse_another(experiment, known_yaml, run.url, _may_differ(experiment, known_yaml))
        check_origin(experiment, run)
        if (result := run.result()) is not None and not _is_longer(experiment, known_yaml):
            return result
    check_initial(experiment, run, overwrite)
    refuse_if_held(run.store)
    return None


@contextlib.contextmanager
def claimed(experiment: Experiment, run: RunFolder, overwrite: bool, say: Say) -> Iterator[Experiment]:
    """Make `run` the folder of `experiment`, and of this process alone while the block runs.

    Gives the experiment to train: with the data set and the mask pinned that the run was begun with.

    `say` is told if it takes waiting to find out whether another process is still there. Raises `InputError` if it is,
    or if another experiment, or one with another data set or mask, has the folder and `overwrite` is False.
    """
    with hold(run.store, say) as run.lease:
        if overwrite:
            run.delete()
        experiment = pinned(experiment)
        if initial := claim(experiment, run):
            for line in initial.describe():
                say(line)
        yield experiment


def claim(experiment: Experiment, run: RunFolder) -> Initial | None:
    """Make `run` the folder of `experiment`, and record how it is trained now.

    Returns what a new run starts from, other than random weights. Raises what `refuse_another` and `adopt_initial`
    raise.
    """
    wanted = dump_yaml(experiment)
    if not run.create(wanted) and (known_yaml := run.config_yaml()) != wanted:
        refuse_another(experiment, known_yaml, run.url, _may_differ(experiment, known_yaml))
        check_origin(experiment, run)  # before the configuration names another data set
        if _is_longer(experiment, known_yaml):
            run.clear_result()  # first: it is that of the shorter training
        run.replace_config(wanted)
    initial = adopt_initial(experiment, run)
    record_origin(experiment, run)
    return initial


def _may_differ(experiment: Experiment, known_yaml: str) -> tuple[str, ...]:
    return (*CHANGEABLE, "training.num_steps") if _is_longer(experiment, known_yaml) else CHANGEABLE


def _is_longer(experiment: Experiment, known_yaml: str) -> bool:
    return experiment.training.num_steps > yaml.safe_load(known_yaml)["training"]["num_steps"]


def refuse_another(experiment: Experiment, known_yaml: str, url: str, may_differ: Sequence[str]) -> None:
    """Raises `InputError` if the configuration at `url` differs in more than keys beginning with `may_differ`.

    What data set and mask are pinned is for `check_origin` to compare. A key that an older Larmor did not have counts
    with its default.
    """
    known = yaml.safe_load(known_yaml)
    with contextlib.suppress(ValidationError):  # of a newer Larmor: compared as it stands
        known = type(experiment).model_validate(known).model_dump(mode="json")
    differing = [
        key
        for key in differing_keys(known, experiment.model_dump(mode="json"))
        if not key.startswith(tuple(may_differ)) and key not in PINS.values()
    ]
    if differing:
        raise InputError(
            f"{url}: another experiment of that name exists; it differs in {', '.join(differing[:5])}; choose "
            "another name=…, or pass --overwrite to delete it"
        )


def with_the_rest_sent(experiment: Experiment, run: RunFolder, result: RunResult) -> RunResult:
    """The result of a finished run, with fewer warnings if its trackers can be reached now and get what they lack."""
    send_the_rest(experiment, run)
    warnings = tuple(run.warnings())
    if warnings == result.warnings:
        return result
    result = dataclasses.replace(result, warnings=warnings)
    run.write_result(result)
    return result


def finish(experiment: Experiment, run: RunFolder) -> RunResult:
    """Write and return the run's result: its best checkpoint by `training.best_metric`, and what went wrong."""
    metric = experiment.training.best_metric
    best = run.best(f"val/{metric}", find_metric(metric).higher_is_better)
    result = RunResult("finished", best.step, best.folder, dict(best.metrics), tuple(run.warnings()))
    run.write_result(result)
    return result
