"""Look at scans, data sets, models and results in a browser."""

from __future__ import annotations

import webbrowser
from typing import Annotated

import typer

from larmor.cli.app import TrustCode
from larmor.cli.stopping import until_stopped

commands = typer.Typer(rich_markup_mode=None)


@commands.command()
def view(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A data set, scans as for `larmor convert`, a run or a sweep, a model directory, or a folder made by "
            "`larmor reconstruct` or `larmor evaluate`.",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(help="Also reconstruct with this model: a model directory, or a URL as for `larmor reconstruct`."),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="A method without training: wavelet, total_variation, alternating or bart; repeatable."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Of a data set: train, validation or test (default); of a run: validation.")
    ] = None,
    plane: Annotated[
        str, typer.Option(help="Of slices cut from images: coronal, or native, as for `larmor convert`.")
    ] = "coronal",
    port: Annotated[int, typer.Option(min=0, max=65535, help="On this machine; 0: a free one.")] = 0,
    trust_code: TrustCode = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Look at slices side by side in a browser: target, zero-filled, reconstruction, errors. Ctrl-C ends it."""
    from larmor.cli.console import console
    from larmor.commands.view import ViewOptions
    from larmor.commands.view import view as serve
    from larmor.storage.formats.source import check_plane

    server = serve(source, ViewOptions(model, method or [], split, check_plane(plane), port, trust_code))
    console.print(f"{server.url}", markup=False, soft_wrap=True)
    console.print("Open this address in a browser on this machine. Ctrl-C ends the command.", markup=False)
    if open_browser:
        webbrowser.open(server.url)
    try:
        with until_stopped():
            server.wait()
    finally:
        server.close()
