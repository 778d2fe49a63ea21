"""What a command says while it works: silent from Python, a terminal's lines and bars from the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from larmor.storage.objects.progress import Progress

Say = Callable[[str], None]


def _nothing(*_: Any) -> None: ...


@dataclass(frozen=True)
class Feedback:
    """`say` takes a line; `progress` (description, done, total); `report` the row of a training's report, or the
    record of a trial that ended."""

    say: Say = _nothing
    progress: Progress = _nothing
    report: Callable[[Any], None] = _nothing


QUIET = Feedback()
