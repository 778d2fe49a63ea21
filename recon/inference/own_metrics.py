"""Metrics of one's own, of images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from larmor.recon.recipe.own_code import call_part
from larmor.recon.recipe.own_metric import load_metric
from larmor.storage.objects.errors import InputError


@torch.no_grad()
def own_figures(names: Sequence[str], target: Tensor, reconstruction: Tensor) -> dict[str, float]:
    """Each metric `MODULE:NAME` of one image (height, width) float32, target in [0, 1], on the device of the images.

    Where the reconstruction holds NaN, every figure is NaN, as Larmor's are, and no metric is called. Raises
    `InputError` for a metric that fails, or gives anything but one finite number.
    """
    if not torch.isfinite(reconstruction).all():
        return dict.fromkeys(names, math.nan)
    return {name: _figure(name, target, reconstruction) for name in names}


def _figure(name: str, target: Tensor, reconstruction: Tensor) -> float:
    metric = load_metric(name)
    if isinstance(metric, nn.Module):
        metric = metric.eval().to(target.device)
    how = f"metric(reconstruction, target) with images {list(target.shape)}"
    found: Any = call_part(name, lambda _: metric(reconstruction, target), how)
    try:
        number = float(found)
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if not math.isfinite(number):
        shape = getattr(found, "shape", None)
        what = f"{type(found).__name__} of shape {list(shape)}" if shape is not None and len(shape) else repr(found)
        raise InputError(f"{name}: called as {how}: expected one finite number, got {what}")
    return number
