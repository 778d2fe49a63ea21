"""A simulated T2-weighted image: in the place of its head, with the contrast of its equation, and noise of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from larmor.recon.evaluation.head_tissues import find_heads
from larmor.recon.evaluation.second_contrast import (
    RELAXATION,
    ContrastOptions,
    simulate_contrast,
    spin_echo,
    tissue_signal,
)
from larmor.storage.formats.nifti import read_volume
from larmor.storage.objects.errors import InputError
from tests.helpers import write_volume
from tests.recon.evaluation.test_segmentation import head
from tests.workbench import larmor

OPTIONS = ContrastOptions()


def write_head(folder: Path, shape: tuple[int, int] = (96, 80), slices: int = 40) -> Path:
    """A head of ellipses as a T1 volume of 2×4×2 mm."""
    planes = [head(shape, depth)[0] for depth in np.linspace(-0.9, 0.9, slices)]
    t1 = np.stack(planes)[:, ::-1, ::-1].transpose(2, 0, 1) * np.float32(1000)
    path = write_volume(folder / "ann.nii.gz", t1, np.diag([2, 4, 2, 1]))
    (folder / "ann.json").write_text(json.dumps({"licence": "CC0", "source": "drawn"}))
    return path


def test_the_contrast_is_that_of_a_spin_echo() -> None:
    signals = {tissue: spin_echo(tissue, OPTIONS) for tissue in RELAXATION}
    assert signals["csf"] > signals["grey_matter"] > signals["white_matter"] > signals["bone"]
    assert signals["muscle"] < signals["white_matter"] < signals["fat"]
    early = ContrastOptions(echo_ms=10)
    assert spin_echo("csf", early) < 2 * spin_echo("white_matter", early)  # nearly proton density


def test_tissues_have_their_signal() -> None:
    found = [head((96, 80), depth) for depth in np.linspace(-0.5, 0.5, 24)]
    t1, classes = (np.stack([one[part] for one in found]) for part in (0, 1))
    signal = tissue_signal(classes, t1, OPTIONS)
    assert signal[0, 0, 0] < 1e-3
    inner = {
        tissue: np.median(signal[classes == number]) for number, tissue in ((2, "grey_matter"), (3, "white_matter"))
    }
    assert inner["white_matter"] == pytest.approx(spin_echo("white_matter", OPTIONS), rel=0.1)
    assert inner["grey_matter"] > inner["white_matter"]  # the other way round in T1


@pytest.mark.slow
def test_an_image_for_each_head(tmp_path: Path) -> None:
    for name in ("SimpleITK", "dipy"):
        pytest.importorskip(name)
    t1 = write_head(tmp_path / "t1")
    (found,) = simulate_contrast(find_heads([tmp_path / "t1"]), tmp_path / "t2", OPTIONS)
    assert found.path == tmp_path / "t2" / "ann.nii.gz"
    own, made = read_volume(t1), read_volume(found.path)
    assert made.data.shape == own.data.shape
    np.testing.assert_allclose(made.affine, own.affine)
    assert np.corrcoef(made.data.ravel(), own.data.ravel())[0, 1] < 0.9
    image: Any = nibabel.load(found.path)
    assert b"simulation" in image.header["descrip"].item()
    about = json.loads((tmp_path / "t2" / "ann.json").read_text())
    assert about["synthetic"].startswith("simulated T2-weighted image")
    assert about["licence"] == "CC0"
    with pytest.raises(InputError, match="already exists; pass --overwrite"):
        simulate_contrast([t1], tmp_path / "t2", OPTIONS)
    (again,) = simulate_contrast([t1], tmp_path / "again", OPTIONS)
    assert again.path is not None
    assert np.array_equal(read_volume(again.path).data, made.data)


def test_the_heads_are_not_written_over(tmp_path: Path) -> None:
    path = write_volume(tmp_path / "ann.nii.gz", np.ones((4, 4, 4), np.float32))
    with pytest.raises(InputError, match=r"is where ann\.nii\.gz lies"):
        simulate_contrast([path], tmp_path, OPTIONS)


def test_a_head_without_a_brain_is_left_out(tmp_path: Path) -> None:
    for name in ("SimpleITK", "dipy"):
        pytest.importorskip(name)
    data = np.random.default_rng(0).uniform(0, 1, (40, 40, 40)).astype(np.float32)
    path = write_volume(tmp_path / "t1" / "ann.nii.gz", data)
    with pytest.raises(InputError, match=r"ann\.nii\.gz: 0\.\d+ L of brain are found"):
        simulate_contrast([path], tmp_path / "t2", OPTIONS)
    assert not (tmp_path / "t2").exists()


def test_the_command_line(tmp_path: Path) -> None:
    done = larmor("simulate", "contrast", str(tmp_path), "--to", str(tmp_path / "t2"))
    assert done.returncode == 1
    assert "holds no NIfTI file" in done.stderr
