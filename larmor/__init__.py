"""Larmor: train GANs that reconstruct MRI from too few measurements, on a Ray cluster, straight from object storage.

What the command line does can be called from Python: each command is a function of the same name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from larmor.commands.data import convert, inspect, verify
    from larmor.commands.models import evaluate, export, load_model, pull, reconstruct
    from larmor.commands.training import load_experiment, sweep, train
    from larmor.commands.view import view

__all__ = [
    "convert",
    "evaluate",
    "export",
    "inspect",
    "load_experiment",
    "load_model",
    "pull",
    "reconstruct",
    "sweep",
    "train",
    "verify",
    "view",
]
_PLACES = {
    "data": ("convert", "inspect", "verify"),
    "models": ("evaluate", "export", "load_model", "pull", "reconstruct"),
    "training": ("load_experiment", "sweep", "train"),
    "view": ("view",),
}


def __getattr__(name: str) -> Any:
    """Public functions are imported when they are first asked for: `import larmor` needs no PyTorch."""
    for module, names in _PLACES.items():
        if name in names:
            from importlib import import_module

            return getattr(import_module(f"larmor.commands.{module}"), name)
    raise AttributeError(f"module 'larmor' has no attribute '{name}'")
