"""Poisson discs: points keep their distance, follow the density and stop at the count."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import cKDTree

from larmor.recon.physics.poisson_disc import poisson_disc_ranks

SHAPE = (96, 80)
DISTANCE = np.hypot(*((axis / size - 0.5) for axis, size in zip(np.mgrid[:96, :80], SHAPE, strict=True)))
CENTRE = DISTANCE < 0.03
WEIGHTS = -0.5 * (DISTANCE / 0.22) ** 2


def points(seed: int, count: int, weights: np.ndarray = WEIGHTS) -> np.ndarray:
    """A mask (height, width) of the first `count` points."""
    ranks = poisson_disc_ranks(np.random.default_rng(seed), weights, CENTRE, count)
    assert np.isfinite(ranks).sum() == max(count, CENTRE.sum())
    return np.isfinite(ranks)


def nearest(mask: np.ndarray, region: np.ndarray) -> np.ndarray:
    """The distance from each point of the mask in a region to its nearest neighbour in the whole mask."""
    found, _ = cKDTree(np.argwhere(mask)).query(np.argwhere(mask & region), k=2)
    return np.asarray(found[:, 1])


@pytest.mark.parametrize("count", [300, 768, 1500])
def test_points_of_the_outer_part_keep_a_distance_that_random_ones_do_not(count: int) -> None:
    outer = (DISTANCE > 0.3) & (DISTANCE < 0.45)
    rng = np.random.default_rng(1)
    kept, by_chance = [], []
    for seed in range(5):
        mask = points(seed, count)
        shuffled = mask.copy()
        shuffled[outer] = rng.permutation(mask[outer])
        kept.append(nearest(mask, outer))
        by_chance.append(nearest(shuffled, outer))
    assert np.concatenate(kept).mean() > 1.25 * np.concatenate(by_chance).mean()
    assert np.percentile(np.concatenate(kept), 2) > 1.4 * np.percentile(np.concatenate(by_chance), 2)


@pytest.mark.parametrize("count", [400, 768, 2000, 4000])
def test_the_density_is_that_of_a_weighted_draw(count: int) -> None:
    rng = np.random.default_rng(2)
    draws = []
    for _ in range(30):
        keys = np.where(CENTRE, np.inf, WEIGHTS + rng.gumbel(size=SHAPE))
        draws.append(keys >= np.sort(keys.ravel())[-count])
    wanted, found = np.mean(draws, axis=0), np.mean([points(seed, count) for seed in range(10)], axis=0)
    for number in range(4):
        band = np.floor((DISTANCE - 0.05) / 0.1) == number
        assert found[band].mean() == pytest.approx(wanted[band].mean(), rel=0.2)


def test_a_flat_density_is_even() -> None:
    mask = points(0, 500, np.zeros(SHAPE))
    assert nearest(mask, ~CENTRE)[CENTRE.sum() :].min() >= 2
    blocks = mask.reshape(4, 24, 4, 20).sum((1, 3))[:, [0, 3]]  # away from the centre
    assert np.ptp(blocks) < 12


@pytest.mark.parametrize("spread", [1e-3, 0.02, 100])
@pytest.mark.parametrize("part", [0.001, 0.1, 0.5, 0.999, 1])
@pytest.mark.filterwarnings("error")
def test_every_count_is_met_at_any_spread(spread: float, part: float) -> None:
    count = round(part * DISTANCE.size)
    assert points(0, count, -0.5 * (DISTANCE / spread) ** 2).sum() == max(count, CENTRE.sum())
