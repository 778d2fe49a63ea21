"""Reconstruct at the scanner."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from larmor.cli.app import MODEL, Address, Runtime, TrustCode
from larmor.cli.stopping import until_stopped
from larmor.storage.objects.errors import InputError

if TYPE_CHECKING:
    from larmor.cluster.experiments.experiment import ClusterConfig

_GLANCE_SECONDS = 2.0  # between two looks at how many replicas there are

commands = typer.Typer(rich_markup_mode=None)


@commands.command()
def serve(
    model_dir: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL)],
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
            min=0,
            max=65535,
            help="Answer /health there and, with a token (LARMOR_METRICS_TOKEN, else a random one), Prometheus' "
            "/metrics; 0: a free one.",
        ),
    ] = None,
    http: Annotated[
        bool,
        typer.Option(
            "--http",
            help="Take whole volumes over HTTP instead, by Ray Serve: POST /reconstruct with the token "
            "(LARMOR_HTTP_TOKEN, else a random one).",
        ),
    ] = False,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="EXPERIMENT",
            help="With --http: an experiment's file, whose cluster.serving says replicas and batch size.",
        ),
    ] = None,
    replicas: Annotated[int | None, typer.Option(min=1, help="Of the model, with --http; default: 1.")] = None,
    max_replicas: Annotated[
        int | None, typer.Option(min=1, help="With --http: up to so many replicas while requests wait.")
    ] = None,
    largest: Annotated[int, typer.Option(min=1, help="MiB of a volume that are taken, with --http.")] = 256,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="With --http: slices that the network takes at once; default: 8.")
    ] = None,
    address: Address = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    runtime: Runtime = "auto",
    trust_code: TrustCode = None,
) -> None:
    """Reconstruct at the scanner, slice by slice: MRD streaming (Gadgetron, FIRE) over TCP, or volumes over HTTP.

    Ctrl-C or SIGTERM ends it.
    """
    listening_at = (host, port, connections, patience, unencrypted)
    if http:
        if metrics_port is not None:
            raise InputError("--metrics-port with --http: the metrics are at /metrics of the same port; leave it out")
        if runtime not in ("auto", "eager"):
            raise InputError(f"--runtime {runtime} with --http: replicas run networks as trained; leave it out")
        from larmor.commands.serve import serving_cluster

        taken = serving_cluster(cluster, replicas=replicas, max_replicas=max_replicas, batch_size=batch_size)
        return _serve_http(model_dir, listening_at, taken, largest * 2**20, address, device, trust_code)
    if (cluster, replicas, max_replicas, batch_size, address) != 5 * (None,):
        raise InputError(
            "--cluster, --replicas, --max-replicas, --batch-size and --address are of volumes over HTTP; add --http"
        )
    from larmor.cli.console import console
    from larmor.commands.feedback import Feedback
    from larmor.commands.serve import serve as start
    from larmor.recon.serving.counts import MetricsServer
    from larmor.recon.serving.server import Listening

    listening = Listening(*listening_at)
    feedback = Feedback(partial(console.print, markup=False))
    server = start(model_dir, listening, device=device, feedback=feedback, trust_code=trust_code, runtime=runtime)
    where, number = server.address
    console.print(f"listening at {where}:{number}", markup=False, soft_wrap=True)
    if unencrypted:
        console.print("Other machines may reach this address; nothing that is sent is encrypted.", markup=False)
    metrics = None
    try:
        if metrics_port is not None:
            metrics_token = os.environ.get("LARMOR_METRICS_TOKEN")  # not an option: others see command lines
            metrics = MetricsServer(server.counts, server.is_alive, metrics_port, metrics_token)
            shown = "the token of LARMOR_METRICS_TOKEN" if metrics_token else f"token {metrics.token}"
            console.print(f"metrics at {metrics.url} ({shown})", markup=False, soft_wrap=True)
        with until_stopped():
            server.wait()
    finally:
        if metrics:
            metrics.close()
        server.close()


def _serve_http(
    model_dir: str,
    listening: tuple[str, int, int, float, bool],
    cluster: ClusterConfig,
    largest: int,
    address: str | None,
    device: str,
    trust_code: list[str] | None,
) -> None:
    from larmor.cli.console import console
    from larmor.cluster.on_ray.http_server import HttpOptions, running_replicas
    from larmor.commands.serve import serve_http
    from larmor.recon.serving.server import Listening

    known = os.environ.get("LARMOR_HTTP_TOKEN")  # not an option: others see command lines
    options = HttpOptions(Listening(*listening), cluster, largest)
    options = replace(options, token=known) if known else options
    with serve_http(model_dir, options, address=address, device=device, trust_code=trust_code) as url:
        shown = "the token of LARMOR_HTTP_TOKEN" if known else f"token {options.token}"
        console.print(f"POST volumes to {url}/reconstruct ({shown})", markup=False, soft_wrap=True)
        if options.listening.unencrypted:
            console.print("Other machines may reach this address; nothing that is sent is encrypted.", markup=False)
        count = cluster.serving.replicas
        with until_stopped():
            while True:
                time.sleep(_GLANCE_SECONDS)
                if (now := running_replicas()) != count:
                    count = now
                    console.print(f"replicas: {count}", markup=False)


@commands.command()
def stream(
    model_dir: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL)],
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    trust_code: TrustCode = None,
) -> None:
    """Reconstruct an MRD 2 stream from standard input to standard output, slice by slice: phantom | larmor | images."""
    from larmor.cli.console import errors
    from larmor.commands.serve import stream as reconstruct_stream

    if sys.stdin.isatty() or sys.stdout.isatty():
        raise InputError("MRD 2 is read from a pipe and written to one: mrd_source | larmor stream MODEL | mrd_reader")
    with _own_output() as to:
        count = reconstruct_stream(model_dir, sys.stdin.buffer, to, device=device, trust_code=trust_code)
    errors.print(f"{count} image(s)", markup=False)


@contextmanager
def _own_output() -> Iterator[io.FileIO]:
    """Standard output for the stream alone: what a library prints goes to standard error meanwhile."""
    place = os.dup(1)
    os.dup2(2, 1)
    try:
        with io.FileIO(place, "wb") as to:
            yield to
    finally:
        sys.stdout.flush()
