"""The application, and what several commands share: arguments, options, paths on this machine."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from larmor.cluster.experiments.shipped import shipped_experiments
from larmor.recon.recipe.mask_kinds import ALIASES, KINDS
from larmor.storage.formats.provenance import larmor_version


def local_path(text: str | Path) -> Path:
    if "://" in str(text):
        raise typer.BadParameter(f"{text}: is a URL, but a path on this machine is expected")
    return Path(text)


LogLevel = Literal["debug", "info", "warning", "error"]
LOCAL: dict[str, Any] = {"parser": local_path}  # pathlib would make s3:/… of a URL, and a folder of that name

MODEL = (
    "A model directory made by `larmor pull`, or a URL: of a run, a sweep or a published model (s3://…, https://…, "
    "hf://OWNER/NAME, larmor://NAME)."
)

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},  # of every command below as well
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Experiment = Annotated[
    str,
    typer.Argument(help=f"An experiment's YAML file, or a shipped experiment: {', '.join(shipped_experiments())}."),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Changes to the experiment: key=value, such as training.num_steps=100")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Delete existing results of that name and start again.")]
TrustCode = Annotated[
    list[str] | None,
    typer.Option(
        help="Run this code, for a model whose network, loss or mask is not Larmor's: the folder of a package, a .py "
        "file, or 'installed'; repeatable."
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Write nothing: print places, resources, steps per epoch, parameters, and memory and time of a few steps "
        "on this machine.",
    ),
]
MASK_KINDS = ", ".join([*(kind for kind in KINDS if kind != "file"), *ALIASES])
"""For help: the kinds that need nothing but a ratio."""
Runtime = Annotated[
    str,
    typer.Option(
        help="How a CPU runs the networks: auto (the fastest here that agrees with float32), eager (bit for bit as "
        "trained), channels_last or bfloat16."
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, help="How many slices the generator processes at once.")]
Address = Annotated[
    str | None,
    typer.Option(help="A running Ray cluster (auto, HOST:PORT or ray://…); default: start one on this machine."),
]

Dashboard = Annotated[
    str,
    typer.Option(
        "--address", envvar="RAY_API_SERVER_ADDRESS", help="The cluster's dashboard, such as http://127.0.0.1:8265."
    ),
]
Job = Annotated[str, typer.Argument(help="The job's name: the name of the run, or sweep-NAME.")]
IsSweep = Annotated[bool, typer.Option("--sweep", help="Submit the sweep instead of the training.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"larmor {larmor_version()}")
        raise typer.Exit


def _log(level: LogLevel | None) -> None:
    """Only Larmor's own messages: what clients of the store say in detail has headers in it."""
    if level:
        logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        logging.getLogger("larmor").setLevel(level.upper())


def print_version() -> None:
    """Print the version of Larmor."""
    _print_version(True)


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
    log_level: Annotated[
        LogLevel | None,
        typer.Option(
            envvar="LARMOR_LOG_LEVEL",
            help="From which level on messages of this process go to its standard error.",
            callback=_log,
        ),
    ] = None,
) -> None:
    """Train GANs that reconstruct MRI from too few measurements, on a Ray cluster, straight from object storage."""
