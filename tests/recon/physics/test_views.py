"""Views that the images of a stack lend each other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from larmor.recon.physics.views import mean_view, shared_views
from tests.helpers import property_test


def measured(stack: int, num_stacks: int = 2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """k-space (batch, 2, 6, 5) of stacks, and masks of their own for the images."""
    rng = torch.Generator().manual_seed(seed)
    kspace = torch.randn(num_stacks * stack, 2, 6, 5, dtype=torch.complex64, generator=rng)
    mask = torch.rand(num_stacks * stack, 1, 6, 5, generator=rng) < 0.3
    return kspace * mask, mask


@property_test
@given(st.integers(1, 6), st.booleans(), st.integers(0, 100))
def test_each_point_is_the_nearest_in_time(stack: int, causal: bool, seed: int) -> None:
    kspace, mask = measured(stack, seed=seed)
    found = shared_views(kspace, mask, stack, causal)
    for number in range(len(kspace)):
        first, place = number - number % stack, number % stack
        others = [other for other in range(stack) if other <= place or not causal]
        others.sort(key=lambda other: (abs(other - place), other))
        expected = torch.zeros_like(kspace[0])
        for other in reversed(others):
            expected = torch.where(mask[first + other], kspace[first + other], expected)
        assert torch.equal(found[number], expected)


@pytest.mark.parametrize("combine", [shared_views, mean_view])
def test_what_stands_still_comes_back_where_it_was_measured_at_all(combine: object) -> None:
    _, mask = measured(5)
    still = torch.randn(1, 2, 6, 5, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
    found = combine(still * mask, mask, 5)  # type: ignore[operator]
    ever = mask.unflatten(0, (2, 5)).any(dim=1, keepdim=True).expand(-1, 5, -1, -1, -1).flatten(0, 1)
    torch.testing.assert_close(found, still * ever)


def test_the_mean_is_over_the_images_that_measured_a_point() -> None:
    kspace, mask = measured(3, num_stacks=1)
    found = mean_view(kspace, mask, 3)
    assert torch.equal(found[0], found[2])
    total, count = kspace.sum(dim=0), mask.sum(dim=0)
    torch.testing.assert_close(found[0], torch.where(count > 0, total / count.clamp_min(1), 0))


@pytest.mark.parametrize("causal", [False, True])
def test_stacks_lend_each_other_nothing(causal: bool) -> None:
    kspace, mask = measured(4)
    alone = torch.cat([shared_views(kspace[part], mask[part], 4, causal) for part in (slice(4), slice(4, 8))])
    assert torch.equal(shared_views(kspace, mask, 4, causal), alone)
    assert torch.equal(shared_views(kspace, mask, 1), kspace)
