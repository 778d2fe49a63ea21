"""Larmor: train GANs that reconstruct MRI from too few measurements, on a Ray cluster, straight from object storage.

What the command line does can be called from Python: each command is a function of the same name. The names in
`__all__` are stable (docs/api.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from larmor.commands.data import (
        ConvertOptions,
        InputError,
        VerifyReport,
        VolumeReport,
        convert,
        inspect,
        open_dataset,
        verify,
    )
    from larmor.commands.feedback import Feedback
    from larmor.commands.history import history
    from larmor.commands.models import (
        Evaluated,
        EvaluateOptions,
        Pulled,
        Pushed,
        ReconstructOptions,
        evaluate,
        export,
        load_model,
        pull,
        push,
        reconstruct,
    )
    from larmor.commands.training import RunResult, SweepResult, TrialRecord, load_experiment, sweep, train
    from larmor.commands.view import ViewOptions, view

__all__ = [
    "ConvertOptions",
    "EvaluateOptions",
    "Evaluated",
    "Feedback",
    "InputError",
    "Pulled",
    "Pushed",
    "ReconstructOptions",
    "RunResult",
    "SweepResult",
    "TrialRecord",
    "VerifyReport",
    "ViewOptions",
    "VolumeReport",
    "convert",
    "evaluate",
    "export",
    "history",
    "inspect",
    "load_experiment",
    "load_model",
    "open_dataset",
    "pull",
    "push",
    "reconstruct",
    "sweep",
    "train",
    "verify",
    "view",
]
_PLACES = {
    "data": (
        "ConvertOptions",
        "InputError",
        "VerifyReport",
        "VolumeReport",
        "convert",
        "inspect",
        "open_dataset",
        "verify",
    ),
    "feedback": ("Feedback",),
    "history": ("history",),
    "models": (
        "EvaluateOptions",
        "Evaluated",
        "Pulled",
        "Pushed",
        "ReconstructOptions",
        "evaluate",
        "export",
        "load_model",
        "pull",
        "push",
        "reconstruct",
    ),
    "training": ("RunResult", "SweepResult", "TrialRecord", "load_experiment", "sweep", "train"),
    "view": ("ViewOptions", "view"),
}


def __getattr__(name: str) -> Any:
    """Public names are imported when they are first asked for: `import larmor` needs no PyTorch."""
    for module, names in _PLACES.items():
        if name in names:
            from importlib import import_module

            return getattr(import_module(f"larmor.commands.{module}"), name)
    raise AttributeError(f"module 'larmor' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
