"""One cell of a grid: its systems trained, and evaluated beside compressed sensing on the same slices."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from larmor.cluster.experiments.experiment import Experiment
from larmor.cluster.launch.run import check, claimed, finish
from larmor.cluster.launch.run_locally import train_locally
from larmor.cluster.runs.origin import code_hash
from larmor.cluster.runs.pull import pull_run
from larmor.cluster.runs.run_folder import RunFolder
from larmor.recon.evaluation.evaluate import Evaluation, evaluate
from larmor.recon.evaluation.evaluation_file import Facts, load_evaluation, save_evaluation, saved_facts
from larmor.recon.evaluation.methods import classical_method, noisy_signal, standing_methods
from larmor.recon.evaluation.tables import slug, text_table
from larmor.recon.inference.figures import comparison
from larmor.recon.inference.inference import ZERO_FILLED, Method, Physics, network_method
from larmor.recon.models.model import load_model
from larmor.recon.physics.masks import describe_mask
from larmor.recon.recipe.mask_config import RatioRange
from larmor.recon.training.history import TrainingDiverged
from larmor.storage.loading.reader import SliceReader
from larmor.storage.objects.file_digest import file_digest

Say = Callable[[str], None]
_BATCH = 8


@dataclass(frozen=True)
class FilledCell:
    """The figures of a cell, the experiment of each system, and which of these diverged: they have no figures."""

    result: Evaluation
    trained: Mapping[str, Experiment]
    diverged: tuple[str, ...] = ()


@dataclass(frozen=True)
class CellPlace:
    """Where cells are filled: the test split, the folder of tables and models, the device, and who is told."""

    reader: SliceReader
    folder: Path
    device: str
    say: Say


@dataclass(frozen=True)
class CellOptions:
    """What a grid says of every cell (`GridConfig`); `overwrite` trains all anew."""

    classical: Sequence[str] = ()
    noises: Sequence[float] = ()
    every: int = 1
    keep_runs: bool = True
    overwrite: bool = False


def fill_cells(
    trained: Mapping[str, Experiment], place: CellPlace, options: CellOptions, ratio: float | None = None
) -> list[FilledCell]:
    """Train each system and evaluate all, at each level of `options.noises` or without noise.

    A system that was trained for a range of sampling ratios is evaluated at `ratio`, as the others are.

    What the folder and the runs already have is not repeated, unless the data set, the mask or the evaluating code is
    another one now.

    A system whose training diverges is left out, since that says something of it and nothing of the others.
    Writes the evaluations and a figure to the folder. Raises what training and evaluation raise, and `InputError` if
    something else lies where a run belongs.
    """
    models, diverged = {}, []
    for system, experiment in trained.items():
        model = place.folder / "models" / experiment.name
        try:
            _train(experiment, model, place, options)
        except TrainingDiverged as error:
            place.say(f"{experiment.name} is left out: {error}")
            diverged.append(system)
        else:
            models[system] = model
    physics = physics_of(next(iter(trained.values())), ratio)
    signals = [noisy_signal(physics.signal, level) for level in options.noises] or [physics.signal]
    return [
        FilledCell(
            _evaluated(models, dataclasses.replace(physics, signal=signal), place, options),
            trained,
            tuple(diverged),
        )
        for signal in signals
    ]


def _evaluated(models: Mapping[str, Path], physics: Physics, place: CellPlace, options: CellOptions) -> Evaluation:
    reader, folder, device, every = place.reader, place.folder, place.device, options.every
    without = rate_classical(options.classical, physics, reader, folder, every)
    weights = {name: file_digest(model / "generator.safetensors") for name, model in models.items()}
    facts = {"models": weights, "every": every, "data": reader.info.identity, **_rated_with(physics)}
    path = folder / "cells" / f"{slug(physics)}.json"
    if saved_facts(path) == facts:
        return _joined(without, load_evaluation(path))
    learned = {name: network_method(load_model(model, device).generator) for name, model in models.items()}
    methods = {**standing_methods(physics), **learned}
    result = _joined(without, _rate(methods, physics, reader, path, facts, device, every))
    comparison(result.examples, folder / f"comparison-{slug(physics)}.png")
    for line in text_table(result):
        place.say(line)
    return result


def physics_of(experiment: Experiment, ratio: float | None = None) -> Physics:
    """How the slices of a cell are undersampled: with one mask for all, also where a system was trained with many, and
    without the noise that one was trained with; the frames of stacks as in training. `ratio` takes the place of a range
    of sampling ratios."""
    mask = experiment.mask
    if ratio is not None and isinstance(mask.sampling_ratio, RatioRange):
        mask = mask.model_copy(update={"sampling_ratio": ratio})
    if experiment.data.stack == 1:
        mask = mask.model_copy(update={"per_slice": False})
    return Physics(experiment.data.crop, mask, experiment.signal.with_noise(0, 0), experiment.data.stack)


def rate_classical(
    classical: Sequence[str], physics: Physics, reader: SliceReader, folder: Path, every: int = 1
) -> Evaluation | None:
    """Zero-filled and compressed sensing; no training changes these figures, so they are kept in a file of their own.

    Another machine's file serves as well, so that compressed sensing need not run where the systems are trained.
    """
    if not classical:
        return None
    path = folder / "cells" / f"{slug(physics)}-classical.json"
    info = reader.info
    # not the identity: machines differ in the last bit of a Fourier transform
    data = [info.made_from, *info.volumes, info.index.tolist(), f"{info.scale.sum():.4g}"]
    facts = {"classical": list(classical), "data": data, "every": every, **_rated_with(physics)}
    if saved_facts(path) == facts:
        return load_evaluation(path)
    methods = {name: classical_method(name, physics) for name in classical}
    return _rate(methods, physics, reader, path, facts, "cpu", every)


def _rated_with(physics: Physics) -> Facts:
    """What figures depend on besides methods and data: with another mask or other code they are computed again."""
    return {"mask": describe_mask(physics.mask, physics.crop)["sha256"], "code": code_hash()}


def _rate(
    methods: Mapping[str, Method],
    physics: Physics,
    reader: SliceReader,
    path: Path,
    facts: Facts,
    device: str,
    every: int,
) -> Evaluation:
    result = evaluate(methods, physics, reader, "paper", _BATCH, lambda *_: None, device, every=every)
    save_evaluation(result, path, facts)
    return result


def _joined(classical: Evaluation | None, learned: Evaluation) -> Evaluation:
    """Both as one table; zero-filled is in both, and counts once."""
    if classical is None:
        return learned
    return dataclasses.replace(
        classical,
        methods=(*classical.methods, *learned.methods[1:]),
        slices=[*classical.slices, *(row for row in learned.slices if row.method != ZERO_FILLED)],
        volumes=[*classical.volumes, *(row for row in learned.volumes if row.method != ZERO_FILLED)],
        examples=[
            dataclasses.replace(ours, images={**ours.images, **theirs.images})
            for ours, theirs in zip(classical.examples, learned.examples, strict=True)
        ],
    )


def _train(experiment: Experiment, model: Path, place: CellPlace, options: CellOptions) -> None:
    run = RunFolder(experiment.run_url)
    done = check(experiment, run, options.overwrite)
    if not done:
        with claimed(experiment, run, options.overwrite, place.say) as experiment:
            began = time.perf_counter()
            train_locally(experiment, run, place.device)
            best = finish(experiment, run)
            seconds = time.perf_counter() - began
        place.say(f"{experiment.name}: {best.metrics['val/psnr']:.2f} dB on the validation split, {seconds:.0f} s")
    if options.keep_runs or not done or not (model / "generator.safetensors").is_file():
        pull_run(run, experiment.training.best_metric, model, overwrite=True)
    if not options.keep_runs:
        run.store.delete("checkpoints")
