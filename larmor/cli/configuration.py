"""The command about what an experiment's file can say: config."""

from __future__ import annotations

from typing import Annotated

import typer

from larmor.cli.app import Overrides

_WIDEST = 1000
commands = typer.Typer(rich_markup_mode=None)


@commands.command()
def config(
    experiment: Annotated[
        str | None,
        typer.Argument(help="An experiment's YAML file, or the name of a shipped experiment; default: the defaults."),
    ] = None,
    overrides: Overrides = None,
    keys: Annotated[
        bool, typer.Option("--keys", help="List every key with its type, unit, default, range and description.")
    ] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema, by which editors complete and check YAML.")
    ] = False,
    page: Annotated[
        bool, typer.Option("--page", help="Print the list of keys as Markdown, as the documentation has it.")
    ] = False,
) -> None:
    """Print an experiment in full as YAML, every default included; or what an experiment can say at all."""
    from larmor.commands.configuration import key_page, resolve, schema_text

    if sum((keys, schema, page)) > 1:
        raise typer.BadParameter("--keys, --schema and --page exclude each other; choose one")
    if keys:
        _print_keys()
    elif schema:
        typer.echo(schema_text(), nl=False)
    elif page:
        typer.echo(key_page(), nl=False)
    else:
        given = [*([experiment] if experiment else []), *(overrides or [])]
        source = None if experiment is None or "=" in experiment else experiment
        typer.echo(resolve(source, given[1 if source else 0 :]), nl=False)


def _print_keys() -> None:
    from rich.console import Console
    from rich.table import Column, Table

    from larmor.commands.configuration import all_sections

    table = Table(Column("key", no_wrap=True), "type", "unit", "default", "range", "description")
    for section in all_sections():
        for key in section.keys:
            table.add_row(key.name, key.type, key.unit, key.default, key.range, key.description)
        table.add_section()
    # a file or a pipe has no width: each key is a line there
    width = None if Console().is_terminal else _WIDEST
    Console(markup=False, highlight=False, width=width).print(table)
