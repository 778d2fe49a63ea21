"""`larmor simulate`: scans that nobody measured, from images that somebody did."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from larmor.cli.app import LOCAL, Overwrite

simulate_app = typer.Typer(help="Make scans from images.", no_args_is_help=True, rich_markup_mode=None)


@simulate_app.callback()
def simulate() -> None:
    """Make scans from images."""


@simulate_app.command("coils")
def simulate_coils(
    sources: Annotated[
        list[str], typer.Argument(help="Images: files, folders, patterns or s3:// URLs of any format of `convert`.")
    ],
    to: Annotated[Path, typer.Option(help="Folder for the scans.", **LOCAL)],
    num_coils: Annotated[int, typer.Option(min=1, max=128, help="Number of coils, on a circle around the head.")] = 8,
    noise: Annotated[
        float, typer.Option(min=0, help="Standard deviation of the noise in k-space / the largest pixel of the scan.")
    ] = 0.0,
    matrix: Annotated[int, typer.Option(min=32, max=4096, help="Height and width of slices cut from volumes.")] = 256,
    min_foreground: Annotated[
        float, typer.Option(min=0, max=1, help="Smallest fraction of foreground pixels in slices cut from volumes.")
    ] = 0.15,
    every: Annotated[int, typer.Option(min=1, help="Measure one slice in so many of each volume.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives other coils, positions and phases.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Turn images into fully sampled k-space of several coils (.npy), with smooth maps and phase, for `convert`."""
    from larmor.cli.console import console, progress_bar
    from larmor.storage.examples import coils
    from larmor.storage.formats.recognise import find_sources

    options = coils.CoilOptions(num_coils, noise, matrix, min_foreground, every, seed)
    with progress_bar() as show:
        refs = find_sources(sources, console.print)
        paths = coils.simulate_coils(refs, to, options, overwrite, show)
    for path in paths:
        console.print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")
    console.print("Next: larmor convert, with the same --splits as for the images")


@simulate_app.command("contrast")
def simulate_contrast_of(
    heads: Annotated[list[Path], typer.Argument(help="T1 heads as NIfTI, or folders of them.", **LOCAL)],
    to: Annotated[Path, typer.Option(help="Folder for the images.", **LOCAL)],
    echo: Annotated[float, typer.Option(min=1, max=1000, help="Echo time in ms.")] = 100.0,
    repetition: Annotated[float, typer.Option(min=1, max=100_000, help="Repetition time in ms.")] = 4000.0,
    noise: Annotated[
        float, typer.Option(min=0, max=1, help="Standard deviation of the noise / the signal of all protons.")
    ] = 0.01,
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives other textures, bias fields and noise.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Make a T2-weighted image of each T1 head from its tissues, for `convert --guide`. A minute for each head."""
    from larmor.cli.console import console, progress_bar, show_heads
    from larmor.recon.evaluation.head_tissues import find_heads
    from larmor.recon.evaluation.second_contrast import ContrastOptions, simulate_contrast

    options = ContrastOptions(repetition, echo, noise, seed)
    with progress_bar() as show:
        found = simulate_contrast(find_heads(heads), to, options, overwrite, show)
    show_heads(found)
    without = "" if all(one.path for one in found) else ", without the heads that are left out"
    console.print(f"Next: larmor convert HEADS --guide {to} --to URL{without}", markup=False)
