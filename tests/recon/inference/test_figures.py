"""Pictures of a comparison."""

from __future__ import annotations

import numpy as np
import pytest

from larmor.recon.inference.figures import Example, error_gain


@pytest.mark.parametrize(("error", "gain"), [(0.02, 40), (0.04, 20), (0.09, 10), (0.2, 5), (0.9, 5)])
def test_errors_are_enlarged_as_far_as_they_can_be_told_apart(error: float, gain: int) -> None:
    target = np.full((20, 20), 0.5, np.float32)
    images = {"zero_filled": target + 0.5, "wavelet": target + np.float32(error), "larmor": target}
    assert error_gain(Example("a slice", target, images)) == gain
