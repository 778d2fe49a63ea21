"""Masks meet the ratio exactly, sample the centre and depend on their arguments alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from recon.masks import MaskConfig, achieved_ratio, make_mask, mask_hash
from tests.helpers import property_test

KINDS = ["gaussian1d", "gaussian2d"]
sizes = st.tuples(st.integers(4, 80), st.integers(4, 80))


@property_test
@given(st.sampled_from(KINDS), sizes, st.floats(0.01, 1), st.floats(0, 0.5), st.integers(0, 1000))
def test_the_ratio_is_met_exactly(kind: Any, size: tuple[int, int], ratio: float, centre: float, seed: int) -> None:
    config = MaskConfig(kind=kind, sampling_ratio=ratio, center_fraction=centre, seed=seed)
    mask = make_mask(config, size)
    assert mask.shape == size
    assert mask.dtype == bool
    if kind == "gaussian1d":
        assert (mask == mask[0]).all(), "whole columns"
        assert mask[0].sum() == max(1, round(ratio * size[1]))
    else:
        assert mask.sum() == max(1, round(ratio * mask.size))
    assert achieved_ratio(mask) == mask.sum() / mask.size


@property_test
@given(sizes, st.integers(0, 1000))
def test_the_centre_is_sampled(size: tuple[int, int], seed: int) -> None:
    height, width = size
    line = make_mask(MaskConfig(kind="gaussian1d", sampling_ratio=0.3, center_fraction=0.1, seed=seed), size)
    near = np.abs(np.arange(width) - width // 2) <= 0.05 * width
    assert line[:, near].all()
    points = make_mask(MaskConfig(kind="gaussian2d", sampling_ratio=0.3, center_fraction=0.1, seed=seed), size)
    y = (np.arange(height) - height // 2) / height
    x = (np.arange(width) - width // 2) / width
    assert points[np.hypot(y[:, None], x[None, :]) <= 0.05].all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_centre_larger_than_the_ratio_is_filled_from_the_inside(kind: Any) -> None:
    mask = make_mask(MaskConfig(kind=kind, sampling_ratio=0.1, center_fraction=0.9), (40, 40))
    x = np.abs(np.arange(40) - 20)
    distance = np.broadcast_to(x, (40, 40)) if kind == "gaussian1d" else np.hypot(x[:, None], x[None, :])
    assert distance[mask].max() <= distance[~mask].min()


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_denser_towards_the_centre(kind: Any) -> None:
    masks = [make_mask(MaskConfig(kind=kind, sampling_ratio=0.2, seed=seed), (40, 60)) for seed in range(40)]
    density = np.mean(masks, axis=0).mean(axis=0)
    distance = np.abs(np.arange(60) - 30)
    bands = [density[(distance >= low) & (distance < low + 10)].mean() for low in (0, 10, 20)]
    assert bands[0] > 1.5 * bands[1] > 2 * bands[2] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides(kind: Any) -> None:
    def mask(seed: int) -> np.ndarray:
        return make_mask(MaskConfig(kind=kind, sampling_ratio=0.3, seed=seed), (33, 48))

    assert np.array_equal(mask(4), mask(4))
    assert not np.array_equal(mask(4), mask(5))


@pytest.mark.parametrize("kind", KINDS)
def test_streams_count_only_per_slice(kind: Any) -> None:
    every = MaskConfig(kind=kind, sampling_ratio=0.3, per_slice=True)
    streams = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2)]
    assert len({mask_hash(make_mask(every, (33, 48), stream)) for stream in streams}) == len(streams)
    assert np.array_equal(make_mask(every, (33, 48), (3, 7)), make_mask(every, (33, 48), (3, 7)))
    one = MaskConfig(kind=kind, sampling_ratio=0.3)
    assert len({mask_hash(make_mask(one, (33, 48), stream)) for stream in streams}) == 1


def test_the_hash_tells_masks_apart() -> None:
    mask = make_mask(MaskConfig(kind="gaussian2d", sampling_ratio=0.3), (6, 7))
    hashes = {mask_hash(mask), mask_hash(mask.reshape(7, 6)), mask_hash(mask.ravel())}
    for place in np.ndindex(mask.shape):
        other = mask.copy()
        other[place] ^= True
        hashes.add(mask_hash(other))
    assert len(hashes) == 3 + mask.size
    assert mask_hash(mask) == mask_hash(mask.copy())


@pytest.mark.parametrize(
    "settings", [{"sampling_ratio": 0}, {"sampling_ratio": 1.5}, {"spread": 0}, {"kind": "radial"}, {"ratio": 0.1}]
)
def test_impossible_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        MaskConfig.model_validate(settings)
