"""How good decoded images are: is an image nearer to its own stimulus than to another's?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from larmor.recon.inference.metrics import slice_metrics

NUM_PERMUTATIONS = 2000


@dataclass(frozen=True)
class Scores:
    """`identification`: how often an image correlates more with its own stimulus than with another's, over all pairs of
    trials with different stimuli; chance is 0.5. `p`: how often permuted stimuli reach that. `correlation`: of the
    pixels of image and stimulus, mean over trials. `metrics`: means of `slice_metrics`."""

    identification: float
    p: float
    correlation: float
    metrics: dict[str, float]


def correlations(decoded: np.ndarray, stimuli: np.ndarray) -> np.ndarray:
    """(n, m): Pearson's correlation of the pixels of n images and m stimuli; of a constant image 0."""
    first, second = (_centred(images.reshape(len(images), -1).astype(np.float64)) for images in (decoded, stimuli))
    return first @ second.T


def _centred(rows: np.ndarray) -> np.ndarray:
    rows = rows - rows.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.where(norm > 1e-9, rows / np.maximum(norm, 1e-9), 0)


def identified(decoded: np.ndarray, stimuli: np.ndarray) -> np.ndarray:
    """(n, n): how well image i would be identified if stimulus j were its own: the share of the stimuli that differ
    from j and correlate less with image i; ties count half. 0.5 where no stimulus differs."""
    pixels = stimuli.reshape(len(stimuli), -1)
    _, kind = np.unique(pixels, axis=0, return_inverse=True)
    differ = kind.reshape(-1)[:, None] != kind.reshape(-1)[None]
    near = np.round(correlations(decoded, stimuli), 9)  # equal stimuli must tie
    found = np.full(near.shape, 0.5)
    for own in range(len(stimuli)):
        others = near[:, differ[own]]
        if others.shape[1]:
            mine = near[:, [own]]
            found[:, own] = ((mine > others) + 0.5 * (mine == others)).mean(axis=1)
    return found


def permutation_p(
    table: np.ndarray, runs: np.ndarray, num_permutations: int = NUM_PERMUTATIONS, seed: int = 0
) -> float:
    """How often the mean of the diagonal of `identified` is reached with the stimuli of each run permuted.

    Trials of one run are exchangeable where the order of the stimuli was drawn anew in each. The observed order is
    counted as one of the permutations (Phipson and Smyth, 2010).
    """
    rng = np.random.default_rng(seed)
    places = np.arange(len(table))
    observed, reached = float(table.diagonal().mean()), 1
    groups = [np.flatnonzero(runs == run) for run in np.unique(runs)]
    for _ in range(num_permutations):
        order = places.copy()
        for group in groups:
            order[group] = rng.permutation(group)
        reached += float(table[places, order].mean()) >= observed - 1e-12
    return reached / (num_permutations + 1)


def score(decoded: np.ndarray, stimuli: np.ndarray, runs: np.ndarray) -> Scores:
    """Scores of the images of trials, (n, 1, height, width) as the stimuli; `runs` (n,)."""
    table = identified(decoded, stimuli)
    rows = [slice_metrics(target[0], image[0]) for target, image in zip(stimuli, decoded, strict=True)]
    return Scores(
        float(table.diagonal().mean()),
        permutation_p(table, runs),
        float(correlations(decoded, stimuli).diagonal().mean()),
        {name: float(np.mean([row[name] for row in rows])) for name in rows[0]},
    )
