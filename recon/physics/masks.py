"""Undersampling masks: which points of k-space are measured."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from tokenize import TokenError
from zipfile import BadZipFile

import numpy as np

from larmor.recon.physics.trajectories import radial_ranks, spiral_ranks
from larmor.recon.recipe.mask_config import MaskConfig, RatioRange
from larmor.recon.recipe.mask_kinds import COLUMN_KINDS
from larmor.recon.recipe.own_code import call_part
from larmor.recon.recipe.own_name import is_own
from larmor.storage.objects.errors import InputError

# Sets the draws of ratios apart from those of points, which are seeded by [seed, epoch, slice].
_RATIO_STREAM = 0x52617469


def make_mask(config: MaskConfig, shape: tuple[int, int], stream: tuple[int, ...] = ()) -> np.ndarray:
    """A boolean mask (height, width), True where k-space is measured; zero frequency at [height//2, width//2].

    Exactly `round(sampling_ratio · n)` of the n columns or points are measured: the centre first, the
    others in the order of their kind. A pure function of its arguments; `stream` (epoch, slice, …) chooses
    one of many masks where `per_slice` is set, one of many ratios where there is a range of them (`with_ratio`), and is
    ignored otherwise. Kind `file` is the file's content, whatever the ratio and the stream.

    Raises InputError if the file cannot be read, is no mask, is not that of `sha256`, or does not fit `shape`.

    Source: the 1-D and 2-D Gaussian masks of DAGAN, with the sampling ratio met exactly.
    """
    if config.file is not None:
        return _fitting(config.file, config.sha256, shape)
    config = with_ratio(config, stream)
    rng = np.random.default_rng([config.seed, *(stream if config.per_slice else ())])
    if is_own(config.kind):
        return _own(config, shape, rng)
    height, width = shape
    x = np.abs(np.arange(width) - width // 2) / width
    y = np.abs(np.arange(height) - height // 2) / height
    if config.kind in COLUMN_KINDS:
        return np.broadcast_to(_choose(rng, x[None, :], config), shape).copy()
    return _choose(rng, np.hypot(y[:, None], x[None, :]), config)


def with_ratio(config: MaskConfig, stream: tuple[int, ...]) -> MaskConfig:
    """The mask of one sample with its own ratio, drawn evenly from the range; one without a range is as it was.

    Its points are drawn as with that ratio alone: a sample of a range and one of its ratio have the same mask.
    """
    if not isinstance(config.sampling_ratio, RatioRange):
        return config
    drawn = np.random.default_rng([config.seed, _RATIO_STREAM, *stream]).uniform(*config.ratios)
    return config.model_copy(update={"sampling_ratio": drawn})


def _own(config: MaskConfig, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    how = "mask(shape, sampling_ratio, rng)"
    mask = call_part(config.kind, lambda part: np.asarray(part(shape, config.sampling_ratio, rng)), how)
    if mask.shape != shape or mask.dtype != bool or not mask.any():
        raise InputError(
            f"mask.kind={config.kind}: expected booleans {shape} of which some are true, got {mask.dtype} {mask.shape}"
        )
    return np.asarray(mask)


def _choose(rng: np.random.Generator, distance: np.ndarray, config: MaskConfig) -> np.ndarray:
    """The columns (1, width) or points (height, width) to measure, given their distance from the centre."""
    assert not isinstance(config.sampling_ratio, RatioRange), "drawn before"
    count = max(1, round(config.sampling_ratio * distance.size))
    centre = distance <= config.center_fraction / 2
    ranks = _ranks(rng, distance, centre, count, config)
    ranks[centre] = -np.inf
    flat = ranks.ravel()
    # not sorted whole, which takes most of the time where a training wants a mask for each slice
    last = np.partition(flat, count - 1)[count - 1]
    mask = flat < last
    # equals from the inside out: a centre larger than the ratio allows, too
    equals = np.flatnonzero(flat == last)
    mask[equals[np.argsort(distance.ravel()[equals], kind="stable")][: count - int(mask.sum())]] = True
    return mask.reshape(distance.shape)


def _ranks(
    rng: np.random.Generator, distance: np.ndarray, centre: np.ndarray, count: int, config: MaskConfig
) -> np.ndarray:
    """Numbers in the shape of `distance`: which points to measure after the centre, the lowest first."""
    weights = -0.5 * (distance / config.spread) ** 2
    match config.kind:
        case "gaussian1d" | "gaussian2d":  # weighted draw without replacement: the largest of weight + Gumbel noise
            return -(weights + rng.gumbel(size=distance.shape))
        case "poisson2d":
            from larmor.recon.physics.poisson_disc import (
                poisson_disc_ranks,  # SciPy's optimisers take a third of a second
            )

            return poisson_disc_ranks(rng, weights, centre, count)
        case "uniform1d":
            return _equispaced_ranks(rng, centre, count)
        case "random1d":
            return rng.random(distance.shape)
        case "center_periphery1d":
            return _center_periphery_ranks(rng, distance, centre, count)
        case "radial":
            return radial_ranks(rng, distance.shape, count)
        case "spiral":
            return spiral_ranks(rng, distance.shape, count)
        case _:
            raise AssertionError(f"{config.kind} ranks nothing")


def _equispaced_ranks(rng: np.random.Generator, centre: np.ndarray, count: int) -> np.ndarray:
    """0 for as many columns as the centre leaves to measure, in steps that differ by at most 1; 1 for the others."""
    columns = np.flatnonzero(~centre)
    num_wanted = max(0, count - int(centre.sum()))
    ranks = np.ones(centre.size)
    if num_wanted:
        offset = rng.integers(columns.size)
        ranks[columns[(np.arange(num_wanted) * columns.size + offset) // num_wanted]] = 0
    return ranks.reshape(centre.shape)


def _center_periphery_ranks(
    rng: np.random.Generator, distance: np.ndarray, centre: np.ndarray, count: int
) -> np.ndarray:
    """Half of `count` the central columns (−∞), a quarter equally spaced in the rest (0), then any (1 to 2).

    After the mask of low and high frequencies, at random and on purpose, of Hossain et al. (2023); the shares are ours.
    """
    inner = centre.copy()
    inner.ravel()[np.argsort(distance.ravel(), kind="stable")[: -(-count // 2)]] = True
    num_inner = int(inner.sum())
    ranks = _equispaced_ranks(rng, inner, num_inner + min(count // 4, max(0, count - num_inner)))
    return np.where(inner, -np.inf, ranks + (ranks > 0) * rng.random(ranks.shape))


def _fitting(file: str, wanted: str | None, shape: tuple[int, int]) -> np.ndarray:
    mask, found = _read(file)
    if wanted not in (None, found):
        raise InputError(
            f"mask {file} is not the one that mask.sha256={wanted} names (it has {found[:12]}…): it has changed since; "
            "restore the old one, or start a new run with mask.sha256=null"
        )
    if mask.shape != shape:
        (rows, columns), (height, width) = mask.shape, shape
        raise InputError(
            f"mask {file} is {rows}×{columns}, but the images are {height}×{width} (height×width): "
            f"save a mask of {height}×{width}, or crop the images to {rows}×{columns}"
        )
    return mask.copy()


@lru_cache(maxsize=4)
def _read(file: str) -> tuple[np.ndarray, str]:
    """A file's mask (height, width) bool, and its hash; read once: a file changed later needs a new process."""
    remedy = "save the mask with numpy.save, as True/False or 1/0 in (height, width)"
    try:
        content = np.load(Path(file).expanduser(), allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"mask {file} does not exist: {remedy}, and give its path in mask.file") from None
    except (OSError, ValueError, EOFError, TokenError, BadZipFile, MemoryError) as error:  # as numpy meets damage
        raise InputError(f"mask {file} cannot be read as .npy ({error}): {remedy}") from error
    if not isinstance(content, np.ndarray):
        raise InputError(f"mask {file} is an archive of several arrays: {remedy}")
    if content.ndim != 2:
        raise InputError(f"mask {file} has {content.ndim} axes {content.shape}, not 2: {remedy}")
    if content.dtype.kind not in "buif" or not np.isin(content, (0, 1)).all():
        raise InputError(f"mask {file} ({content.dtype}) holds values other than 0 and 1: {remedy}")
    if not content.any():
        raise InputError(f"mask {file} {content.shape} measures nothing: {remedy}, 1 where k-space is measured")
    mask = content.astype(bool)
    return mask, mask_hash(mask)


def achieved_ratio(mask: np.ndarray) -> float:
    """Measured points / all points."""
    return float(mask.mean())


def mask_hash(mask: np.ndarray) -> str:
    """SHA-256 of shape and pattern, to tell whether two results used the same mask."""
    return hashlib.sha256(repr(mask.shape).encode() + np.packbits(mask).tobytes()).hexdigest()


def describe_mask(config: MaskConfig, shape: tuple[int, int]) -> dict[str, object]:
    """What to record of a result's undersampling: the setting, the achieved ratio, and the pattern's hash.

    Where masks differ from slice to slice, ratio and hash are those of the first one's: equal settings give equal
    hashes.
    """
    mask = make_mask(config, shape, (0, 0))
    return {**config.model_dump(), "achieved_ratio": achieved_ratio(mask), "sha256": mask_hash(mask)}
