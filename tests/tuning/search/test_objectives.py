"""One metric or two: the front of best trade-offs, and what is chosen from it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from larmor.storage.objects.errors import InputError
from larmor.tuning.search.objectives import Objectives

TWO = Objectives.of(["psnr", "hfen"])
FIGURES = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12)


def points(*pairs: tuple[float, float]) -> list[dict[str, float]]:
    return [{"val/psnr": psnr, "val/hfen": hfen, "val/ssim": 0.5} for psnr, hfen in pairs]


@given(FIGURES)
def test_nothing_on_the_front_is_surpassed_and_everything_else_is(pairs: list[tuple[int, int]]) -> None:
    front = TWO.front(points(*pairs))
    for place, (psnr, hfen) in enumerate(pairs):
        others = [pair for pair in pairs if pair != (psnr, hfen)]
        surpassed = any(other[0] >= psnr and other[1] <= hfen for other in others)
        assert (place in front) == (not surpassed and (psnr, hfen) not in pairs[:place])


@given(FIGURES)
def test_what_is_chosen_is_on_the_front_and_a_preferred_metric_is_the_best_there_is(
    pairs: list[tuple[int, int]],
) -> None:
    rated = points(*pairs)
    assert TWO.choose(rated) in TWO.front(rated)
    assert pairs[TWO.choose(rated, TWO.weights("psnr"))][0] == max(pair[0] for pair in pairs)
    assert pairs[TWO.choose(rated, TWO.weights("hfen"))][1] == min(pair[1] for pair in pairs)


def test_without_a_preference_it_is_the_knee() -> None:
    rated = points((30, 0.9), (29.5, 0.3), (25, 0.2), (24, 0.8))
    assert TWO.front(rated) == [0, 1, 2]
    assert TWO.choose(rated) == 1
    assert TWO.choose(rated, TWO.weights("psnr=0.5,hfen=0.5")) == 1
    assert TWO.choose(rated, TWO.weights("psnr=0.99,hfen=0.01")) == 0


def test_the_units_of_a_metric_do_not_matter() -> None:
    rated = points((30, 0.9), (29, 0.5), (25, 0.2))
    scaled = points((3000, 0.0009), (2900, 0.0005), (2500, 0.0002))
    assert TWO.choose(rated) == TWO.choose(scaled) == 1


def test_one_metric_has_a_best_the_earliest_of_equal_ones() -> None:
    one = Objectives.of("hfen")
    rated = points((30, 0.9), (29, 0.2), (25, 0.2))
    assert (one.front(rated), one.choose(rated)) == ([1], 1)


def test_figures_must_be_there() -> None:
    assert TWO.are_in({"val/psnr": 1.0, "val/hfen": 0.0})
    assert not TWO.are_in({"val/psnr": 1.0})
    assert not TWO.are_in({"val/psnr": 1.0, "val/hfen": math.nan})
    assert not TWO.are_in({"val/psnr": math.inf, "val/hfen": 0.0})


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("lpips", "'lpips' is not a validation metric; choose one of psnr"),
        (["psnr", "lpips"], "'lpips' is not a validation metric"),
        (["psnr", "val/psnr"], "'psnr' twice: the second metric must be another one"),
        (["psnr", "ssim", "hfen"], "3 metrics: give one, or a list of two"),
        ([], "0 metrics"),
    ],
)
def test_metrics_that_make_no_sense(metric: str | list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Objectives.of(metric)


@pytest.mark.parametrize(
    ("prefer", "message"),
    [
        ("lpips", "'lpips' is not a validation metric"),
        ("ssim", "the sweep's metrics are psnr, hfen, not 'ssim'"),
        ("psnr=much", "'much' is no weight; write METRIC, or METRIC=NUMBER"),
        ("psnr=-1", "'-1' is no weight"),
        ("psnr=0,hfen=0", "every weight is 0"),
        ("psnr=", "'' is no weight"),
    ],
)
def test_preferences_that_make_no_sense(prefer: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TWO.weights(prefer)


def test_a_preference_is_a_metric_or_weights() -> None:
    assert TWO.weights("val/hfen") == {"psnr": 0.0, "hfen": 1.0}
    assert TWO.weights("psnr=0.7, hfen=0.3") == {"psnr": 0.7, "hfen": 0.3}
