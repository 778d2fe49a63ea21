"""Evaluate models that decode on the runs that they never saw, beside the mean image and ridge regression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from larmor.recon.decoding.model import DecodingModel, check_fits
from larmor.recon.decoding.ridge import best_ridge, mean_image
from larmor.recon.decoding.scores import Scores, score
from larmor.recon.decoding.trials import split_trials
from larmor.recon.inference.metrics import slice_metrics
from larmor.recon.recipe.metric import HIGHER_IS_BETTER
from larmor.storage.dataset.trials import Trials
from larmor.storage.objects.errors import InputError


@dataclass(frozen=True)
class DecodingEvaluation:
    """The held-out trials of all models together; `images` and `scores` by method: mean_image, ridge, the system."""

    trials: Trials
    images: Mapping[str, np.ndarray]
    scores: Mapping[str, Scores]
    num_models: int


def evaluate_decoding(models: Sequence[DecodingModel], trials: Trials) -> DecodingEvaluation:
    """Decode the `test_runs` of each model, which are folds of one experiment, and score all of them together.

    Mean image and ridge regression learn from the same runs as the model of a fold, and ridge's penalty is chosen by
    the same runs and metric as its checkpoint. Raises `InputError` for models of several systems or without test runs,
    for a run that two models hold out, and for trials that do not fit a model.
    """
    _check(models)
    parts: list[Trials] = []
    images: dict[str, list[np.ndarray]] = {}
    for model in models:
        check_fits(model, trials)
        split, test = split_trials(trials, model.config), trials.of_runs(model.config.test_runs)
        metric = model.recipe.training.best_metric
        found = {
            "mean_image": mean_image(split.train, len(test.run)),
            "ridge": best_ridge(split.train, split.validation, test.bold, partial(_rated, metric)),
            model.recipe.system: model.decode(test.bold),
        }
        parts.append(test)
        for name, decoded in found.items():
            images.setdefault(name, []).append(decoded)
    whole = Trials(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("stimulus", "bold", "run")))
    joined = {name: np.concatenate(found) for name, found in images.items()}
    scores = {name: score(found, whole.stimulus, whole.run) for name, found in joined.items()}
    return DecodingEvaluation(whole, joined, scores, len(models))


def _rated(metric: str, stimuli: np.ndarray, images: np.ndarray) -> float:
    """The mean of a validation metric, the higher the better."""
    found = [slice_metrics(target[0], image[0])[metric] for target, image in zip(stimuli, images, strict=True)]
    return float(np.mean(found)) * (1 if HIGHER_IS_BETTER[metric] else -1)


def _check(models: Sequence[DecodingModel]) -> None:
    systems = sorted({model.recipe.system for model in models})
    if len(systems) > 1:
        raise InputError(f"models of {', '.join(systems)}; evaluate those of one system at a time")
    held_out: dict[int, DecodingModel] = {}
    for model in models:
        if not model.config.test_runs:
            raise InputError(
                f"{model.folder}: was trained with decoding.test_runs=[], so that no run is left to evaluate it on; "
                "train it again with runs held out"
            )
        for run in model.config.test_runs:
            if run in held_out:
                raise InputError(
                    f"{held_out[run].folder} and {model.folder} both hold run {run} out; each trial counts once: give "
                    "models with different decoding.test_runs"
                )
            held_out[run] = model
