"""Metrics of one's own: what they say of themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from larmor.recon.recipe.metric import METRICS, Metric, check_metric, own_entry
from larmor.recon.recipe.own_code import INSTALLED, call_part, import_part, make_importable
from larmor.recon.recipe.own_name import short_name
from larmor.storage.objects.errors import InputError


def find_metric(name: str) -> Metric:
    """The entry of a metric of Larmor's, or of one's own, which is imported for that.

    Raises `InputError` if it cannot be imported, or does not say whether higher is better.
    """
    return METRICS[name] if name in METRICS else _described(name)


def own_metrics(names: Sequence[str], code: Sequence[str | Path] | None) -> tuple[str, ...]:
    """MODULE:NAME of each of `names`, which lie in the folders `code` or are installed.

    Raises `InputError` for a metric of Larmor's, which every table has, and for an unknown one.
    """
    make_importable(path for path in code or () if str(path) != INSTALLED)
    found = tuple(dict.fromkeys(check_metric(name) for name in names))
    for name in found:
        if name in METRICS:
            raise InputError(f"--metric {name}: is in every table already; name a metric of your own, MODULE:NAME")
        find_metric(name)
    return found


def _described(name: str) -> Metric:
    metric = load_metric(name)
    higher = getattr(metric, "higher_is_better", None)
    if not isinstance(higher, bool):
        raise InputError(
            f"{name}: does not say whether higher is better; give it an attribute higher_is_better, True or False"
        )
    definition = (getattr(metric, "__doc__", None) or "").strip().partition("\n")[0].rstrip(".")
    title, unit = getattr(metric, "title", None) or short_name(name), getattr(metric, "unit", None) or ""
    return own_entry(str(title), higher, definition, str(unit))


def load_metric(name: str) -> Callable[..., Any]:
    """The function `MODULE:NAME`, or one object of the class of that name, made without arguments.

    Raises `InputError` if it cannot be imported or made, or cannot be called.
    """
    part = import_part(name)
    metric = call_part(name, lambda _: _made(part), f"{short_name(name)}()") if isinstance(part, type) else part
    if not callable(metric):
        raise InputError(f"{name}: expected a function, or a class with __call__, got {type(metric).__name__}")
    return metric


@lru_cache(maxsize=16)
def _made(kind: type) -> Any:
    """One object of each class: it may hold a network."""
    return kind()
