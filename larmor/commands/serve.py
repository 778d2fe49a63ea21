"""Reconstruct at the scanner: what `larmor serve` does, callable from Python."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from larmor.commands.feedback import QUIET, Feedback

if TYPE_CHECKING:
    from larmor.recon.serving.server import Listening, ScanServer


def serve(
    model_dir: str | Path, listening: Listening | None = None, *, device: str = "cpu", feedback: Feedback = QUIET
) -> ScanServer:
    """Serve a pulled model to scanners by the MRD streaming protocol (`larmor serve`); `close` ends it.

    Raises `InputError` for a model that does not exist or cannot reconstruct slice by slice, and for a place that
    cannot be used.
    """
    from larmor.recon.models.model import load_model
    from larmor.recon.serving.server import ScanServer

    return ScanServer(load_model(Path(model_dir), device), listening, feedback.say)
