"""Larmor: train GANs that reconstruct MRI from too few measurements, on a Ray cluster, straight from object storage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from larmor.tuning.search.load_model import load_model

__all__ = ["load_model"]
_PLACES = {"load_model": "larmor.tuning.search.load_model"}


def __getattr__(name: str) -> Any:
    """Public functions are imported when they are first asked for: `import larmor` needs no PyTorch."""
    if name not in _PLACES:
        raise AttributeError(f"module 'larmor' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_PLACES[name]), name)
