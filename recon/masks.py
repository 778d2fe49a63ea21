"""Undersampling masks: which points of k-space are measured."""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field


class MaskConfig(BaseModel):
    """`gaussian1d` measures whole columns (phase-encoding lines), `gaussian2d` single points, both denser
    towards the centre of k-space, which is fully sampled."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["gaussian1d", "gaussian2d"] = "gaussian1d"
    sampling_ratio: float = Field(0.1, gt=0, le=1, description="measured points / all points")
    center_fraction: float = Field(
        0.04, ge=0, lt=1, description="fully sampled centre, as a part of each axis that is undersampled"
    )
    spread: float = Field(0.22, gt=0, description="standard deviation of the density, as a part of the axis")
    per_slice: bool = Field(False, description="a mask of its own for every sample, else one for all")
    seed: int = Field(0, ge=0)


def make_mask(config: MaskConfig, shape: tuple[int, int], stream: tuple[int, ...] = ()) -> np.ndarray:
    """A boolean mask (height, width), True where k-space is measured.

    Exactly `round(sampling_ratio · n)` of the n columns or points are measured: the centre first, the
    others drawn without replacement with Gaussian weights. A pure function of its arguments; `stream`
    (epoch, slice, …) chooses one of many masks where `per_slice` is set, and is ignored otherwise.

    Source: the 1-D and 2-D Gaussian masks of DAGAN, with the sampling ratio met exactly.
    """
    rng = np.random.default_rng([config.seed, *(stream if config.per_slice else ())])
    height, width = shape
    x = (np.arange(width) - width // 2) / width
    y = (np.arange(height) - height // 2) / height
    if config.kind == "gaussian1d":
        columns = _draw(rng, x[None, :], config)
        return np.broadcast_to(columns, shape).copy()
    radius = np.hypot(y[:, None], x[None, :])
    return _draw(rng, radius, config)


def _draw(rng: np.random.Generator, distance: np.ndarray, config: MaskConfig) -> np.ndarray:
    """Choose points by weights exp(−distance²/2σ²), as the largest of weight + Gumbel noise."""
    count = max(1, round(config.sampling_ratio * distance.size))
    keys = -0.5 * (distance / config.spread) ** 2 + rng.gumbel(size=distance.shape)
    keys[np.abs(distance) <= config.center_fraction / 2] = np.inf
    # a centre larger than the ratio allows is filled from the inside out
    order = np.lexsort((np.abs(distance).ravel(), -keys.ravel()))
    mask = np.zeros(distance.size, bool)
    mask[order[:count]] = True
    return mask.reshape(distance.shape)


def achieved_ratio(mask: np.ndarray) -> float:
    """Measured points / all points."""
    return float(mask.mean())


def mask_hash(mask: np.ndarray) -> str:
    """SHA-256 of shape and pattern, to tell whether two results used the same mask."""
    return hashlib.sha256(repr(mask.shape).encode() + np.packbits(mask).tobytes()).hexdigest()


def describe_mask(config: MaskConfig, shape: tuple[int, int]) -> dict[str, object]:
    """What to record of a result's undersampling: the setting, the achieved ratio, and the pattern's hash.

    With `per_slice` the hash is that of the first slice's mask: equal settings give equal hashes.
    """
    mask = make_mask(config, shape, (0, 0))
    return {**config.model_dump(), "achieved_ratio": achieved_ratio(mask), "sha256": mask_hash(mask)}
