"""Commands about trained models: pull, reconstruct, export, evaluate, report, benchmark tables."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from larmor.cli.app import LOCAL, MASK_KINDS, MODEL, BatchSize, Overwrite, Runtime, TrustCode
from larmor.recon.recipe.metric import METRICS
from larmor.storage.objects.errors import InputError

benchmark_app = typer.Typer(help="Comparisons that anybody can reproduce.", no_args_is_help=True, rich_markup_mode=None)

commands = typer.Typer(rich_markup_mode=None)


@commands.command()
def pull(
    url: Annotated[
        str,
        typer.Argument(
            help="A run's or a sweep's URL, or that of a published model: s3://…, https://… (a folder or a .zip), "
            "hf://OWNER/NAME[@REVISION], larmor://NAME."
        ),
    ],
    to: Annotated[Path, typer.Option(help="The model directory to make.", **LOCAL)],
    metric: Annotated[
        str | None,
        typer.Option(help=f"Validation metric: {', '.join(METRICS)} or MODULE:NAME; default: the run's or sweep's."),
    ] = None,
    prefer: Annotated[
        str | None,
        typer.Option(
            help="For a sweep by two metrics: METRIC, or METRIC=WEIGHT,METRIC=WEIGHT, chooses from the front. "
            "Default: the trial "
            "nearest to the best of both, as fractions of the front's range."
        ),
    ] = None,
    trial: Annotated[
        str | None,
        typer.Option(help="For a sweep: pull this trial (its id or the beginning of it) instead of the best one."),
    ] = None,
    full: Annotated[
        bool,
        typer.Option(
            "--full", help="Also pull the whole training state, to inspect or keep it; for your own runs only."
        ),
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Pull a model, verified by checksum: weights, configuration, metrics, card. Of a run, its best checkpoint.

    If it is interrupted, run the same command again to resume.
    """
    from larmor.cli.console import console
    from larmor.commands.models import pull as pull_model

    pulled = pull_model(url, to, metric, trial=trial, prefer=prefer, full=full, overwrite=overwrite)
    for note in pulled.notes:
        console.print(f"note: {note}", markup=False)
    figures = ", ".join(
        f"{name} {value:.5g}" for name, value in sorted(pulled.checkpoint.metrics.items()) if name.startswith("val/")
    )
    console.print(f"{to}: {pulled.run_url}, step {pulled.checkpoint.step}, {figures} (preset paper)", markup=False)


@commands.command()
def push(
    model: Annotated[str, typer.Argument(help=MODEL)],
    url: Annotated[str, typer.Argument(help="Where to: s3://…, a folder, or hf://OWNER/NAME[@REVISION].")],
    licence: Annotated[
        str | None,
        typer.Option("--licence", "--license", metavar="ID", help="For the card, such as apache-2.0 or cc-by-4.0."),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Let everybody read a new repository of a hub; default: private.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another model that lies there.")] = False,
) -> None:
    """Publish a model, with checksums and its card: there wholly or not at all."""
    from larmor.cli.console import console
    from larmor.commands.models import push as push_model

    pushed = push_model(model, url, licence=licence, overwrite=overwrite, public=public)
    for note in pushed.notes:
        console.print(f"note: {note}", markup=False)
    said = "published" if pushed.is_new else "lies there already"
    console.print(f"{pushed.url}: {said}; `larmor pull {pushed.url} --to MODEL_DIR` brings it", markup=False)


@commands.command()
def reconstruct(
    model_dir: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL)],
    source: Annotated[
        str, typer.Argument(metavar="INPUT", help="Scans as for `larmor convert`, or a data set made by it.")
    ],
    to: Annotated[Path, typer.Option(help="Folder for the images.", **LOCAL)],
    split: Annotated[str | None, typer.Option(help="For a data set: train, validation or test (default).")] = None,
    undersample: Annotated[
        bool,
        typer.Option("--undersample", help="Measured k-space is fully sampled: undersample it with the model's mask."),
    ] = False,
    mask: Annotated[
        Path | None, typer.Option(help="The measured points of k-space: .npy (height, width), 1 or 0.", **LOCAL)
    ] = None,
    plane: Annotated[
        str, typer.Option(help="Of slices cut from images: coronal, or native, as for `larmor convert`.")
    ] = "coronal",
    format: Annotated[
        str,
        typer.Option(help="nifti, dicom (of DICOM), h5 or npy; auto: nifti for volumes of images, npy for k-space."),
    ] = "auto",
    anonymous: Annotated[bool, typer.Option("--anonymous", help="Name nobody in the DICOM series.")] = False,
    field_of_view: Annotated[
        str, typer.Option(help="whole, or model: cut or padded to the size that the model was trained on.")
    ] = "whole",
    ratio: Annotated[
        float | None,
        typer.Option(
            help="Sampling ratio of images, or with --undersample, instead of the model's own; measured k-space stays "
            "as it is."
        ),
    ] = None,
    uncertainty: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL|SWEEP_URL",
            help="A further model, trained apart, or a sweep, of which the best trials count; repeatable. The images "
            "are the mean of all models, and NAME-uncertainty is their standard deviation.",
        ),
    ] = None,
    guide: Annotated[
        str | None,
        typer.Option(
            metavar="GUIDE",
            help="The second contrast of the scans, on their grid, of a model with signal.guide: a file, folder, "
            "pattern or URL.",
        ),
    ] = None,
    members: Annotated[int, typer.Option(min=1, help="How many trials of a sweep --uncertainty takes.")] = 3,
    skip_invalid: Annotated[
        bool, typer.Option("--skip-invalid", help="Leave bad scans out instead of failing.")
    ] = False,
    batch_size: BatchSize = 8,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    runtime: Runtime = "auto",
    trust_code: TrustCode = None,
) -> None:
    """Reconstruct images (undersampled on the fly) or measured k-space of any size, in place, with a PNG."""
    from larmor.cli.console import console, progress_bar
    from larmor.commands.feedback import Feedback
    from larmor.commands.models import ReconstructOptions
    from larmor.commands.models import reconstruct as reconstruct_source
    from larmor.recon.models.reconstruct import describe_speed
    from larmor.storage.conversion.notes import describe_notes
    from larmor.storage.formats.source import check_plane

    options = ReconstructOptions(
        *(split, undersample, mask, batch_size, check_plane(plane), format, anonymous, field_of_view),
        *(uncertainty or [], members, ratio, guide, runtime),
    )
    with progress_bar() as show:
        began = time.perf_counter()
        feedback = Feedback(partial(console.print, markup=False), show)
        reports = reconstruct_source(
            model_dir, source, to, options, device=device, feedback=feedback, trust_code=trust_code
        )
        seconds = time.perf_counter() - began
    bad = [report for report in reports if report.problem]
    for path in (path for report in reports for path in report.files):
        console.print(str(path))
    if len(bad) < len(reports):
        console.print(describe_speed(reports, seconds, device))
    for report in reports:
        if report.calibration:
            console.print(f"{report.name}: {report.calibration}", markup=False)
        if report.changed:
            console.print(f"{report.name}: {report.changed}", markup=False)
    for line in describe_notes((report.name, report.notes) for report in reports):
        console.print(line, markup=False)
    if bad and (not skip_invalid or len(bad) == len(reports)):
        raise InputError("\n".join(report.problem for report in bad))
    for report in bad:
        console.print(f"left out: {report.problem}", markup=False)


@commands.command()
def export(
    model_dir: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL)],
    to: Annotated[Path, typer.Option(help="The file to write: .onnx, or .pt2 for torch.export.", **LOCAL)],
    size: Annotated[
        str | None, typer.Option(help="HEIGHTxWIDTH of the images; default: the size of the training.")
    ] = None,
    dynamic_size: Annotated[bool, typer.Option("--dynamic-size", help="Let height and width vary.")] = False,
    coils: Annotated[int, typer.Option(min=1, help="Number of coils of the k-space, for models that use them.")] = 1,
    overwrite: Overwrite = False,
    trust_code: TrustCode = None,
) -> None:
    """Export a model as ONNX or torch.export. The file is kept only if it agrees with the model to 1e-4."""
    from larmor.cli.console import console
    from larmor.commands.models import export as export_file
    from larmor.recon.evaluation.methods import parse_size

    wanted = parse_size(size) if size else None
    lines = export_file(
        model_dir,
        to,
        size=wanted,
        dynamic_size=dynamic_size,
        coils=coils,
        overwrite=overwrite,
        trust_code=trust_code,
    )
    for line in lines:
        console.print(line, markup=False)


@commands.command()
def evaluate(
    model_dirs: Annotated[list[str], typer.Argument(metavar="MODEL...", help=MODEL)],
    url: Annotated[str, typer.Argument(metavar="DATASET_URL", help="A data set made by `larmor convert`.")],
    method: Annotated[
        list[str] | None,
        typer.Option(help="A method without training: wavelet, total_variation, alternating or bart; repeatable."),
    ] = None,
    size: Annotated[list[str] | None, typer.Option(help="HEIGHTxWIDTH instead of the models' own; repeatable.")] = None,
    mask: Annotated[
        list[str] | None, typer.Option(help=f"Kind of mask instead of their own: {MASK_KINDS}; repeatable.")
    ] = None,
    ratio: Annotated[list[float] | None, typer.Option(help="Sampling ratio instead of their own; repeatable.")] = None,
    noise: Annotated[
        list[float] | None,
        typer.Option(
            help="Add noise of this standard deviation, as a fraction of the largest magnitude, to the measured "
            "k-space: a table for each; repeatable."
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="A metric of your own beside Larmor's, MODULE:NAME; --trust-code has its code; repeatable."),
    ] = None,
    segmentation: Annotated[
        bool,
        typer.Option("--segmentation", help="Also evaluate tissue segmentations (Dice). Takes a minute per volume."),
    ] = False,
    every: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Evaluate one slice in N of each volume; the table says so."),
    ] = 1,
    uncertainty: Annotated[
        bool,
        typer.Option(
            "--uncertainty", help="The models are an ensemble: measure if their spread says where errors lie."
        ),
    ] = False,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    preset: Annotated[str, typer.Option(help="Definitions of the metrics: paper or fastmri.")] = "paper",
    to: Annotated[
        Path | None,
        typer.Option(help="Folder for the tables; default: evaluation in the first model directory.", **LOCAL),
    ] = None,
    batch_size: BatchSize = 8,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    trust_code: TrustCode = None,
) -> None:
    """Evaluate models, zero-filled images and classical methods side by side. Writes CSV, Markdown, LaTeX and PNG."""
    from larmor.cli.console import console, progress_bar
    from larmor.commands.feedback import Feedback
    from larmor.commands.models import EvaluateOptions
    from larmor.commands.models import evaluate as evaluate_models
    from larmor.recon.evaluation.methods import parse_size
    from larmor.recon.evaluation.tables import text_table

    sizes = [parse_size(text) for text in size or []]
    options = EvaluateOptions(
        methods=method or [],
        sizes=sizes,
        masks=mask or [],
        ratios=ratio or [],
        noises=noise or [],
        metrics=metric or [],
        segmentation=segmentation,
        every=every,
        split=split,
        preset=preset,
        batch_size=batch_size,
        uncertainty=uncertainty,
    )
    with progress_bar() as show:
        evaluated = evaluate_models(
            model_dirs,
            url,
            options,
            to=to,
            device=device,
            feedback=Feedback(console.print, show),
            trust_code=trust_code,
        )
    for table in evaluated.tables:
        for line in text_table(table):
            console.print(line, markup=False)
    for path in evaluated.files:
        console.print(str(path))


@benchmark_app.command("tables")
def benchmark_tables(
    preset: Annotated[
        str,
        typer.Option(help="A shipped grid (laptop, paper, systems, coils, dynamic, pet, ablation) or a YAML file."),
    ] = "laptop",
    data: Annotated[str, typer.Option(help="A data set made by `larmor convert`.")] = "s3://larmor/heads",
    output: Annotated[str, typer.Option(help="Where to store the trainings: a folder or s3://BUCKET.")] = "s3://larmor",
    to: Annotated[Path, typer.Option(help="Folder for models, tables and figures.", **LOCAL)] = Path("tables"),
    num_images: Annotated[int | None, typer.Option(min=1, help="Number of images that each system sees.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    overwrite: Overwrite = False,
) -> None:
    """Train every system alike and fill the tables. If it is stopped, run it again to resume."""
    from larmor.cli.console import console
    from larmor.cluster.comparison.grid import fill, load_grid

    grid = load_grid(preset, {"num_images": num_images} if num_images else {})
    name = f"tables-{Path(preset).stem}-{grid.num_images}"
    fill(grid, name, data, output, to, device, partial(console.print, markup=False), overwrite)
    console.print(str(to / "tables.md"))


@commands.command()
def report(
    urls: Annotated[list[str], typer.Argument(metavar="URL...", help="URLs of runs and sweeps.")],
    to: Annotated[Path, typer.Option(help="The HTML file to write; tables as CSV go beside it.", **LOCAL)] = Path(
        "report.html"
    ),
    evaluation: Annotated[Path | None, typer.Option(help="A folder made by `larmor evaluate`.", **LOCAL)] = None,
    trust_code: TrustCode = None,
) -> None:
    """Write one HTML page about a sweep or a run: trials, curves, landscape, panels, cost; CSV beside it."""
    from larmor.cli.console import console
    from larmor.tuning.report.report import write_report

    for path in write_report(to, urls, evaluation, trust_code):
        console.print(str(path), markup=False)
