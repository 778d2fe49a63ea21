"""Commands that train: train and sweep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from larmor.cli.app import Address, DryRun, Experiment, Overrides, Overwrite

if TYPE_CHECKING:
    from larmor.tuning.search.records import TrialRecord

commands = typer.Typer(rich_markup_mode=None)


@commands.command()
def train(
    experiment: Experiment,
    overrides: Overrides = None,
    address: Address = None,
    local: Annotated[
        bool, typer.Option("--local", help="Train in this process, without Ray, with one worker.")
    ] = False,
    device: Annotated[str, typer.Option(help="With --local: cpu or cuda.")] = "cpu",
    best_of: Annotated[str | None, typer.Option(help="Take the best parameters of this sweep (URL).")] = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Train an experiment. The same command again resumes an interrupted training exactly where it stopped."""
    from larmor.cli.console import console, describe_row, show_facts, training_progress
    from larmor.commands.feedback import Feedback
    from larmor.commands.training import load_experiment
    from larmor.commands.training import train as run_training

    config = load_experiment(experiment, overrides or [], best_of, console.print).training_part()
    if dry_run:
        from larmor.commands.planning import plan_training

        show_facts(plan_training(config, device, overwrite))
        return
    num_steps = config.training.num_steps
    with training_progress(num_steps) as show:
        result = run_training(
            config,
            address=address,
            local=local,
            device=device,
            overwrite=overwrite,
            feedback=Feedback(console.print, report=show),
        )
    for warning in result.warnings:
        console.print(f"warning: {warning}", markup=False)
    best = {"loss": 0, **result.metrics, "step": result.step}
    console.print(f"best checkpoint: {describe_row(best, num_steps)}")
    console.print(f"next: larmor pull {config.run_url} --to MODEL_DIR")


@commands.command()
def sweep(
    experiment: Experiment,
    overrides: Overrides = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Number of trials; default: sweep.num_trials of the experiment.")
    ] = None,
    address: Address = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Search a, b and the clipping constant (or any key: space.KEY='loguniform(low,high)') with Ray Tune.

    The same command again resumes an interrupted sweep."""
    from larmor.cli.console import console, errors, progress_bar, show_facts
    from larmor.cluster.on_ray.ray_cluster import leave_at_once
    from larmor.cluster.worker.stopping import Interrupted
    from larmor.commands.feedback import Feedback
    from larmor.commands.training import load_experiment
    from larmor.commands.training import sweep as search
    from larmor.tuning.report.spread import gains
    from larmor.tuning.report.trial_records import read_sweep
    from larmor.tuning.search.sweep import describe_trial

    config = load_experiment(experiment, [*(overrides or []), *([f"sweep.num_trials={trials}"] if trials else [])])
    if dry_run:
        from larmor.commands.planning import plan_sweep

        show_facts(plan_sweep(config, overwrite=overwrite))
        return
    objectives = config.sweep.objectives

    def show(trial: TrialRecord) -> None:
        console.print(describe_trial(trial, objectives))

    try:
        with progress_bar() as bar:
            feedback = Feedback(console.print, bar, show)
            result = search(config, address=address, overwrite=overwrite, feedback=feedback)
    except Interrupted as interrupted:
        errors.print(f"larmor: {interrupted.message}", markup=False)
        leave_at_once(int(interrupted.code or 0))
    url = config.sweep_url
    if result.front:
        console.print(f"front: {len(result.front)} trials ({', '.join(result.front)}); --prefer chooses from it")
    console.print(f"best: {describe_trial(result.best, objectives)}")
    for gain in gains(read_sweep(url)):
        console.print(f"gain of val/{gain.name}: {gain.text}, {gain.against}", markup=False)
    console.print(f"next: larmor train {experiment} --best-of {url}, or larmor pull {url} --to MODEL_DIR")
