"""Non-Cartesian trajectories rounded to the Cartesian grid: in which order they visit its points."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

GOLDEN_RATIO = (1 + 5**0.5) / 2
NUM_INTERLEAVES = 8  # a Fibonacci number: that many golden-angle steps divide the circle nearly evenly
PITCH_POWER = 2  # radius ∝ angle**power: 1 is a spiral of constant pitch, larger ones are denser in the centre
SAMPLES_PER_POINT = 32  # traces stop at this many samples per point of the grid, whatever they have missed

Trace = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # angles (n,) → y, x (n, samples), from the centre out


def radial_ranks(rng: np.random.Generator, shape: tuple[int, ...], count: int) -> np.ndarray:
    """When spokes visit the points (height, width), at least `count` of them; infinity where they never come.

    Straight lines through the centre, from edge to edge, each turned by the golden angle of 111.2° from the
    one before; the first angle is random. A spoke is walked from the centre outwards, to both sides at once.

    Source: Winkelmann et al., An optimal radial profile order based on the golden ratio, IEEE TMI 2007.
    """
    reach = max(shape) // 2 + 1
    steps = np.repeat(np.arange(reach + 1), 2)[1:] * np.resize([1, -1], 2 * reach + 1)
    return _visits(partial(_spokes, steps, shape), np.pi / GOLDEN_RATIO, rng, shape, count)


def _spokes(steps: np.ndarray, shape: tuple[int, ...], angles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One sample for each row or column, whichever the spoke crosses more of."""
    y, x = np.sin(angles) * shape[0], np.cos(angles) * shape[1]
    length = np.maximum(np.abs(y), np.abs(x))
    return (y / length)[:, None] * steps, (x / length)[:, None] * steps


def spiral_ranks(rng: np.random.Generator, shape: tuple[int, ...], count: int) -> np.ndarray:
    """When spirals visit the points (height, width), at least `count` of them; infinity where they never come.

    Interleaves from the centre to the corners, each turned by the golden angle of 137.5° from the one
    before; the first angle is random. Their pitch grows with the radius, and they have as many turns as
    make about `NUM_INTERLEAVES` of them visit `count` points.

    Source: Kim, Adalsteinsson and Spielman, Simple analytic variable density spiral design, MRM 2003.
    """
    size, corner = max(shape), np.sqrt(0.5)
    length_of_turn = 2 * np.pi * corner / (PITCH_POWER + 1) * np.sqrt(np.prod(shape))  # in points, roughly
    turns = count / NUM_INTERLEAVES / length_of_turn
    u = np.linspace(0, 1, 8 * size + int(64 * turns))
    fine = corner * u**PITCH_POWER * np.exp(2j * np.pi * turns * u)
    walked = np.concatenate([[0], np.cumsum(np.abs(np.diff(fine)))]) * size
    steps = np.arange(0, walked[-1])  # at most one point apart, so that a trace has no gaps
    spiral = np.interp(steps, walked, fine.real) + 1j * np.interp(steps, walked, fine.imag)
    return _visits(partial(_interleaves, spiral, shape), 2 * np.pi / GOLDEN_RATIO, rng, shape, count)


def _interleaves(spiral: np.ndarray, shape: tuple[int, ...], angles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    turned = np.exp(1j * angles)[:, None] * spiral
    return turned.imag * shape[0], turned.real * shape[1]


def _visits(trace: Trace, turn: float, rng: np.random.Generator, shape: tuple[int, ...], count: int) -> np.ndarray:
    """The sample (counted over all traces) that comes first to each point, for traces until `count` are visited.

    On long, narrow grids the very last points can take more traces than `SAMPLES_PER_POINT` allows: they stay out.
    """
    height, width = shape
    start = rng.uniform(0, 2 * np.pi)
    samples_per_trace = trace(np.zeros(1))[0].size
    num_traces = 1 + count // samples_per_trace
    while True:
        y, x = (np.rint(part).astype(int) for part in trace(start + turn * np.arange(num_traces)))
        y, x = y + height // 2, x + width // 2
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        visited = (y * width + x)[inside]
        first = np.full(height * width, np.inf)
        np.minimum.at(first, visited, np.arange(visited.size, dtype=float))
        if np.isfinite(first).sum() >= count or num_traces * samples_per_trace > SAMPLES_PER_POINT * first.size:
            return first.reshape(height, width)
        num_traces += 1 + num_traces // 2
