"""Tables as plain text."""

from __future__ import annotations

from larmor.storage.objects.text_table import aligned

ROWS = [("run", "step", "state"), ("[red]a[/red]", "10/100", ""), ("日本", "–", "new")]


def test_columns_stand_below_each_other() -> None:
    assert aligned(ROWS) == ["run           step    state", "[red]a[/red]  10/100", "日本          –       new"]
    right = ["run             step  state", "[red]a[/red]  10/100", "日本               –    new"]
    assert aligned(ROWS, first_right=1) == right


def test_a_long_row_is_one_line() -> None:
    assert aligned([("word " * 500, "x" * 3000)]) == ["word " * 500 + "  " + "x" * 3000]


def test_no_rows_are_no_lines() -> None:
    assert aligned([]) == []
