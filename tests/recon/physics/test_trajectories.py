"""Trajectories on the grid: connected lines from the centre, in golden-angle order, that reach every count."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.ndimage import label

from larmor.recon.physics.trajectories import NUM_INTERLEAVES, radial_ranks, spiral_ranks

SHAPES = [(64, 64), (65, 33), (32, 128), (8, 8), (5, 200)]
Ranks = Callable[[np.random.Generator, tuple[int, ...], int], np.ndarray]
both = pytest.mark.parametrize("ranks", [radial_ranks, spiral_ranks])


def first(ranks: np.ndarray, count: int) -> np.ndarray:
    return ranks <= np.sort(ranks.ravel())[count - 1]


@both
@pytest.mark.parametrize("shape", SHAPES)
def test_every_count_is_reached_and_no_rank_is_given_twice(ranks: Ranks, shape: tuple[int, int]) -> None:
    for part in (0.02, 0.1, 0.5, 0.9):
        count = max(1, round(part * shape[0] * shape[1]))
        found = ranks(np.random.default_rng(0), shape, count)
        visited = found[np.isfinite(found)]
        assert visited.size >= count
        assert np.unique(visited).size == visited.size
        assert found[shape[0] // 2, shape[1] // 2] == 0


@both
@pytest.mark.parametrize("shape", SHAPES)
def test_lines_have_no_gaps(ranks: Ranks, shape: tuple[int, int]) -> None:
    for seed in range(5):
        count = round(0.15 * shape[0] * shape[1])
        mask = first(ranks(np.random.default_rng(seed), shape, count), count)
        pieces, num_pieces = label(mask, np.ones((3, 3)))
        edge = np.concatenate([pieces[[0, -1]].ravel(), pieces[:, [0, -1]].ravel()])
        centre = pieces[shape[0] // 2, shape[1] // 2]
        assert centre
        assert set(range(1, num_pieces + 1)) <= {centre, *edge}, "a spiral may leave the grid and come back"


@both
def test_the_corners_are_reached(ranks: Ranks) -> None:
    for seed in range(5):
        reached = np.isfinite(ranks(np.random.default_rng(seed), (40, 40), 1500))
        assert all(reached[y, x].any() for y in (slice(3), slice(-3, None)) for x in (slice(3), slice(-3, None)))


def test_a_spoke_is_a_straight_line_from_edge_to_edge() -> None:
    for seed in range(20):
        found = radial_ranks(np.random.default_rng(seed), (65, 65), 1)
        y, x = (np.nonzero(np.isfinite(found))[axis] - 32 for axis in (0, 1))
        assert len(y) == 65
        direction = np.linalg.svd(np.stack([y, x]))[0][:, 0]
        assert np.abs(direction[0] * x - direction[1] * y).max() < 0.75
        assert max(np.ptp(y), np.ptp(x)) == 64


def test_spokes_turn_by_the_golden_angle() -> None:
    found = radial_ranks(np.random.default_rng(3), (401, 401), 2400)
    order = np.argsort(found.ravel())[: np.isfinite(found).sum()]
    y, x = (part - 200 for part in np.unravel_index(order, found.shape))
    at_the_edge = np.maximum(np.abs(y), np.abs(x)) == 200
    angles = np.degrees(np.arctan2(y, x))[at_the_edge][::2]  # a spoke has two ends
    turned = np.diff(angles) % 180
    assert turned.size >= 4
    assert turned == pytest.approx(111.246, abs=0.5)


def test_a_spiral_turns_about_as_many_interleaves_as_planned() -> None:
    shape, count = (128, 128), 1600
    for seed in range(5):
        mask = first(spiral_ranks(np.random.default_rng(seed), shape, count), count)
        y, x = np.nonzero(mask)
        radius = np.hypot(y - 64, x - 64)
        crossing = mask & (np.abs(np.hypot(*(np.mgrid[:128, :128] - 64)) - 6) < 1)
        assert radius.max() > 64, "out to the corners, not a part of the centre"
        assert NUM_INTERLEAVES - 3 <= label(crossing, np.ones((3, 3)))[1] <= NUM_INTERLEAVES + 3
