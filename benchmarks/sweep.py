"""What a search costs beyond training, and what ASHA with TPE saves.

    python benchmarks/sweep.py overhead [--trials 6]       # seconds of a trial beyond its own training
    python benchmarks/sweep.py asha [--trials 12] [--seeds 3] [--steps 162]  # images until random search's best

Both run `larmor sweep` on three synthetic heads, on a cluster of this machine's own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BATCH = 4
SMALL = (
    "data.crop=[64,64]",
    "data.shuffle_bytes=262144",
    "data.block_bytes=131072",
    "system=gan_resnet50",
    "training.ema_decay=0",
    "generator.width=4",
    "critic.width=4",
    "critic.steps=1",
    f"training.global_batch_size={BATCH}",
    "training.validation_slices=6",
    "cluster.num_workers=1",
    "sweep.overrides={}",
    "sweep.metric=psnr",
    "sweep.start_seeds=1",
)


def sweep(scratch: Path, name: str, *settings: str) -> tuple[list[dict[str, Any]], float]:
    """The records of a sweep's trials, and the seconds that the command took."""
    place = (f"name={name}", f"data.url={scratch}/data", f"output_url={scratch}/output")
    command = [sys.executable, "-m", "larmor", "sweep", "laptop", *place, *SMALL, *settings]
    began = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}")
    seconds = time.perf_counter() - began
    result = json.loads((scratch / "output" / "sweeps" / name / "result.json").read_text())
    return result["trials"], seconds


def overhead(scratch: Path, num_trials: int) -> None:
    """One slot, trials of 2 steps and of 22: the difference is training, the rest of a trial is overhead."""
    steps = {"short": 2, "long": 22}
    rows = {}
    for name, count in steps.items():
        schedule = (f"training.num_steps={count}", f"training.checkpoint_every={count}", "training.validate_every=1000")
        trials, whole = sweep(scratch, name, *schedule, f"sweep.num_trials={num_trials}", "sweep.concurrent_trials=1")
        begins = sorted(trial["began"] for trial in trials)
        gaps = [later - earlier for earlier, later in itertools.pairwise(begins)]
        rows[name] = (gaps, whole)
        print(f"{name}: {count} steps, {num_trials} trials one after another, whole command {whole:.1f} s")
        print("  from one trial's begin to the next (s): " + ", ".join(f"{gap:.1f}" for gap in gaps))
    short, long = (sorted(rows[name][0])[len(rows[name][0]) // 2] for name in steps)
    step = (long - short) / (steps["long"] - steps["short"])
    own = short - 2 * step
    print(
        f"a step {step * 1000:.0f} ms; a warm trial beyond its steps {own:.2f} s (with one validation and checkpoint)"
    )
    print(f"the sweep's start and end: {rows['short'][1] - num_trials * short:.1f} s, once")


def asha(scratch: Path, num_trials: int, num_seeds: int, num_steps: int, grace: int) -> None:
    """For each seed: the images that ASHA with TPE sees until it reaches the best of a whole random search.

    Random search trains `num_trials` to their end, `num_steps`; ASHA first stops trials after `num_steps` / `grace`.
    It may begin three times as many trials, for it ends most early.
    """
    schedule = (
        f"training.num_steps={num_steps}",
        f"training.validate_every={num_steps // 9}",
        f"training.checkpoint_every={num_steps}",
        f"sweep.grace_steps={num_steps // grace}",
        "training.ema_decay=0.9",  # what a high learning rate does last says little of the trial
    )
    space = ("space.generator_optimizer.learning_rate=loguniform(1e-5,1e-1)",)
    ratios = []
    for seed in range(num_seeds):
        common = (*schedule, *space, f"sweep.seed={seed}")
        random, _ = sweep(scratch, f"random-{seed}", *common, f"sweep.num_trials={num_trials}", "sweep.sampler=random")
        wise, _ = sweep(scratch, f"asha-{seed}", *common, f"sweep.num_trials={3 * num_trials}", "sweep.scheduler=asha")
        goal, spent = max(value(trial) for trial in random), sum(trial["num_images"] for trial in random)
        for name, trials in (("random", random), ("asha", wise)):
            folders = [scratch / "output" / "sweeps" / f"{name}-{seed}" / "trials" / trial["id"] for trial in trials]
            seen, total = images_until(folders, goal), sum(trial["num_images"] for trial in trials)
            best = max(value(trial) for trial in trials)
            print(
                f"seed {seed} {name:6} best {best:.4f} dB, {seen or 'never'} images until {goal:.4f}, {total} in all",
                flush=True,
            )
        ratios.append((seen or math.inf) / spent)
    print("images of asha until then / of the random search: " + ", ".join(f"{ratio:.2f}" for ratio in ratios))


def value(trial: dict[str, Any]) -> float:
    return float(trial["metrics"].get("val/psnr", -1e9))


def images_until(trials: Sequence[Path], goal: float) -> int | None:
    """Images that the trials in these folders had seen when the first of them reached `goal` at its end."""
    curves = [[json.loads(line) for line in (trial / "metrics.jsonl").read_text().splitlines()] for trial in trials]
    last = max(row["step"] for curve in curves for row in curve)
    ends = [curve[-1] for curve in curves if curve[-1]["step"] == last]
    reached = [row["time"] for row in ends if row["val/psnr"] >= goal]
    if not reached:
        return None
    return BATCH * sum(
        max((row["step"] for row in curve if row["time"] <= min(reached)), default=0) for curve in curves
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("overhead", "asha"))
    parser.add_argument("--trials", type=int)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=162, help="of a whole trial of asha; a multiple of 9")
    parser.add_argument("--grace", type=int, default=9, choices=(3, 9), help="asha's first rung is at 1/GRACE of them")
    parser.add_argument("--keep", type=Path, help="a folder for the sweeps, to look at afterwards")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from larmor.storage.conversion.convert import ConvertOptions, convert
    from larmor.storage.examples.phantom import write_phantom
    from larmor.storage.formats.recognise import find_sources

    with tempfile.TemporaryDirectory(prefix="larmor-sweep-") as folder:
        scratch = (options.keep or Path(folder)).absolute()
        heads = write_phantom(scratch / "heads", num_subjects=3, seed=0)
        held_out = {"validation": ["phantom02"], "test": ["phantom03"]}
        convert(
            find_sources([str(path) for path in heads]),
            str(scratch / "data"),
            ConvertOptions(matrix=(64, 64), held_out=held_out),
        )
        if options.what == "overhead":
            overhead(scratch, options.trials or 6)
        else:
            asha(scratch, options.trials or 12, options.seeds, options.steps, options.grace)


if __name__ == "__main__":
    main()
