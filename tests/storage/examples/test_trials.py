"""What decoding is tried with: blocks of an experiment, drawn symbols, simulated fMRI."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from larmor.storage.examples.haxby import FILES, standardized, trials_of_blocks
from larmor.storage.examples.simulated_bold import DIGITS, SimulatedBold, simulate_trials
from larmor.storage.examples.symbols import category_symbols
from larmor.storage.objects.errors import InputError

CATEGORIES = ["rest", "face", "face", "rest", "cat", "cat", "cat", "cat", "rest"]
RUNS = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1])


def test_symbols_are_eight_and_differ() -> None:
    symbols = np.stack(list(category_symbols().values())).reshape(8, -1)
    assert symbols.min() == 0
    assert symbols.max() == 1
    others = np.corrcoef(symbols) - np.eye(8)
    assert others.max() < 0.75, "a decoder could not tell them apart"


def test_each_block_of_a_category_is_a_trial_and_rest_is_none() -> None:
    series = np.arange(18, dtype=np.float32).reshape(9, 2)
    trials = trials_of_blocks(series, CATEGORIES, RUNS)
    assert trials.run.tolist() == [0, 0, 1], "a block that two runs share is two"
    np.testing.assert_array_equal(trials.bold, [series[1:3], series[4:6], series[6:8]])
    np.testing.assert_array_equal(trials.stimulus[1, 0], category_symbols()["cat"])


def test_blocks_of_unequal_length_and_unknown_categories_are_refused() -> None:
    with pytest.raises(InputError, match=r"blocks of \[2, 3\] volumes"):
        trials_of_blocks(np.zeros((6, 2)), ["face", "face", "rest", "cat", "cat", "cat"], np.zeros(6, int))
    with pytest.raises(InputError, match="no symbol is drawn for teapot"):
        trials_of_blocks(np.zeros((2, 2)), ["teapot", "rest"], np.zeros(2, int))


def test_each_run_is_detrended_and_standardised() -> None:
    rng = np.random.default_rng(0)
    series = rng.standard_normal((40, 3)) + np.arange(40)[:, None] * [1, -2, 0] + 100
    series[:, 2] = 7  # outside the head
    runs = np.repeat([0, 1], 20)
    found = standardized(series, runs)
    for run in (0, 1):
        part = found[runs == run]
        np.testing.assert_allclose(part.mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(part.std(axis=0), [1, 1, 0], atol=1e-5)
        assert np.abs(np.polyfit(np.arange(20), part, 1)[0]).max() < 1e-5


def test_simulated_trials_are_reproducible_and_say_something_of_the_stimulus() -> None:
    digits = np.random.default_rng(0).random((80, 8, 8)).astype(np.float32)
    config = SimulatedBold(num_trials=60, num_runs=3, num_voxels=40, snr=0.5)
    first, again = (simulate_trials(digits, config) for _ in range(2))
    np.testing.assert_array_equal(first.bold, again.bold)
    other = simulate_trials(digits, dataclasses.replace(config, seed=1))
    assert not np.array_equal(first.stimulus, other.stimulus)
    assert first.bold.shape == (60, 10, 40)
    assert np.bincount(first.run).tolist() == [20, 20, 20]
    np.testing.assert_allclose(first.bold[first.run == 1].std(axis=(0, 1)), 1, rtol=1e-4)
    # two presentations of equal digits have equal signals under other noise
    clear = simulate_trials(digits, dataclasses.replace(config, snr=1e6))
    brightness = clear.stimulus.mean(axis=(1, 2, 3))
    assert np.corrcoef(brightness, clear.bold.mean(axis=(1, 2)))[0, 1] > 0.5
    with pytest.raises(InputError, match="snr=0"):
        SimulatedBold(snr=0)
    with pytest.raises(InputError, match="90 trials of 80 digits"):
        simulate_trials(digits, SimulatedBold(num_trials=90, num_runs=3))


def test_files_keep_the_suffix_that_tells_what_they_are() -> None:
    names = [head.file_name for head in (*FILES, DIGITS)]
    assert names == ["haxby1_bold.nii.gz", "haxby1_mask.nii.gz", "haxby1_attributes_literal.txt", "digits.csv.gz"]
