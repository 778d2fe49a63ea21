"""Commands about clusters and what runs there: submit, status, stop, runs."""

from __future__ import annotations

from pathlib import Path
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


@commands.command("jobs")
def list_jobs(address: Dashboard) -> None:
    """List the trainings and sweeps on a cluster, the newest first: state, times, and where the results go."""
    from larmor.cluster.on_ray.jobs import Jobs, describe

    found = Jobs(address).list()
    for job in found:
        typer.echo("\n  ".join(describe(job)))
    if not found:
        typer.echo(f"{address}: no jobs; `larmor submit EXPERIMENT --address {address}` starts one")


@commands.command()
def logs(
    job: Job,
    address: Dashboard,
    follow_it: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job ends; the exit code is then the job's.")
    ] = False,
) -> None:
    """Print a job's log so far."""
    from larmor.cluster.on_ray.job_log import follow
    from larmor.cluster.on_ray.jobs import Jobs, exit_code

    jobs = Jobs(address)
    if not follow_it:
        typer.echo(jobs.log(job), nl=False)
        return
    raise typer.Exit(exit_code(follow(jobs, job, lambda text: typer.echo(text, nl=False))))


@commands.command()
def rayjob(
    experiment: Experiment,
    image: Annotated[
        str, typer.Option("--image", help="The image of every pod: IMAGE:TAG, or better IMAGE@sha256:DIGEST.")
    ],
    overrides: Overrides = None,
    run_sweep: IsSweep = False,
    queue: Annotated[
        str | None,
        typer.Option("--queue", help="Kueue's local queue: the job waits there; its pods have a fixed number."),
    ] = None,
    priority: Annotated[
        str | None,
        typer.Option("--priority", help="Kueue's WorkloadPriorityClass; without --queue the pods' PriorityClass."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Pods for workers; default: what the experiment asks for.")
    ] = None,
    memory: Annotated[str, typer.Option("--memory", help="Memory of each worker's pod.")] = "32Gi",
    service_account: Annotated[
        str, typer.Option("--service-account", help="What the pods are allowed: it must reach the bucket.")
    ] = "larmor",
    region: Annotated[str | None, typer.Option("--region", help="The bucket's region, for AWS.")] = None,
    endpoint: Annotated[
        str | None, typer.Option("--endpoint-url", help="The S3 store, where it is not AWS, as the pods see it.")
    ] = None,
    node_labels: Annotated[
        list[str] | None,
        typer.Option("--node-selector", help="LABEL=VALUE of the nodes for workers, such as spot ones; repeatable."),
    ] = None,
) -> None:
    """Print a training or a sweep as manifests of Kubernetes, for `kubectl apply -f -`: a RayJob of KubeRay."""
    from larmor.cluster.on_ray.rayjob import RayJobOptions
    from larmor.commands.kubernetes import labels, rayjob_yaml

    options = RayJobOptions(
        image,
        queue,
        priority,
        workers,
        memory,
        service_account,
        region=region,
        endpoint=endpoint,
        node_selector=labels(node_labels or []),
    )
    typer.echo(rayjob_yaml(experiment, overrides or [], run_sweep, options), nl=False)


@commands.command()
def kubernetes(
    to: Annotated[Path, typer.Option("--to", help="The folder to write, new or empty.")],
) -> None:
    """Write what belongs beside `larmor rayjob`: a base for kustomize with network policy, queues and monitoring."""
    from larmor.commands.kubernetes import write_kubernetes

    write_kubernetes(to)
    typer.echo(f"wrote {to}; edit it, then: kubectl apply -k {to}")


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
