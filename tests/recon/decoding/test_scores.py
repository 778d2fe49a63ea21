"""Identification and its permutation test; what decoding is compared with."""

from __future__ import annotations

import numpy as np
import pytest

from larmor.recon.decoding.ridge import best_ridge, mean_image, ridge
from larmor.recon.decoding.scores import correlations, identified, permutation_p, score
from larmor.storage.dataset.trials import Trials

RNG = np.random.default_rng(0)
STIMULI = RNG.random((24, 1, 16, 16)).astype(np.float32)
RUNS = np.repeat(np.arange(4), 6)


def linear_trials(noise: float, seed: int = 1) -> Trials:
    """Trials whose BOLD is a linear function of the stimulus."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((256, 3 * 400))
    bold = (STIMULI.reshape(24, -1) - 0.5) @ weights
    bold += noise * bold.std() * rng.standard_normal(bold.shape)
    return Trials(STIMULI, bold.reshape(24, 3, 400).astype(np.float32), RUNS)


def test_what_is_decoded_exactly_is_always_identified() -> None:
    found = score(STIMULI, STIMULI, RUNS)
    assert (found.identification, found.correlation) == (1.0, pytest.approx(1))
    assert found.p < 0.001
    assert found.metrics["ssim"] == pytest.approx(1)


def test_one_image_for_all_is_chance() -> None:
    found = score(np.repeat(STIMULI.mean(axis=0, keepdims=True), 24, axis=0), STIMULI, RUNS)
    assert found.identification == pytest.approx(0.5)
    assert found.p > 0.2
    assert score(np.full_like(STIMULI, 0.5), STIMULI, RUNS).identification == 0.5, "ties count half"


def test_trials_of_the_same_stimulus_are_not_compared() -> None:
    stimuli = STIMULI[[0, 0, 0, 1]]
    assert identified(stimuli, stimuli).diagonal().mean() == 1
    assert np.all(identified(STIMULI[[0, 0]], STIMULI[[0, 0]]) == 0.5)


def test_chance_is_not_significant_and_permutations_stay_within_runs() -> None:
    values = [permutation_p(identified(RNG.random(STIMULI.shape), STIMULI), RUNS, 200) for _ in range(10)]
    assert sum(p < 0.05 for p in values) <= 2
    table = identified(STIMULI, STIMULI)
    assert permutation_p(table, np.arange(24), 50) == 1, "a run of one trial can only be permuted to itself"


def test_correlation_is_numpys() -> None:
    found = correlations(STIMULI[:3], STIMULI[3:6])
    whole = np.asarray(np.corrcoef(STIMULI[:6].reshape(6, -1)))
    np.testing.assert_allclose(found, whole[:3, 3:], atol=1e-6)


def test_ridge_is_the_solution_of_its_normal_equations() -> None:
    trials = linear_trials(noise=0.5)
    train, test = trials.of_runs([3], wanted=False), trials.of_runs([3])
    inputs, targets = train.bold.reshape(18, -1).astype(np.float64), train.stimulus.reshape(18, -1)
    penalty = 0.1 * np.trace(inputs @ inputs.T) / 18
    mean = targets.mean(axis=0)
    weights = np.linalg.solve(inputs.T @ inputs + penalty * np.eye(inputs.shape[1]), inputs.T @ (targets - mean))
    expected = np.clip(test.bold.reshape(6, -1) @ weights + mean, 0, 1)
    np.testing.assert_allclose(ridge(train, test.bold, 0.1).reshape(6, -1), expected, atol=1e-4)


def test_ridge_finds_what_is_there_and_the_mean_does_not() -> None:
    trials = linear_trials(noise=0.1)
    train, validation, test = trials.of_runs([0, 1]), trials.of_runs([2]), trials.of_runs([3])
    found = best_ridge(train, validation, test.bold, lambda target, image: -float(np.mean((target - image) ** 2)))
    assert score(found, test.stimulus, test.run).identification > 0.6
    assert score(mean_image(train, 6), test.stimulus, test.run).identification == pytest.approx(0.5)
