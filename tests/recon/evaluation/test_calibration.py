"""Whether a deviation says where the error is, on errors that are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from larmor.recon.evaluation.calibration import (
    calibrate,
    check_members,
    describe_calibration,
    mean_calibration,
    measure,
    write_calibration,
)
from larmor.recon.inference.inference import Reconstructed
from larmor.storage.objects.errors import InputError


def normal_errors(factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Errors that are normal with `factor` times the deviation."""
    rng = np.random.default_rng(0)
    deviation = rng.uniform(0.01, 0.1, 40_000)
    return np.abs(rng.normal(0, factor * deviation)), deviation


def test_normal_errors_of_that_deviation_are_covered_as_they_should() -> None:
    found = measure(*normal_errors(1))
    assert abs(found.within_one - 0.683) < 0.01
    assert abs(found.within_two - 0.954) < 0.01
    assert found.correlation > 0.4
    deviation, error = np.array(found.curve).T
    assert len(deviation) == 10
    assert np.allclose(error, deviation, rtol=0.06)


def test_a_deviation_that_is_too_small_covers_less() -> None:
    assert measure(*normal_errors(3)).within_two < 0.55


def test_a_deviation_that_knows_nothing_is_not_correlated() -> None:
    error, deviation = normal_errors(1)
    assert abs(measure(error, np.random.default_rng(1).permutation(deviation)).correlation) < 0.02
    assert measure(error, np.zeros_like(error)).correlation == 0


def test_background_and_constant_slices_are_left_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    target = np.zeros((2, 8, 8), np.float32)
    target[:, 2:6, 2:6] = 1
    images = {name: (target + rng.normal(0, 0.1, target.shape)).astype(np.float32) for name in ("a", "b", "c")}
    scale = np.array([[0, 1], [3, 3]], np.float32)  # the second one is constant
    found = calibrate([Reconstructed((0, 1), target, images, scale, {})], ["a", "b", "c"])
    inside = np.stack([image[0, 2:6, 2:6] for image in images.values()])
    expected = np.mean(np.abs(inside.mean(axis=0) - 1) <= inside.std(axis=0, ddof=1))
    assert found.within_one == pytest.approx(expected)
    mean = mean_calibration([found, found])
    assert mean["within_one"] == pytest.approx(expected)
    assert describe_calibration(3, [found]).startswith("uncertainty of the mean of 3 models: correlation")
    write_calibration([found], tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_one_model_has_no_spread() -> None:
    with pytest.raises(InputError, match="two models or more"):
        check_members(["a"])
