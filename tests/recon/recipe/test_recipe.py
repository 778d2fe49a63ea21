"""Schedules of the learning rate are functions of the step."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from larmor.recon.recipe.recipe import TrainingConfig, learning_rate_factor


def factors(steps: list[int], **settings: object) -> list[float]:
    config = TrainingConfig.model_validate({"num_steps": 1000, **settings})
    return [learning_rate_factor(config, step) for step in steps]


def test_decay_multiplies_after_every_so_many_steps() -> None:
    found = factors([0, 29, 30, 59, 60, 300], schedule="decay", decay_every=30, decay_factor=0.95)
    assert found == pytest.approx([1, 1, 0.95, 0.95, 0.95**2, 0.95**10])


def test_decay_by_a_half_is_halving() -> None:
    steps = list(range(0, 50, 7))
    halved = factors(steps, schedule="halving", halve_every=10)
    assert factors(steps, schedule="decay", decay_every=10, decay_factor=0.5) == halved


def test_a_step_of_one_decays_continuously() -> None:
    """A published 0.95 ** (step / steps of an epoch)."""
    found = factors([0, 1, 50, 100], schedule="decay", decay_every=1, decay_factor=0.95 ** (1 / 100))
    assert found == pytest.approx([0.95 ** (step / 100) for step in (0, 1, 50, 100)])


def test_other_schedules_do_not_know_the_keys_of_decay() -> None:
    for schedule in ("constant", "halving", "cosine"):
        given = factors([0, 500, 999], schedule=schedule)
        assert factors([0, 500, 999], schedule=schedule, decay_every=1, decay_factor=0.1) == given
    assert factors([500], schedule="cosine") == pytest.approx([0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi / 2))])


@pytest.mark.parametrize("change", [{"decay_every": 0}, {"decay_factor": 0}, {"decay_factor": 1.5}])
def test_a_decay_that_is_none_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TrainingConfig.model_validate(change)
