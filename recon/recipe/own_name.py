"""How parts of one's own are named: `MODULE:NAME`, or as an installed package calls them. Nothing is imported here."""

from __future__ import annotations

import importlib.metadata
import re

_OWN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def is_own(name: str) -> bool:
    """Whether it is `MODULE:NAME`."""
    return _OWN.fullmatch(name) is not None


def short_name(name: str) -> str:
    """NAME of `MODULE:NAME`; any other name as it is."""
    return name.rpartition(":")[2]


def declared_parts(group: str) -> dict[str, str]:
    """Name → `MODULE:NAME`, of each entry point that installed packages declare; nothing is imported."""
    entries = importlib.metadata.entry_points(group=group)
    found = {entry.name: entry.value.partition("[")[0].strip() for entry in entries}
    return {name: path for name, path in found.items() if is_own(path)}
