"""The control of the measurement of a second contrast: the guide of another person, on the grid of one's own."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel
import numpy as np

from tests.helpers import write_volume

PROGRAM = Path(__file__).resolve().parents[2] / "benchmarks" / "multi_contrast.py"


def loaded() -> ModuleType:
    """The program, whose folder is no package."""
    spec = importlib.util.spec_from_file_location("multi_contrast", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fitted, row, shuffle = (getattr(loaded(), name) for name in ("fitted", "row", "shuffle"))


def test_each_guide_is_that_of_the_next(tmp_path: Path) -> None:
    flipped = np.diag([-1.0, 1, 1, 1])
    write_volume(tmp_path / "t2" / "a.nii.gz", np.full((6, 4, 8), 1, np.float32), flipped)
    other = np.full((4, 4, 10), 2, np.float32)
    other[0] = 3  # on the left
    write_volume(tmp_path / "t2" / "b.nii.gz", other)
    shuffle(tmp_path / "t2", tmp_path / "shuffled")
    found: list[Any] = [nibabel.load(tmp_path / "shuffled" / f"{name}.nii.gz") for name in "ab"]
    assert [one.shape for one in found] == [(6, 4, 8), (4, 4, 10)]
    np.testing.assert_array_equal(found[0].affine, flipped)
    data = found[0].get_fdata()
    assert data[:, 2, 4].tolist() == [0, 2, 2, 2, 3, 0]  # padded, and the left still on the left
    assert found[1].get_fdata()[1, 1].tolist() == [0, *([1] * 8), 0]


def test_about_the_centre() -> None:
    image = np.arange(4 * 2 * 3, dtype=float).reshape(4, 2, 3)
    assert np.array_equal(fitted(image, (2, 4, 3))[:, 1:3], image[1:3])


def test_a_row_has_the_spread_of_several_seeds() -> None:
    means = [{"psnr": 30.0, "ssim": 0.9, "hfen": 0.1}, {"psnr": 31.0, "ssim": 0.9, "hfen": 0.2}]
    assert row("x", means[:1]) == "| x | 30.000 | 0.9000 | 0.1000 |"
    assert row("x", means).startswith("| x | 30.500 ± 0.707 | 0.9000 ± 0.0000 |")
