"""Points that keep a distance from each other, closer together where more of them are wanted."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import distance_transform_edt
from scipy.optimize import brentq

FIRST_SCALE = 1.2  # a little too far apart at first: the count must not be reached before the pattern is even
SHRINK = 0.88
FAINTEST = -30.0  # log weight, below the greatest
LOWEST_DENSITY = 1e-4


def poisson_disc_ranks(rng: np.random.Generator, weights: np.ndarray, taken: np.ndarray, count: int) -> np.ndarray:
    """The order (height, width) in which points are measured after those `taken`; infinity for the others.

    Points come in random order, and one is measured if it is at least its distance away, in points of the
    grid, from every point measured before (of the same round: that one's distance); when none fits any more,
    all distances shrink and the next round begins, until `count` are measured. The distances are such that the
    density is that of a draw with these log `weights`.

    Source: relaxation dart throwing, McCool and Fiume, Hierarchical Poisson disk sampling distributions, 1992.
    """
    ranks = np.full(weights.shape, np.inf)
    ranks[taken] = 0
    num_measured = int(taken.sum())
    if num_measured >= count:
        return ranks
    wanted = _squared_distance(_density(weights, taken, count - num_measured)) * FIRST_SCALE**2
    while num_measured < count:
        # on a grid squared distances are whole: between two of them, some points get the one, some the other
        squares = np.floor(wanted + rng.random(wanted.shape)).astype(int)
        free = np.isinf(ranks) & (distance_transform_edt(np.isinf(ranks)) ** 2 > squares - 0.5)
        found = _throw(rng, free, squares)[: count - num_measured]
        ranks[found[:, 0], found[:, 1]] = num_measured + np.arange(len(found))
        num_measured += len(found)
        wanted *= SHRINK**2
    return ranks


def _density(weights: np.ndarray, taken: np.ndarray, num_wanted: int) -> np.ndarray:
    """The chance (height, width) of each point in a draw of `num_wanted` points by log weights, `taken` left out."""
    weights = np.clip(weights - weights[~taken].max(), FAINTEST, 0)
    open_weights = weights[~taken]
    num_drawn = min(num_wanted, open_weights.size - 0.5)  # all of them would need an infinite scale

    def missing(log_scale: float) -> float:
        return num_drawn + float(np.expm1(-np.exp(open_weights + log_scale)).sum())

    scale = brentq(missing, -25, 5 - FAINTEST, xtol=1e-3)
    return np.maximum(-np.expm1(-np.exp(weights + scale)), LOWEST_DENSITY)


def _squared_distance(density: np.ndarray) -> np.ndarray:
    """The squared distance at which random points, until no further one fits, reach a density in (0, 1].

    Measured on a large grid: squared distances of 1, 2 and 4 make 1, 0.364 and 0.187 of the points.
    """
    return np.maximum(0.73 / density, 0.43 + 0.57 / density)


def _throw(rng: np.random.Generator, free: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Points (n, 2) of `free` in random order, without those nearer to an earlier one than that one's distance."""
    places = np.argwhere(free)
    places = places[rng.permutation(len(places))]
    of_places = squares[places[:, 0], places[:, 1]]
    discs = {square: _disc(square) for square in np.unique(of_places).tolist()}
    margin = max((len(disc) // 2 for disc in discs.values()), default=0)
    still_free = np.pad(free, margin)  # so that no disc sticks out
    found = []
    for number, ((y, x), square) in enumerate(zip((places + margin).tolist(), of_places.tolist(), strict=True)):
        if still_free[y, x]:
            found.append(number)
            if square > 1:
                outside = discs[square]
                reach = len(outside) // 2
                still_free[y - reach : y + reach + 1, x - reach : x + reach + 1] &= outside
    return places[found]


def _disc(square: int) -> np.ndarray:
    """False at the offsets (2r+1, 2r+1) whose squared length is less than `square`."""
    reach = int(np.ceil(np.sqrt(square))) - 1 if square > 1 else 0
    y, x = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    return np.asarray(y**2 + x**2 >= square)
