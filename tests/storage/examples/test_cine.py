"""The cine phantom beats: what it must have to be worth training on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from larmor.storage.examples.cine import cine_frames, contraction, draw_heart, signal, write_cine
from larmor.storage.examples.series import SERIES
from larmor.storage.formats.recognise import find_sources
from larmor.storage.objects.errors import InputError


def blood_pool(frames: np.ndarray, row: float, column: float, reach: int = 13) -> np.ndarray:
    """Bright pixels around the left ventricle's centre, in each frame."""
    top, left = round(64 + row / 2.5), round(64 + column / 2.5)
    window = frames[:, top - reach : top + reach, left - reach : left + reach]
    threshold = (signal("blood") + signal("muscle")) / 2 * 6000
    return np.asarray((window > threshold).sum(axis=(1, 2)))


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_ventricle_contracts_fast_and_fills_slowly(number: int) -> None:
    heart = draw_heart(np.random.default_rng([0, number]))
    pool = blood_pool(cine_frames(heart), *heart.centre)
    assert 0.3 < pool.min() / pool.max() < 0.75
    assert 6 <= int(pool.argmin()) <= 11, "a third into the beat"
    values = np.array([contraction(phase) for phase in np.linspace(0, 1, 101)])
    assert values[0] == values[-1] == 0
    assert values.max() == pytest.approx(1)
    assert np.argmax(values) == 35


def test_blood_is_bright_and_lungs_are_dark() -> None:
    order = sorted(("lung", "muscle", "liver", "blood", "fat"), key=signal)
    assert order[0] == "lung"
    assert order[1] == "muscle"
    assert signal("blood") > 1.5 * signal("muscle")


def test_a_subject_depends_on_seed_and_number_alone(tmp_path: Path) -> None:
    few, more = write_cine(tmp_path / "a", 2, 5), write_cine(tmp_path / "b", 3, 5)
    assert [path.name for path in more] == ["cine01.nii.gz", "cine02.nii.gz", "cine03.nii.gz"]
    load: Any = nibabel.load
    first, second, again = (np.asarray(load(path).dataobj) for path in (*few, more[1]))
    assert first.shape == (128, 128, 1, 24)
    assert np.array_equal(second, again)
    assert not np.array_equal(first, second)
    assert json.loads((tmp_path / "a" / "cine01.json").read_text())["synthetic"] is True
    refs = find_sources([str(tmp_path / "a")], plane="native")
    assert [(ref.name, ref.subject) for ref in refs] == [
        ("cine01_slice000", "cine01"),
        ("cine02_slice000", "cine02"),
    ]
    with pytest.raises(InputError, match="choose 1 to 99"):
        write_cine(tmp_path, 0, 0)


def test_the_series_are_two_people_of_one_pinned_wheel() -> None:
    assert {(one.package, one.version, one.kind) for one in SERIES} == {("rapidtide", "2.4.0", "wheel")}
    assert [one.file_name for one in SERIES] == ["happytest.nii.gz", "rapidtidetest.nii.gz"]
    assert len({one.sha256 for one in SERIES}) == 2
