"""Has the critic a say, and the right one? Short trainings of an experiment in this process, without Ray.

    python -m benchmarks.critic clip [EXPERIMENT] [KEY=VALUE…]   the clipping constant c against the critic's slope
    python -m benchmarks.critic sign [EXPERIMENT] [KEY=VALUE…]   unchanged, without a critic, and with its sign reversed
    python -m benchmarks.critic cost [EXPERIMENT] [KEY=VALUE…]   what a report of the gradient\'s shares costs

`clip` prints the mean slope ‖∇D‖ at the reconstructions and the critic's share of the gradient over the second half of
each training. `sign` is a negative control: a generator that is driven away from what the critic takes for real has to
end worse. Both print validation metrics (preset `paper`). `cost` computes shares after every step, on noise, and prints
their time beside that of a step, and what this is of a training at the experiment's `training.log_every`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import fmean, median, stdev
from typing import Any

import numpy as np
import torch

import larmor.recon.training.losses
from larmor.cluster.experiments.experiment import Experiment
from larmor.cluster.launch.run_locally import train_locally
from larmor.cluster.runs.run_folder import RunFolder
from larmor.recon.physics.samples import prepare
from larmor.recon.recipe.metric import METRICS
from larmor.recon.training.gan import Gan
from larmor.recon.training.starts import Starts
from larmor.storage.loading.loader import Batch
from larmor.tuning.search.experiment import load_sweep_experiment

SHOWN = ("psnr", "ssim", "hfen", "gmsd")
LOCAL = (
    "training.backend=plain",
    "training.zero_stage=0",
    "cluster.num_workers=1",
)


def history(source: str, overrides: Sequence[str], folder: str) -> list[Mapping[str, Any]]:
    """The reports of one training."""
    experiment: Experiment = load_sweep_experiment(source, [*LOCAL, "training.log_every=5", *overrides]).training_part()
    run = RunFolder(tempfile.mkdtemp(dir=folder))
    train_locally(experiment, run, "cpu")
    return list(run.history())


def clip(source: str, overrides: Sequence[str], constants: Sequence[float]) -> None:
    print(f"{'c':>8} {'slope':>10} {'share':>7}  " + "  ".join(METRICS[name].heading for name in SHOWN))
    with tempfile.TemporaryDirectory(prefix="larmor-critic-") as folder:
        for constant in constants:
            rows = history(source, [*overrides, f"critic.clip={constant}"], folder)
            told = [row for row in rows if "score/slope" in row]
            late = told[len(told) // 2 :]
            slope, share = (fmean(row[key] for row in late) for key in ("score/slope", "share/adversarial"))
            print(f"{constant:8g} {slope:10.4f} {share:7.1%}  {metrics_of(rows)}", flush=True)


def sign(source: str, overrides: Sequence[str], seeds: int) -> None:
    variants: dict[str, list[str]] = {
        "unchanged": [],
        "no critic": ["loss.adversarial=none"],
        "sign reversed": [],
    }
    with tempfile.TemporaryDirectory(prefix="larmor-critic-") as folder:
        for label, own in variants.items():
            found = []
            for seed in range(seeds):
                with turned(label == "sign reversed"):
                    rows = history(source, [*overrides, *own, f"seed={seed}"], folder)
                found.append({name: rows[-1][f"val/{name}"] for name in SHOWN})
                print(f"{label:>12} seed {seed}  {metrics_of(rows)}", flush=True)
            if seeds > 1:
                cells = (spread(name, [row[name] for row in found]) for name in SHOWN)
                print(f"{label:>12} mean    " + "  ".join(cells), flush=True)


def cost(source: str, overrides: Sequence[str], num_steps: int = 12) -> None:
    recipe = load_sweep_experiment(source, [*LOCAL, *overrides])
    size, cpu = recipe.training.global_batch_size, torch.device("cpu")
    noise = np.random.default_rng(0).standard_normal((size, 1, *recipe.data.crop), dtype=np.float32)
    batch = Batch.of(noise.astype(np.complex64), np.array([(0, index) for index in range(size)]))
    gan = Gan(recipe, cpu)
    starts = Starts(gan.generator.module, recipe, "noise")
    steps, shares = [], []
    for step in range(num_steps + 1):
        began = time.perf_counter()
        samples = [starts.add(prepare(batch, recipe.data.crop, recipe.mask, cpu, signal=recipe.signal))]
        gan.train_critics(samples, step)
        gan.train_generator(samples)
        stepped = time.perf_counter()
        gan.balance(samples)
        steps.append(stepped - began)
        shares.append(time.perf_counter() - stepped)
    ratio, every = median(shares[1:]) / median(steps[1:]), recipe.training.log_every  # the first one allocates
    print(f"step {median(steps[1:]):.3f} s, shares {median(shares[1:]):.3f} s: {ratio:.2f} of a step")
    print(f"at training.log_every={every}: {ratio / every:.1%} of the steps' time")


def metrics_of(rows: Sequence[Mapping[str, Any]]) -> str:
    return "  ".join(METRICS[name].write(rows[-1][f"val/{name}"]) for name in SHOWN)


def spread(name: str, values: Sequence[float]) -> str:
    write = METRICS[name].write
    return f"{write(fmean(values))} ± {write(stdev(values))}"


@contextmanager
def turned(wanted: bool) -> Iterator[None]:
    """The generator's adversarial loss with the other sign."""
    right = larmor.recon.training.losses.adversarial_loss
    if wanted:
        larmor.recon.training.losses.adversarial_loss = lambda fake_scores, kind: -right(fake_scores, kind)
    try:
        yield
    finally:
        larmor.recon.training.losses.adversarial_loss = right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("clip", "sign", "cost"))
    parser.add_argument("experiment", nargs="?", default="laptop", help="a shipped experiment, or a file")
    parser.add_argument("overrides", nargs="*", help="changes to it: key=value")
    parser.add_argument("--constants", type=float, nargs="+", default=[0.001, 0.003, 0.01, 0.03])
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    if options.what == "clip":
        clip(options.experiment, options.overrides, options.constants)
    elif options.what == "cost":
        cost(options.experiment, options.overrides)
    else:
        sign(options.experiment, options.overrides, options.seeds)


if __name__ == "__main__":
    main()
