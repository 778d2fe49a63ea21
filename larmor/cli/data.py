"""Commands about data sets: convert, verify, inspect, masks."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from larmor.cli.app import LOCAL, MASK_KINDS, Overwrite

commands = typer.Typer(rich_markup_mode=None)


@commands.command()
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
        Path | None, typer.Option(help="YAML: {validation: [SUBJECT…], test: [SUBJECT…]}.", **LOCAL)
    ] = None,
    validation: Annotated[list[str] | None, typer.Option(help="A subject of the validation split; repeatable.")] = None,
    test: Annotated[list[str] | None, typer.Option(help="A subject of the test split; repeatable, optional.")] = None,
    subject: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN",
            help="The subject of a scan: a regular expression that is searched in its path (last match, first group), "
            "or the number of folders above the file up to the one named for the subject. "
            "Default: headers, BIDS names, folders.",
        ),
    ] = None,
    matrix: Annotated[int, typer.Option(min=32, max=4096, help="Height and width of slices cut from images.")] = 256,
    min_foreground: Annotated[
        float, typer.Option(min=0, max=1, help="Smallest fraction of foreground pixels in slices cut from images.")
    ] = 0.15,
    plane: Annotated[
        str,
        typer.Option(
            help="Of slices cut from images: coronal, or native, in which the file stores them. A series in time (4-D "
            "NIfTI) needs native: each slice becomes a volume of frames."
        ),
    ] = "coronal",
    skip_invalid: Annotated[
        bool, typer.Option("--skip-invalid", help="Leave bad volumes out instead of stopping.")
    ] = False,
    if_missing: Annotated[
        bool, typer.Option("--if-missing", help="Do nothing if the data set already exists.")
    ] = False,
    sensitivity_maps: Annotated[
        bool, typer.Option("--sensitivity-maps", help="Store coil sensitivity maps (ESPIRiT) beside multi-coil data.")
    ] = False,
    guide: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SCANS",
            help="Scans of the same subjects in a second contrast, on the same grid, stored beside the first: files, "
            "folders, patterns or s3:// URLs; repeatable.",
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, max=64, help="Threads; default: the number of processors, at most 8.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Convert scans to k-space slices in sharded Zarr, split by subject. If it is killed, run it again to resume."""
    from larmor.cli.console import console, progress_bar
    from larmor.commands.data import convert as convert_scans
    from larmor.commands.data import held_out_subjects, is_converted
    from larmor.commands.feedback import Feedback
    from larmor.storage.conversion.convert import ConvertOptions, describe_reports
    from larmor.storage.conversion.notes import describe_notes
    from larmor.storage.formats.source import check_plane
    from larmor.storage.objects.parallel import default_threads

    if if_missing and is_converted(to):
        console.print(f"{to}: the data set already exists; nothing to do")
        return
    options = ConvertOptions(
        matrix=(matrix, matrix),
        min_foreground=min_foreground,
        held_out=held_out_subjects(splits, validation or [], test or []),
        overwrite=overwrite,
        skip_invalid=skip_invalid,
        sensitivity_maps=sensitivity_maps,
        num_threads=threads or default_threads(),
        plane=check_plane(plane),
    )
    with progress_bar() as show:
        feedback = Feedback(partial(console.print, markup=False), show)
        reports = convert_scans(sources, to, options, subject=subject, guide=guide or [], feedback=feedback)
    notes = describe_notes((report.volume, report.notes) for report in reports)
    for line in [*describe_reports(reports, min_foreground), *notes]:
        console.print(line, markup=False)
    if resumed := sum(report.resumed for report in reports):
        console.print(f"resumed an interrupted conversion; {resumed} scans had already been read")
    console.print(f"{sum(report.kept for report in reports)} slices in {to}")


@commands.command()
def verify(
    url: Annotated[str, typer.Argument(help="A data set made by `larmor convert`.")],
    threads: Annotated[
        int | None, typer.Option(min=1, max=64, help="Threads; default: the number of processors, at most 8.")
    ] = None,
) -> None:
    """Read a whole data set and check every checksum, value and column. Exit code 1 if anything is wrong."""
    from larmor.cli.console import console, errors, progress_bar
    from larmor.commands.data import verify as verify_dataset
    from larmor.commands.feedback import Feedback

    with progress_bar() as show:
        report = verify_dataset(url, threads, feedback=Feedback(console.print, show))
    for problem in report.problems:
        errors.print(problem, markup=False)
    console.print(report.summary())
    if report.problems:
        raise typer.Exit(1)


@commands.command()
def inspect(
    url: Annotated[str, typer.Argument(help="A data set made by `larmor convert`.")],
    to: Annotated[Path | None, typer.Option(help="Also write a contact sheet to this file (PNG).", **LOCAL)] = None,
) -> None:
    """Print shapes, chunks, shards, subjects and provenance. `--to` also draws a contact sheet of the slices."""
    from larmor.cli.console import console
    from larmor.commands.data import inspect as inspect_dataset

    for line in inspect_dataset(url, to):
        console.print(line)
    if to:
        console.print(f"contact sheet: {to}")


@commands.command()
def masks(
    to: Annotated[Path, typer.Option(help="The PNG file to write.", **LOCAL)] = Path("masks.png"),
    size: Annotated[str, typer.Option(help="Height and width: HEIGHTxWIDTH.")] = "256x256",
    kind: Annotated[
        list[str] | None, typer.Option(help=f"Kind of mask: {MASK_KINDS}; repeatable; default: all.")
    ] = None,
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
