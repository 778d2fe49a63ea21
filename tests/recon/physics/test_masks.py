"""Masks meet the ratio exactly, sample the centre and depend on their arguments alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from larmor.recon.physics.masks import achieved_ratio, describe_mask, make_mask, mask_hash, with_ratio
from larmor.recon.recipe.mask_config import MaskConfig
from larmor.recon.recipe.mask_kinds import COLUMN_KINDS
from larmor.recon.recipe.mask_kinds import KINDS as ALL_KINDS
from larmor.storage.objects.errors import InputError
from tests.helpers import property_test

KINDS = [kind for kind in ALL_KINDS if kind != "file"]
POINT_KINDS = [kind for kind in KINDS if kind not in COLUMN_KINDS]
sizes = st.tuples(st.integers(4, 80), st.integers(4, 80))
ratios = st.one_of(st.floats(0.01, 1), st.sampled_from([0.1, 0.5, 0.9, 1.0]))


@settings(property_test, max_examples=150)
@given(st.sampled_from(KINDS), sizes, ratios, st.floats(0, 0.5), st.integers(0, 1000))
def test_the_ratio_is_met_exactly(kind: Any, size: tuple[int, int], ratio: float, centre: float, seed: int) -> None:
    config = MaskConfig(kind=kind, sampling_ratio=ratio, center_fraction=centre, seed=seed)
    mask = make_mask(config, size)
    assert mask.shape == size
    assert mask.dtype == bool
    if kind in COLUMN_KINDS:
        assert (mask == mask[0]).all(), "whole columns"
        assert mask[0].sum() == max(1, round(ratio * size[1]))
    else:
        assert mask.sum() == max(1, round(ratio * mask.size))
    assert achieved_ratio(mask) == mask.sum() / mask.size


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(256, 256), (128, 256), (8, 300), (301, 9)])
def test_the_ratio_is_met_at_the_sizes_of_images(kind: Any, shape: tuple[int, int]) -> None:
    for ratio in (0.1, 0.97):
        mask = make_mask(MaskConfig(kind=kind, sampling_ratio=ratio), shape)
        measured, points = (mask[0], shape[1]) if kind in COLUMN_KINDS else (mask, mask.size)
        assert measured.sum() == round(ratio * points)


@settings(property_test, max_examples=100)
@given(st.sampled_from(KINDS), sizes, st.integers(0, 1000))
def test_the_centre_is_sampled(kind: Any, size: tuple[int, int], seed: int) -> None:
    height, width = size
    mask = make_mask(MaskConfig(kind=kind, sampling_ratio=0.3, center_fraction=0.1, seed=seed), size)
    assert mask[height // 2, width // 2], "zero frequency"
    y = (np.arange(height) - height // 2) / height * (kind not in COLUMN_KINDS)
    x = (np.arange(width) - width // 2) / width
    assert mask[np.hypot(y[:, None], x[None, :]) <= 0.05].all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_centre_larger_than_the_ratio_is_filled_from_the_inside(kind: Any) -> None:
    mask = make_mask(MaskConfig(kind=kind, sampling_ratio=0.1, center_fraction=0.9), (40, 40))
    x = np.abs(np.arange(40) - 20)
    distance = np.broadcast_to(x, (40, 40)) if kind in COLUMN_KINDS else np.hypot(x[:, None], x[None, :])
    assert distance[mask].max() <= distance[~mask].min()


@pytest.mark.parametrize("kind", ["gaussian1d", *POINT_KINDS])
def test_it_is_denser_towards_the_centre(kind: Any) -> None:
    masks = [make_mask(MaskConfig(kind=kind, sampling_ratio=0.2, seed=seed), (40, 60)) for seed in range(40)]
    density = np.mean(masks, axis=0)
    y, x = (np.arange(40) - 20) / 40 * (kind not in COLUMN_KINDS), (np.arange(60) - 30) / 60
    distance = np.hypot(y[:, None], x[None, :])
    bands = [density[(distance >= low) & (distance < low + 0.16)].mean() for low in (0, 0.16, 0.32)]
    assert bands[0] > 1.3 * bands[1] > 1.3**2 * bands[2] > 0


@settings(property_test, max_examples=100)
@given(st.integers(4, 300), ratios, st.floats(0, 0.5), st.integers(0, 1000))
def test_uniform_columns_are_equally_spaced(width: int, ratio: float, centre: float, seed: int) -> None:
    config = MaskConfig(kind="uniform1d", sampling_ratio=ratio, center_fraction=centre, seed=seed)
    line = make_mask(config, (2, width))[0]
    outside = np.abs(np.arange(width) - width // 2) > centre / 2 * width
    steps = np.diff(np.flatnonzero(line[outside]))
    assert np.ptp(steps) <= 1 if steps.size else line[outside].sum() <= 1


def test_random_columns_are_equally_likely_outside_the_centre() -> None:
    masks = [make_mask(MaskConfig(kind="random1d", sampling_ratio=0.3, seed=seed), (1, 50))[0] for seed in range(400)]
    chance = np.mean(masks, axis=0)
    assert (chance == 1).sum() == 3, "the centre"
    assert np.abs(chance[chance < 1] - 12 / 47).max() < 5 * (0.25 * 0.75 / 400) ** 0.5


@settings(property_test, max_examples=100)
@given(st.integers(8, 300), st.floats(0.05, 0.9), st.integers(0, 1000))
def test_center_and_periphery_share_the_columns(width: int, ratio: float, seed: int) -> None:
    """Half in the middle, a quarter in equal steps through what is left, the others anywhere."""
    config = MaskConfig(kind="center_periphery1d", sampling_ratio=ratio, center_fraction=0, seed=seed)
    line = make_mask(config, (2, width))[0]
    num_central = -(-int(line.sum()) // 2)
    central = np.argsort(np.abs(np.arange(width) - width // 2), kind="stable")[:num_central]
    assert line[central].all()
    rest = np.delete(line, central)
    num_spaced = int(line.sum()) // 4
    combs = ((np.arange(num_spaced) * rest.size + offset) // max(1, num_spaced) for offset in range(rest.size))
    assert any(rest[comb].all() for comb in combs)


def test_the_columns_that_are_left_over_are_anywhere() -> None:
    config = {"kind": "center_periphery1d", "sampling_ratio": 0.3}
    masks = [make_mask(MaskConfig.model_validate({**config, "seed": seed}), (1, 50))[0] for seed in range(400)]
    chance = np.mean(masks, axis=0)
    assert (chance == 1).sum() == 8, "the middle"
    assert np.abs(chance[chance < 1] - 7 / 42).max() < 5 * (0.14 / 400) ** 0.5


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
    "content",
    [
        {"sampling_ratio": 0},
        {"sampling_ratio": 1.5},
        {"spread": 0},
        {"kind": "cartesian"},
        {"ratio": 0.1},
        {"kind": "file"},
        {"kind": "radial", "file": "mask.npy"},
    ],
)
def test_impossible_settings_are_refused(content: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        MaskConfig.model_validate(content)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_recorded_belongs_to_the_mask(kind: Any) -> None:
    config = MaskConfig(kind=kind, sampling_ratio=0.3)
    record = describe_mask(config, (33, 48))
    mask = make_mask(config, (33, 48))
    assert record["kind"] == kind
    assert record["achieved_ratio"] == achieved_ratio(mask)
    assert record["sha256"] == mask_hash(mask)


class TestFile:
    """Kind `file`: a mask that a user brings."""

    PATTERN = np.random.default_rng(0).random((10, 12)) < 0.4

    @pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32])
    def test_the_content_is_the_mask(self, tmp_path: Path, dtype: Any) -> None:
        config = self._saved(tmp_path, self.PATTERN.astype(dtype))
        mask = make_mask(config, (10, 12))
        assert mask.dtype == bool
        assert np.array_equal(mask, self.PATTERN)
        mask[:] = False  # belongs to the caller
        assert np.array_equal(make_mask(config, (10, 12), (3, 4)), self.PATTERN)
        assert describe_mask(config, (10, 12))["sha256"] == mask_hash(self.PATTERN)

    def test_another_size_is_refused(self, tmp_path: Path) -> None:
        config = self._saved(tmp_path, self.PATTERN)
        with pytest.raises(InputError, match=r"mask\.npy is 10×12, but the images are 12×10.*save a mask of 12×10"):
            make_mask(config, (12, 10))

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (np.arange(4).reshape(2, 2), "values other than 0 and 1"),
            (np.full((2, 2), np.nan), "values other than 0 and 1"),
            (np.array([["1", "0"]]), "values other than 0 and 1"),
            (np.ones(4), "1 axes"),
            (np.ones((1, 2, 2)), "3 axes"),
            (np.zeros((2, 2)), "measures nothing"),
            (np.array([[None, 1]]), "cannot be read"),
        ],
    )
    def test_what_is_no_mask_is_refused(self, tmp_path: Path, content: np.ndarray, reason: str) -> None:
        config = self._saved(tmp_path, content)
        with pytest.raises(InputError, match=rf"mask\.npy.*{reason}.*numpy\.save"):
            make_mask(config, (2, 2))

    @pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00"])
    def test_what_is_no_array_is_refused(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "mask.npy"
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"mask\.npy cannot be read"):
            make_mask(MaskConfig(kind="file", file=str(path)), (2, 2))

    @pytest.mark.parametrize(
        ("intact", "damaged"),
        [
            (b"(10, 12)", b"(10, 12("),
            (b"(10, 12)", b"(10, 13)"),
            (b"(10, 12), }" + 9 * b" ", b"(10, 12" + 11 * b"0" + b")}"),
            (b"\x93NUM", b"PK\x03\x04"),
        ],
        ids=["header", "too short", "beyond any memory", "a zip in name only"],
    )
    def test_a_damaged_file_is_refused(self, tmp_path: Path, intact: bytes, damaged: bytes) -> None:
        config = self._saved(tmp_path, self.PATTERN)
        path = tmp_path / "mask.npy"
        assert intact in path.read_bytes()
        path.write_bytes(path.read_bytes().replace(intact, damaged))
        with pytest.raises(InputError, match=r"mask\.npy cannot be read.*numpy\.save"):
            make_mask(config, (10, 12))

    def test_a_missing_file_and_an_archive_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="does not exist"):
            make_mask(MaskConfig(kind="file", file=str(tmp_path / "none.npy")), (2, 2))
        np.savez(tmp_path / "many.npz", self.PATTERN)
        with pytest.raises(InputError, match="archive of several arrays"):
            make_mask(MaskConfig(kind="file", file=str(tmp_path / "many.npz")), (2, 2))

    @staticmethod
    def _saved(folder: Path, content: np.ndarray) -> MaskConfig:
        path = folder / "mask.npy"
        np.save(path, content, allow_pickle=True)
        return MaskConfig(kind="file", file=str(path))


@pytest.mark.parametrize(("theirs", "ours"), [("equispaced", "uniform1d"), ("random", "random1d")])
def test_masks_are_found_by_the_names_and_numbers_of_fastmri(theirs: str, ours: str) -> None:
    found = MaskConfig.model_validate({"kind": theirs, "acceleration": 4})
    assert found == MaskConfig(kind=ours, sampling_ratio=0.25)
    assert found.model_dump() == MaskConfig(kind=ours, sampling_ratio=0.25).model_dump()


@pytest.mark.parametrize("wrong", [0, 0.5, -4, float("nan"), "four", True])
def test_an_acceleration_that_is_none_is_refused(wrong: Any) -> None:
    with pytest.raises(ValidationError, match="all points / measured points; give a number from 1 on"):
        MaskConfig.model_validate({"acceleration": wrong})
    with pytest.raises(ValidationError, match="leave one of them out"):
        MaskConfig.model_validate({"acceleration": 4, "sampling_ratio": 0.25})


RANGE = {"min": 0.1, "max": 0.5}


@pytest.mark.parametrize("per_slice", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_range_gives_the_masks_of_the_ratios_in_it(kind: Any, per_slice: bool) -> None:
    config = MaskConfig(kind=kind, sampling_ratio=RANGE, per_slice=per_slice)
    drawn = []
    for stream in [(epoch, index) for epoch in range(2) for index in range(4)]:
        own = with_ratio(config, stream)
        assert isinstance(own.sampling_ratio, float)
        mask = make_mask(config, (24, 40), stream)
        alone = MaskConfig(kind=kind, sampling_ratio=own.sampling_ratio, per_slice=per_slice)
        assert np.array_equal(mask, make_mask(alone, (24, 40), stream))
        drawn.append(own.sampling_ratio)
    assert len(set(drawn)) == len(drawn)


@settings(property_test, max_examples=10)
@given(st.integers(0, 1000), st.floats(0.01, 0.5), st.floats(0.01, 0.5))
def test_ratios_are_drawn_evenly_by_seed_epoch_and_slice(seed: int, low: float, width: float) -> None:
    config = MaskConfig(sampling_ratio={"min": low, "max": low + width}, seed=seed)
    drawn = np.array([with_ratio(config, (epoch, index)).sampling_ratio for epoch in range(4) for index in range(50)])
    assert ((drawn >= low) & (drawn <= low + width)).all()
    assert np.histogram(drawn, 4, (low, low + width))[0].min() > 20, "of 50 in each quarter"
    assert with_ratio(config, (1, 7)) == with_ratio(config, (1, 7)) != with_ratio(config, (7, 1))
    other = config.model_copy(update={"seed": seed + 1})
    assert with_ratio(other, (1, 7)).sampling_ratio != with_ratio(config, (1, 7)).sampling_ratio


def test_a_range_of_accelerations_is_one_of_ratios() -> None:
    found = MaskConfig.model_validate({"acceleration": {"min": 2, "max": 10}})
    assert found == MaskConfig(sampling_ratio=RANGE)
    assert MaskConfig.model_validate(found.model_dump(mode="json")) == found
    assert MaskConfig().model_dump()["sampling_ratio"] == 0.1


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"sampling_ratio": {"min": 0.5, "max": 0.1}}, r"max=0\.1 is not more than min=0\.5; swap them"),
        ({"sampling_ratio": {"min": 0.5, "max": 0.5}}, "give one number"),
        ({"sampling_ratio": {"min": 0, "max": 0.5}}, "greater than 0"),
        ({"sampling_ratio": {"min": 0.1, "max": 1.5}}, "less than or equal to 1"),
        ({"sampling_ratio": {"min": 0.1}}, "Field required"),
        ({"sampling_ratio": {**RANGE, "mean": 0.2}}, "Extra inputs"),
        ({"acceleration": {"min": 0.5, "max": 4}}, "give a number from 1 on"),
        ({"acceleration": {"min": 4}}, r"or {min: 2, max: 10}"),
        ({"kind": "file", "file": "mask.npy", "sampling_ratio": RANGE}, r"10 to 50 %.*kind=file has one mask: leave"),
    ],
)
def test_a_range_that_is_none_is_refused(wrong: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        MaskConfig.model_validate(wrong)
