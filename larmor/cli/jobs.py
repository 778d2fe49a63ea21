"""Commands about clusters and what runs there: submit, status, stop, runs."""

from __future__ import annotations

from typing import Annotated

import typer

from larmor.cli.app import Dashboard, DryRun, Experiment, IsSweep, Job, Overrides

commands = typer.Typer(rich_markup_mode=None)


@commands.command()
def submit(
    experiment: Experiment,
    address: Dashboard,
    overrides: Overrides = None,
    run_sweep: IsSweep = False,
    install: Annotated[
        bool,
        typer.Option("--install", help="Install the dependencies on the nodes first, in the versions of this machine."),
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Do not follow the job's log.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Run a training or a sweep as a job on a Ray cluster and follow its log. The exit code is the job's.

    Ctrl-C leaves the job running. The same command follows it again.
    """
    from larmor.cli.console import errors, show_facts
    from larmor.cluster.on_ray.job_log import follow
    from larmor.cluster.on_ray.jobs import Jobs, check_places, exit_code
    from larmor.commands.training import load_experiment, use_own_code

    config = load_experiment(experiment, overrides or [])
    check_places(config)
    use_own_code(config)
    if dry_run:
        from larmor.commands.planning import plan_job

        show_facts(plan_job(config, run_sweep))
        return
    jobs = Jobs(address)
    job = jobs.submit("sweep" if run_sweep else "train", config if run_sweep else config.training_part(), install)
    try:
        what = f"job '{job.name}' runs already; this is its log" if job.attached else f"submitted as job '{job.name}'"
        typer.echo(what)
        if detach:
            return
        code = exit_code(follow(jobs, job.name, lambda text: typer.echo(text, nl=False)))
    except KeyboardInterrupt:
        errors.print(
            f"\njob '{job.name}' keeps running; the same command follows it again, `larmor status {job.name} --address "
            f"{address}` shows its state, `larmor stop {job.name} --address {address}` ends it",
            markup=False,
        )
        code = 130
    raise typer.Exit(code)


@commands.command()
def status(job: Job, address: Dashboard) -> None:
    """Show a job on a cluster: its state, when it was submitted, and where its results go."""
    from larmor.cluster.on_ray.jobs import Jobs, describe

    for line in describe(Jobs(address).get(job)):
        typer.echo(line)


@commands.command()
def stop(job: Job, address: Dashboard) -> None:
    """Ask a job on a cluster to stop; kill it after two minutes. Submitting the job again resumes it."""
    from larmor.cluster.on_ray.jobs import Jobs, describe

    for line in describe(Jobs(address).stop(job)):
        typer.echo(line)


@commands.command("runs")
def list_runs(
    url: Annotated[
        str, typer.Argument(help="Where to look for runs: an output_url, a sweep, or one run.")
    ] = "s3://larmor",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List runs with state, step, best validation, speed, goodput (time of steps that count / all time), restarts."""
    from larmor.cli.console import console
    from larmor.cluster.runs.runs import find_runs, table_lines, to_json

    found = find_runs(url)
    for line in [to_json(found)] if as_json else table_lines(found):
        console.print(line, markup=False)
