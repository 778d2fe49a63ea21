"""Bring the best checkpoint of a run as a model directory. Needs neither Ray, DeepSpeed nor PyTorch, and no pickle.

    generator.safetensors    the weights
    config.yaml              the experiment
    metrics.json             where they come from: run, step, validation metrics, checksum, data set, mask, versions
    model-card.md            the same for people (cluster/runs/model_card.py)
    checkpoint/…             with `full`: every file of the checkpoint, as a training that resumes reads it

While a pull runs, or after it broke, what has arrived lies beside it in NAME.partial; the next one resumes there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from larmor.cluster.runs.checkpoint import WEIGHTS, Checkpoint
from larmor.cluster.runs.model_card import write_card
from larmor.cluster.runs.origin import Folder, metric_of, read_origin
from larmor.cluster.runs.published import Listing, Place, fetch
from larmor.cluster.runs.run_folder import REMOVED, RunFolder
from larmor.recon.recipe.metric import check_metric
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.lock_file import locked
from larmor.storage.objects.store_errors import StoreAway

MODEL_FORMAT = 1  # as larmor.recon.models.model reads it, which needs PyTorch
_TRIES = 5  # a running training may remove a checkpoint between our look and our download


@dataclass(frozen=True)
class Pulled:
    """The checkpoint that was brought, and what the user should know of it."""

    run_url: str
    checkpoint: Checkpoint
    notes: tuple[str, ...]


@dataclass(frozen=True)
class TrialOrigin:
    """Which trial of which sweep a run is; None is what its record does not state.

    `notes` are what the user should know of how the run was chosen.
    """

    sweep: str
    trial: str
    parameters: Mapping[str, Any] | None = None
    seconds: float | None = None
    num_images: int | None = None
    notes: tuple[str, ...] = ()

    def stated(self) -> dict[str, Any]:
        """For JSON."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value is not None}


def metric_direction(folder: Folder, metric: str) -> tuple[str, bool]:
    """`val/psnr` or `psnr` → ("val/psnr", True), of a run or a sweep. Raises `InputError` for an unknown metric."""
    short = check_metric(metric)
    return f"val/{short}", metric_of(folder, short).higher_is_better


def pull_run(
    run: RunFolder,
    metric: str,
    target: Path,
    overwrite: bool = False,
    full: bool = False,
    about: TrialOrigin | None = None,
) -> Pulled:
    """Write the model directory `target` from the run's best checkpoint by `metric`, verified by checksum.

    The directory appears whole or not at all. Of equal checkpoints the earliest is taken. Raises `InputError` for a
    run without a checkpoint that has the metric, if files of its best one are missing or do not match their checksum,
    for a `target` that exists (unless `overwrite`), and while another pull writes to it. `about` goes to
    `metrics.json`.
    """
    check_target(target, overwrite)
    name, higher = metric_direction(run, metric)
    config = run.config_yaml()
    with _partial_folder(target) as partial:
        model = partial / "model"
        try:
            best = _download_best(run, name, higher, partial, full)
        except InputError as error:
            if not isinstance(error, StoreAway):
                shutil.rmtree(model, ignore_errors=True)  # resuming does not repair wrong data
            raise
        notes = (*(about.notes if about else ()), *_notes(run, config, name, best))
        (model / "config.yaml").write_text(config)
        record = {
            "format": MODEL_FORMAT,
            "source": f"{run.url}/{best.folder}",
            **(about.stated() if about else {}),
            "chosen_by": name,
            "notes": list(notes),
            "step": best.step,
            "preset": "paper",
            "metrics": dict(best.metrics),
            "sha256": {WEIGHTS: best.files[WEIGHTS].sha256},
            "origin": read_origin(run),
        }
        (model / "metrics.json").write_text(json.dumps(record, indent=1))
        write_card(model, target.name)
        _put_in_place(model, target)
    return Pulled(run.url, best, notes)


def pull_published(place: Place, listing: Listing, target: Path, overwrite: bool = False) -> Pulled:
    """Write the model directory `target` from a published model, verified by checksum.

    The directory appears whole or not at all; a pull that broke is resumed. Raises `InputError` as `pull_run` does for
    `target`, for files that are missing or do not match, and for a record that no Larmor wrote.
    """
    check_target(target, overwrite)
    with _partial_folder(target) as partial:
        model = partial / "model"
        _begin(partial, json.dumps([place.url, listing.sha256]))
        try:
            fetch(place, listing, model)
            pulled = _pulled(place, listing, model)
        except InputError as error:
            if not isinstance(error, StoreAway):
                shutil.rmtree(model, ignore_errors=True)
            raise
        for path in list(model.iterdir()):
            if path.name not in listing.files:  # an earlier pull of another version left it
                path.unlink()
        _put_in_place(model, target)
    return pulled


def _pulled(place: Place, listing: Listing, model: Path) -> Pulled:
    try:
        record = json.loads((model / "metrics.json").read_text())
        metrics = {str(name): float(value) for name, value in record["metrics"].items()}
        step, notes = int(record["step"]), tuple(str(note) for note in record.get("notes", ()))
        agrees = record["sha256"][WEIGHTS] == listing.files[WEIGHTS].sha256
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{place.url}: its metrics.json is not what Larmor writes ({str(error)[:100]})") from error
    if not agrees:
        raise InputError(f"{place.url}: its metrics.json is of other weights than those beside it; push it again")
    return Pulled(place.url, Checkpoint(place.url, step, metrics, listing.files), notes)


def check_target(target: Path, overwrite: bool) -> None:
    """Raises `InputError` if `target` is taken, or may not be overwritten."""
    if target.is_file():
        raise InputError(f"{target}: is a file; choose another --to")
    if target.exists() and not overwrite:
        raise InputError(f"{target}: already exists; pass --overwrite or choose another --to")
    if target.exists() and not (target / WEIGHTS).is_file() and any(target.iterdir()):
        raise InputError(f"{target}: is not a model directory, so it is not overwritten; choose another --to")


@contextlib.contextmanager
def _partial_folder(target: Path) -> Iterator[Path]:
    """The folder beside `target`, for one process alone; it stays if something in it is worth resuming."""
    partial = target.with_name(f"{target.name}.partial")
    if partial.is_symlink():
        raise InputError(f"{partial}: is a link; remove it if you did not make it, or choose another --to")
    partial.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(partial / "lock"))
        except BlockingIOError as error:
            raise InputError(f"{target}: another `larmor pull` is writing to it; wait for it") from error
        try:
            yield partial
        finally:
            if not (partial / "model").exists():
                shutil.rmtree(partial, ignore_errors=True)


def _download_best(run: RunFolder, metric: str, higher: bool, partial: Path, full: bool) -> Checkpoint:
    """Files of the best checkpoint, in `partial/model`; what an earlier pull of the same one brought is kept."""
    for _ in range(_TRIES):
        best = _best(run, metric, higher)
        try:
            _download(run, best, partial, full)
        except InputError:
            if run.store.exists(f"{best.folder}/manifest.json"):
                raise  # else the run has found a better one and removed this one since we looked
        else:
            return best
    raise InputError(f"{run.url}: its best checkpoint changes faster than it can be read; pull again")


def best_checkpoint(run: RunFolder, metric: str) -> Checkpoint:
    """The one that `pull_run` would take now. Raises `InputError` as it does."""
    return _best(run, *metric_direction(run, metric))


def _best(run: RunFolder, metric: str, higher: bool) -> Checkpoint:
    """`RunFolder.best`, but damage to the best one's weights is an error: the next best is another model."""
    best = run.best(metric, higher)
    sign = 1 if higher else -1
    for item in run.published():
        value = item.metrics.get(metric)
        if item.weights_problem and value is not None and sign * value > sign * best.metrics[metric]:
            raise InputError(
                f"{run.url}/{item.folder}/{item.weights_problem}, and this checkpoint is the best by {metric}; remove "
                "its folder to take the next best one"
            )
    if WEIGHTS not in best.files:
        raise InputError(f"{run.url}/{best.folder}: its manifest names no {WEIGHTS}; remove this checkpoint's folder")
    return best


def _download(run: RunFolder, best: Checkpoint, partial: Path, full: bool) -> None:
    model = partial / "model"
    _begin(partial, json.dumps([f"{run.url}/{best.folder}", dataclasses.asdict(best.files[WEIGHTS])]))
    run.download(best, model, [WEIGHTS], resume=True)
    if full:
        state = model / "checkpoint"
        state.mkdir(exist_ok=True)
        if not (state / WEIGHTS).exists():
            os.link(model / WEIGHTS, state / WEIGHTS)
        run.download(best, state, resume=True)
    else:
        shutil.rmtree(model / "checkpoint", ignore_errors=True)


def _begin(partial: Path, source: str) -> None:
    """Keep what an earlier pull brought only if it was of the same source."""
    begun = partial / "source.json"
    if not begun.is_file() or begun.read_text() != source:
        shutil.rmtree(partial / "model", ignore_errors=True)
        begun.write_text(source)


def _notes(run: RunFolder, config: str, metric: str, best: Checkpoint) -> Iterator[str]:
    """What is to be known of a run that did not finish, that lost checkpoints, or that keeps them by another metric."""
    result = run.result()
    if result is None:
        failure = run.failure()
        yield f"the run ended early ({failure})" if failure else "the run has not finished: the best so far"
    content = yaml.safe_load(config)
    training = content.get("training", {}) if isinstance(content, dict) else {}
    kept_by = f"val/{training.get('best_metric', 'psnr')}"
    if kept_by != metric:
        yield f"the run keeps its best checkpoint by {kept_by}: by {metric} this is the best of those that are kept"
    elif result and (result.checkpoint or best.folder) != best.folder:
        yield f"the run's result names another checkpoint, {result.checkpoint}, which no longer exists"
    if best.problem:
        yield f"no training can resume from {best.folder}, because only its weights are whole: {best.problem}"
    yield from (warning for warning in run.warnings() if REMOVED in warning)
    for item in run.published():
        if item.problem and metric not in item.metrics:
            yield f"{item.folder} was left out: {item.problem}"


def _put_in_place(model: Path, target: Path) -> None:
    if target.exists():
        old = model.parent / "old"
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    model.rename(target)
