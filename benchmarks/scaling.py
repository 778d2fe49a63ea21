"""What a second worker brings on one machine, and where the rest goes: `python benchmarks/scaling.py`.

The laptop preset with the same global batch on one worker and on two, one thread for computation each, through Ray
Train and DeepSpeed as always, at ZeRO 0, 1 and 2. Every training runs twice, in alternating order; the first report of
each (cold caches) is left out. From the step clock: seconds of a step and what they went into. `start` is the time from
the beginning of the worker to its first report, less the steps in it.

The ideal step of two workers is half of one worker's. What is lost is split into communication (the waiting for the
slower worker is in it), data, and slower computation: two processes share caches and memory, and half a batch
computes less efficiently.

The data: a data set of `larmor convert` (`--data URL`) with splits `train` and `validation`.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

Figures = Mapping[str, float]
CASES = [(1, 0), (2, 0), (2, 1), (2, 2)]


def train(case: tuple[int, int], overrides: Sequence[str], folder: str, round_number: int) -> Figures:
    """Train on the connected cluster; means of the reports after the first."""
    from larmor.cluster.launch.run import claimed
    from larmor.cluster.on_ray.ray_train import train_on_ray
    from larmor.cluster.runs.attempts import first_and_last
    from larmor.cluster.runs.run_folder import RunFolder
    from larmor.tuning.search.experiment import load_sweep_experiment

    workers, stage = case
    own = [f"name=scaling-{workers}-{stage}-{round_number}", f"output_url={folder}/output"]
    own += [f"cluster.num_workers={workers}", f"training.zero_stage={stage}"]
    experiment = load_sweep_experiment("laptop", [*overrides, *own]).training_part()
    run = RunFolder(experiment.run_url)
    with claimed(experiment, run, False, print):
        train_on_ray(experiment, run)
    first, *reports = [json.loads(line) for line in run.store.read("metrics.jsonl").splitlines()]
    attempts = first_and_last(run.store)
    assert attempts is not None
    start = first["time"] - attempts[0].began - first["training_seconds"]
    return {"start": start, **mean_figures(reports)}


def mean_figures(reports: Sequence[Mapping[str, Any]]) -> Figures:
    """Seconds of a step, and of it in computation, communication and data."""
    figures = {}
    for part in ("compute", "communication", "data"):
        figures[part] = fmean(
            report["step_seconds"] * report[f"{part}_share"] / sum(report[f"{p}_share"] for p in PARTS)
            for report in reports
        )
    return {"step": fmean(report["step_seconds"] for report in reports), **figures}


PARTS = ("compute", "communication", "data")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="s3://larmor/heads")
    parser.add_argument("--steps", type=int, default=5, help="steps of a report")
    parser.add_argument("--reports", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("overrides", nargs="*", help="changes to the laptop preset: key=value")
    options = parser.parse_args()
    num_steps = options.steps * options.reports + 1  # the last step is validated, in a report of its own
    overrides = [f"data.url={options.data}", f"training.num_steps={num_steps}", f"training.log_every={options.steps}"]
    overrides += [f"training.{name}_every={num_steps}" for name in ("validate", "checkpoint")]
    overrides += ["training.validation_slices=2", *options.overrides]
    os.environ["OMP_NUM_THREADS"] = "1"
    from larmor.cluster.on_ray.ray_cluster import connected

    found: dict[tuple[int, int], list[Figures]] = {case: [] for case in CASES}
    with tempfile.TemporaryDirectory() as folder, connected(None):
        for number in range(options.rounds):
            for case in CASES if number % 2 == 0 else reversed(CASES):
                found[case].append(train(case, overrides, folder, number))
    means = {case: {name: fmean(run[name] for run in runs) for name in runs[0]} for case, runs in found.items()}
    one = means[1, 0]
    print("workers  ZeRO  s/step  speed-up  computation  communication  data   start (s)")
    for (workers, stage), own in means.items():
        parts = "  ".join(f"{own[part]:.3f} ({own[part] / own['step']:.0%})" for part in PARTS)
        speed_up = one["step"] / own["step"]
        print(f"{workers}        {stage}     {own['step']:.3f}   {speed_up:.2f}×     {parts}   {own['start']:.1f}")
    print("\nlost against the ideal half of one worker's step, in ms:")
    for (workers, stage), own in means.items():
        if workers > 1:
            slower = own["compute"] - one["compute"] / workers
            more_data = own["data"] - one["data"] / workers
            print(
                f"ZeRO {stage}: {1000 * (own['step'] - one['step'] / workers):.0f} = communication "
                f"{1000 * own['communication']:.0f} + computation {1000 * slower:.0f} + data {1000 * more_data:.0f}"
                f" − one worker's own communication {1000 * one['communication'] / workers:.0f}"
            )


if __name__ == "__main__":
    main()
