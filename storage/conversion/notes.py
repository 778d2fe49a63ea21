"""Notes about scans, as a person reads them: what many scans share is said once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_NAMED = 3  # scans of one note that are named; the others are counted


def describe_notes(notes: Iterable[tuple[str, Sequence[str]]]) -> list[str]:
    """One line for each different note of (scan, its notes), with the scans that have it."""
    scans: dict[str, list[str]] = {}
    for name, sentences in notes:
        for sentence in sentences:
            scans.setdefault(sentence, []).append(name)
    return [f"note: {_names(names)}: {sentence}" for sentence, names in scans.items()]


def _names(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
