"""How long work says how far it is."""

from __future__ import annotations

from collections.abc import Callable

Count = Callable[[int, int], None]
"""Called with what is done and what there is in all."""

Progress = Callable[[str, int, "int | None"], None]
"""Called with a description, what is done and, where known, what there is in all."""


def silent(description: str, done: int, total: int | None) -> None:
    """A `Progress` that tells nobody."""
