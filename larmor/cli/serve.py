"""Reconstruct at the scanner."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from larmor.cli.app import LOCAL

commands = typer.Typer(rich_markup_mode=None)


@commands.command()
def serve(
    model_dir: Annotated[Path, typer.Argument(metavar="MODEL", help="Made by `larmor pull`.", **LOCAL)],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 9002,
    host: Annotated[str, typer.Option(help="The address to listen at; only this machine reaches 127.0.0.1.")] = (
        "127.0.0.1"
    ),
    unencrypted: Annotated[
        bool,
        typer.Option(
            "--unencrypted",
            help="Listen to other machines too, though the protocol has neither encryption nor a password.",
        ),
    ] = False,
    connections: Annotated[int, typer.Option(min=1, help="At most at once.")] = 8,
    patience: Annotated[
        float, typer.Option(min=0.1, help="Seconds without a message after which a connection is closed.")
    ] = 60.0,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help="Answer /health and, with a token, Prometheus' /metrics there; 0: a free one."
        ),
    ] = None,
    metrics_token: Annotated[
        str | None,
        typer.Option(envvar="LARMOR_METRICS_TOKEN", help="The bearer token of /metrics; default: a random one, shown."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Reconstruct at the scanner, slice by slice: MRD streaming (Gadgetron, FIRE) over TCP. Ctrl-C ends it."""
    from larmor.cli.console import console
    from larmor.commands.feedback import Feedback
    from larmor.commands.serve import serve as start
    from larmor.recon.serving.counts import MetricsServer
    from larmor.recon.serving.server import Listening

    listening = Listening(host, port, connections, patience, unencrypted)
    server = start(model_dir, listening, device=device, feedback=Feedback(partial(console.print, markup=False)))
    where, number = server.address
    console.print(f"listening at {where}:{number}", markup=False, soft_wrap=True)
    if unencrypted:
        console.print("Other machines may reach this address; nothing that is sent is encrypted.", markup=False)
    metrics = None
    try:
        if metrics_port is not None:
            metrics = MetricsServer(server.counts, server.is_alive, metrics_port, metrics_token)
            shown = "the token given" if metrics_token else f"token {metrics.token}"
            console.print(f"metrics at {metrics.url} ({shown})", markup=False, soft_wrap=True)
        server.wait()
    except KeyboardInterrupt:
        console.print("closed", markup=False)
    finally:
        if metrics:
            metrics.close()
        server.close()
