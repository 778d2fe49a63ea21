"""Tables as plain text, for a terminal and for a log."""

from __future__ import annotations

import io
from collections.abc import Sequence

_WIDE = 10_000  # characters: a line is never folded


def aligned(rows: Sequence[Sequence[str]], first_right: int | None = None) -> list[str]:
    """A line for each row, its columns two spaces apart; those from number `first_right` on are aligned to the right.

    What looks like markup stays as it is, and no line ends in spaces.
    """
    from rich.console import Console  # here: a worker that prints no table does without
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return []
    table = Table.grid(padding=(0, 2))
    for number in range(len(rows[0])):
        right = first_right is not None and number >= first_right
        table.add_column(justify="right" if right else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console(file=io.StringIO(), width=_WIDE, color_system=None, force_terminal=False)
    with console.capture() as captured:
        console.print(table)
    return [line.rstrip() for line in captured.get().splitlines()]
