"""One complete slice to its image, as `larmor reconstruct` makes it: what every server does."""

from __future__ import annotations

import numpy as np

from larmor.recon.models.model import Model
from larmor.recon.models.reconstruct import images_of
from larmor.recon.models.scans import slices_of
from larmor.storage.formats.measured import MeasuredKspace
from larmor.storage.objects.errors import InputError


def check_model(model: Model) -> None:
    """Raises `InputError` for a model that does not reconstruct single slices of measured k-space."""
    if model.physics.signal.mode == "pet":
        raise InputError(f"{model.folder}: reconstructs PET; serve a model for MRI")
    if model.physics.signal.guide:
        raise InputError(
            f"{model.folder}: sees a second contrast beside each slice (signal.guide), which no scanner sends; "
            "reconstruct files with `larmor reconstruct --guide`, or serve a model without"
        )
    if model.physics.stack > 1:
        raise InputError(
            f"{model.folder}: sees {model.physics.stack} slices together (data.stack); serve a model with data.stack=1"
        )


def check_coils(model: Model, source: MeasuredKspace) -> None:
    """Raises `InputError` for more coils than the model takes: virtual ones need the whole scan."""
    signal, channels = model.physics.signal, source.slice_shape[0]
    if signal.keeps_coils and channels > signal.num_coils:
        raise InputError(
            f"{channels} coils are sent; the model takes {signal.num_coils} (signal.num_coils), and virtual coils "
            "need the whole scan: reconstruct it from a file"
        )


def reconstruct_slices(model: Model, source: MeasuredKspace) -> np.ndarray:
    """(slice, height, width) float32 images of measured k-space, one slice after another.

    Raises `InputError` for what the model does not take.
    """
    check_coils(model, source)
    slices = slices_of(source, str(source.file), model.physics)
    return np.concatenate(list(images_of(model, slices, 1)))
