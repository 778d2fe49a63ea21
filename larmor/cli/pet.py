"""`larmor pet`: simulated FDG PET of real heads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from larmor.cli.app import LOCAL, Overwrite

pet_app = typer.Typer(help="Simulated FDG PET of real heads.", no_args_is_help=True, rich_markup_mode=None)


@pet_app.callback()
def pet() -> None:
    """Simulated FDG PET of real heads."""


@pet_app.command("simulate")
def pet_simulate(
    heads: Annotated[list[Path], typer.Argument(help="T1 heads as NIfTI, or folders of them.", **LOCAL)],
    to: Annotated[Path, typer.Option(help="Folder for the maps.", **LOCAL)],
    pixel: Annotated[float, typer.Option(min=0.5, max=8, help="Height, width and thickness of a pixel in mm.")] = 2.0,
    matrix: Annotated[int, typer.Option(min=32, max=1024, help="Height and width of a slice in pixels.")] = 128,
    every: Annotated[int, typer.Option(min=1, help="Keep one axial slice in so many.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives other textures and lesions.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Make activity and attenuation maps (.npy, for `convert`) of the tissues of T1 heads. A minute for each head."""
    from larmor.cli.console import console, progress_bar, show_heads
    from larmor.recon.evaluation.fdg_phantom import FdgOptions, simulate_pet
    from larmor.recon.evaluation.head_tissues import find_heads

    with progress_bar() as show:
        found = simulate_pet(find_heads(heads), to, FdgOptions(pixel, matrix, every, seed), overwrite, show)
    show_heads(found)
    console.print(f"Next: larmor convert {to} --to URL, with the same --splits as for the heads", markup=False)
