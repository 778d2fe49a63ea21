"""`larmor decode`: pictures of what a person saw, from fMRI. Decoding, not reconstruction."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from larmor.cli.app import LOCAL, MODEL, Overwrite

decode_app = typer.Typer(
    help="Decoding, not reconstruction: pictures of what a person saw, from fMRI (system tigan).",
    no_args_is_help=True,
    rich_markup_mode=None,
)
DataSet = Annotated[str, typer.Option(help="Where the data set goes: a folder or s3://BUCKET/PREFIX.")]


@decode_app.command("fetch")
def decode_fetch(
    to: DataSet,
    source: Annotated[
        str,
        typer.Option(
            help="haxby: real fMRI, with a drawn symbol of its category for each block; digits: real handwritten "
            "digits, with simulated fMRI."
        ),
    ] = "haxby",
    snr: Annotated[
        float, typer.Option(help="Of digits: deviation of the signal, divided by that of the noise.")
    ] = 0.15,
    num_trials: Annotated[int, typer.Option(min=24, max=1797, help="Of digits: how many are shown, in 12 runs.")] = 600,
    seed: Annotated[int, typer.Option(min=0, help="Of digits: another seed gives other voxels and noise.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Make a data set of fMRI trials of a package of the index that pip is configured with; nothing is run."""
    from larmor.cli.console import console, progress_bar
    from larmor.commands.decoding import fetch
    from larmor.commands.feedback import Feedback
    from larmor.storage.examples.simulated_bold import SimulatedBold

    simulation = SimulatedBold(num_trials=num_trials, snr=snr, seed=seed)
    with progress_bar() as show:
        trials = fetch(source, to, simulation, overwrite=overwrite, feedback=Feedback(console.print, show))
    console.print(f"{len(trials.run)} trials in {to}")


@decode_app.command("convert")
def decode_convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A .npz: stimulus (trial, 1, size, size) in [0, 1], bold (trial, volume, voxel), run (trial,).",
            **LOCAL,
        ),
    ],
    to: DataSet,
    stimuli: Annotated[str, typer.Option(help="What the stimuli are, for the tables.")] = "as given",
    overwrite: Overwrite = False,
) -> None:
    """Make a data set of fMRI trials of your own arrays."""
    from larmor.cli.console import console
    from larmor.commands.decoding import convert

    trials = convert(source, to, stimuli, overwrite=overwrite)
    console.print(f"{len(trials.run)} trials in {to}")


@decode_app.command("evaluate")
def decode_evaluate(
    model_dirs: Annotated[list[str], typer.Argument(metavar="MODEL...", help=MODEL)],
    url: Annotated[str, typer.Argument(metavar="DATASET_URL", help="Made by `larmor decode fetch` or `convert`.")],
    to: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the table and the picture; default: evaluation in the first model directory.", **LOCAL
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Evaluate models on the runs that each held out, beside the mean image and ridge regression."""
    from larmor.cli.console import console
    from larmor.commands.decoding import evaluate

    decoded = evaluate(model_dirs, url, to=to, device=device)
    for line in (*decoded.lines, *map(str, decoded.files)):
        console.print(line, markup=False)
