"""A sweep's folder as `larmor sweep` leaves it: many trials with curves and checkpoints, without any training."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.torch import save

from larmor.cluster.runs.run_result import RunResult
from larmor.recon.recipe.recipe import Recipe
from larmor.tuning.search.records import State, TrainingEnd, TrialRecord
from larmor.tuning.search.sweep_folder import SweepFolder
from tests.helpers import add_checkpoint, make_generator, small_recipe

SPACE = {
    "loss.a": "loguniform(0.1, 100)",
    "loss.b": "loguniform(0.001, 10)",
    "critic.clip": "loguniform(0.001, 0.1)",
}
_STEPS, _EVERY = 40, 10
_STATES: dict[int, State] = {3: "stopped", 5: "diverged", 6: "failed", 7: "stopped"}


def peak_psnr(a: float, b: float, clip: float) -> float:
    """PSNR (dB) after `_STEPS` steps: a counts most, b less, clip hardly."""
    distance = 4 * np.log10(a / 20) ** 2 + 0.6 * np.log10(b / 0.05) ** 2 + 0.1 * np.log10(clip / 0.02) ** 2
    return float(31.0 - distance)


def least_hfen(a: float, b: float) -> float:
    """HFEN after `_STEPS` steps: a smaller a and a larger b are better than for PSNR."""
    return float(0.4 + 0.05 * np.log10(a / 2) ** 2 + 0.03 * np.log10(b / 2) ** 2)


def write_sweep(
    url: str,
    num_trials: int = 24,
    data_url: str = "unused",
    crop: int = 64,
    seed: int = 0,
    metric: str | list[str] = "psnr",
    start_seeds: int = 1,
    shares: bool = False,
) -> SweepFolder:
    """The first trial has the experiment's own values; then of every eight one diverges, one fails, two are stopped.

    The first is trained with `start_seeds` seeds. With `shares` every fifth step has the gradient's shares and scores.
    """
    training = {"num_steps": _STEPS, "global_batch_size": 16, "validate_every": _EVERY, "checkpoint_every": _EVERY}
    recipe = small_recipe(
        data={"url": data_url, "crop": [crop, crop]},
        mask={"kind": "gaussian2d", "sampling_ratio": 0.3},
        training=training,
    )
    folder, rng = SweepFolder(url), np.random.default_rng(seed)
    content = {**recipe.model_dump(mode="json"), "name": Path(url).name, "cluster": {"num_workers": 1}}
    folder.create(
        yaml.safe_dump(
            {**content, "sweep": {"metric": metric, "num_trials": num_trials, "space": SPACE}}, sort_keys=False
        )
    )
    for number in range(num_trials):
        drawn = (10 ** rng.uniform(-1, 2), 10 ** rng.uniform(-3, 1), 10 ** rng.uniform(-3, -1))
        a, b, clip = (15.0, 0.1, 0.01) if number == 0 else (float(value) for value in drawn)
        state = _STATES.get(number % 8, "finished")
        values = {"loss.a": a, "loss.b": b, "critic.clip": clip}
        num_seeds = start_seeds if number == 0 else 1
        _write_trial(folder, f"t{number:02d}", number, values, state, content, recipe, rng, num_seeds, shares)
    return folder


def _write_trial(
    folder: SweepFolder,
    name: str,
    number: int,
    values: dict[str, float],
    state: State,
    content: dict[str, Any],
    recipe: Recipe,
    rng: np.random.Generator,
    num_seeds: int,
    shares: bool,
) -> None:
    run = folder.trial_run(name)
    own = {**content, "loss": {**content["loss"], "a": values["loss.a"], "b": values["loss.b"]}, "name": name}
    own["critic"] = {**content["critic"], "clip": values["critic.clip"]}
    run.create(yaml.safe_dump(own))
    last = {"finished": _STEPS, "stopped": 20, "diverged": 27, "failed": 0}[state]
    peak, edges = peak_psnr(*values.values()), least_hfen(values["loss.a"], values["loss.b"])
    best: dict[str, float] = {}
    for first in range(1, last + 1, _EVERY):
        steps = range(first, min(first + _EVERY, last + 1))
        rows = [_row(step, peak, rng) for step in steps]
        if steps[-1] % _EVERY == 0:
            begun = np.exp(-steps[-1] / 12)
            metrics = {**_validated(peak - 6 * begun, rng), "val/hfen": float(edges * (1 + begun))}
            rows[-1] |= metrics
            if metrics["val/psnr"] > best.get("val/psnr", 0):
                best = metrics
                with tempfile.TemporaryDirectory() as scratch:
                    weights = save(make_generator(recipe, seed=number).state_dict())
                    files = {"generator.safetensors": weights, "critic/rank0.pt": b"state"}
                    add_checkpoint(run, Path(scratch), steps[-1], metrics, files)
                    run.prune(1, 1, "val/psnr", True)
        if shares:
            rows = [row | (_shares(values["loss.b"]) if row["step"] % 5 == 0 else {}) for row in rows]
        run.write_history(steps[-1], rows)
    reasons = {
        "stopped": f"asha: val/psnr {best.get('val/psnr', 0):.2f} at step {last} is not in the best third",
        "diverged": "the critic diverged: critic_loss is 2.1e+04 at step 27",
        "failed": "a worker died and could not be started again",
    }
    record = TrialRecord(
        id=name,
        state=state,
        metrics=best,
        steps=last,
        num_images=16 * last,
        reason=reasons.get(state, ""),
        parameters=values,
        began=1.7e9 + 60 * number,
        seconds=5 + 1.4 * last,
    )
    if num_seeds > 1:
        ends = [TrainingEnd(state=state, seed=place, metrics=_other_seed(best, place)) for place in range(num_seeds)]
        means = {key: float(np.mean([end.metrics[key] for end in ends])) for key in best}
        record = dataclasses.replace(record, seeds=tuple(ends), metrics=means)
    folder.write_trial(record)
    if state == "finished":
        run.write_result(RunResult("finished", _STEPS, metrics=best))


def _other_seed(metrics: dict[str, float], place: int) -> dict[str, float]:
    """The figures of another seed: PSNR 0.2 dB higher from one to the next, all others 1 %."""
    return {
        key: value + 0.2 * place if key == "val/psnr" else value * (1 + place / 100) for key, value in metrics.items()
    }


def _shares(b: float) -> dict[str, float]:
    frequency = b / (b + 1)
    rest = 1 - frequency
    found = {"share/adversarial": 0.25 * rest, "share/content": 0.75 * rest, "share/frequency": frequency}
    return {**found, "score/real": 0.4, "score/fake": -0.3}


def _row(step: int, peak: float, rng: np.random.Generator) -> dict[str, float]:
    content = 10 ** (-peak / 20) * (1 + 3 * np.exp(-step / 12)) * rng.uniform(0.9, 1.1)
    critic = -0.1 * np.exp(-step / 30) * rng.uniform(0.8, 1.2)
    names = ("loss", "normalized_root_mse", "frequency", "adversarial", "critic_loss")
    return {
        "step": step,
        **dict(zip(names, map(float, (15 * content, content, 2 * content, -critic, critic)), strict=True)),
    }


def _validated(psnr: float, rng: np.random.Generator) -> dict[str, float]:
    value = float(psnr + rng.normal(0, 0.05))
    mse = 10 ** (-value / 10)
    metrics = {"psnr": value, "ssim": 1 - 3 * mse**0.5, "mse": mse, "rmse": mse**0.5, "nmse": 10 * mse}
    return {f"val/{name}": figure for name, figure in metrics.items()}
