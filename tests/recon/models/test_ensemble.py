"""Several models as one: their mean, their standard deviation, and whether it says where the error lies."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from larmor.commands.models import ReconstructOptions, pull, reconstruct
from larmor.recon.inference.slices_page import DEVIATION, read_page, slice_content
from larmor.recon.models.ensemble import Calibration
from larmor.recon.models.reconstruct import ScanReport
from larmor.storage.objects.errors import InputError
from tests.helpers import small_recipe, write_heads, write_model
from tests.synthetic_sweep import write_sweep

MASK = {"kind": "gaussian2d", "sampling_ratio": 0.4}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A head, and models that differ: one leaves the zero-filled image as it is."""
    folder = tmp_path_factory.mktemp("ensemble")
    (head,) = write_heads(folder, ["ann"])
    recipe = small_recipe(mask=MASK)
    first, second = (write_model(folder / name, recipe, trained=name == "b") for name in "ab")
    third = write_model(folder / "c", small_recipe(mask=MASK | {"sampling_ratio": 0.3}))
    return {"head": head, "a": first, "b": second, "c": third}


def run(places: dict[str, Path], to: Path, model: str, others: str = "", format: str = "auto") -> ScanReport:
    options = ReconstructOptions(format=format, uncertainty=[places[name] for name in others])
    (report,) = reconstruct(places[model], str(places["head"]), to, options)
    assert report.problem == ""
    return report


def volume(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)  # type: ignore[attr-defined]


def test_images_are_the_mean_and_the_map_is_the_deviation(places: dict[str, Path], tmp_path: Path) -> None:
    alone = [volume(run(places, tmp_path / name, name).files[0]) for name in "ab"]
    report = run(places, tmp_path / "both", "a", "b")
    assert [path.name for path in report.files[-1:]] == ["ann-uncertainty.nii.gz"]
    mean, deviation = volume(report.files[0]), volume(report.files[-1])
    brightest = alone[0].max()
    np.testing.assert_allclose(mean, (alone[0] + alone[1]) / 2, atol=1e-5 * brightest)
    np.testing.assert_allclose(deviation, np.abs(alone[0] - alone[1]) / math.sqrt(2), atol=1e-5 * brightest)
    assert deviation.max() > 1e-3 * brightest, "the models differ"
    assert report.calibration is not None
    shows = volume(places["head"]).max(axis=(0, 2)) > 0
    assert report.calibration.pixels == shows.sum() * mean[:, 0].size, "a constant slice has no figures"
    (stack,) = read_page(tmp_path / "both" / "ann-reconstruction.html")
    panes = stack["slices"][5]["panes"]
    assert [pane["name"] for pane in panes[:4]] == ["target", "zero_filled", "reconstruction", DEVIATION]
    assert panes[3]["map"]
    assert "metrics" not in panes[3]


def test_without_others_there_is_no_map(places: dict[str, Path], tmp_path: Path) -> None:
    report = run(places, tmp_path, "a")
    assert report.calibration is None
    assert not list(tmp_path.glob("*uncertainty*"))
    assert "map" not in slice_content("one", {"target": np.eye(8)})["panes"][0]


@pytest.mark.parametrize(
    ("others", "format", "problem"),
    [
        ("a", "auto", "is named twice"),
        ("bb", "auto", "is named twice"),
        ("c", "auto", "30 %, and .* 40 %"),
    ],
)
def test_others_that_do_not_fit_are_refused(
    places: dict[str, Path], tmp_path: Path, others: str, format: str, problem: str
) -> None:
    with pytest.raises(InputError, match=problem):
        run(places, tmp_path / "to", "a", others, format)
    assert not (tmp_path / "to").exists()


def test_an_older_map_does_not_stay_beside_new_images(places: dict[str, Path], tmp_path: Path) -> None:
    run(places, tmp_path, "a", "b", "npy")
    assert (tmp_path / "ann-uncertainty.npy").is_file()
    (tmp_path / "ann-uncertainty").mkdir()  # a DICOM series
    (tmp_path / "anna-uncertainty.npy").touch()  # of another scan
    run(places, tmp_path, "a", "b")
    assert [path.name for path in tmp_path.glob("ann-uncertainty*")] == ["ann-uncertainty.nii.gz"]
    run(places, tmp_path, "a")
    assert [path.name for path in tmp_path.glob("*-uncertainty*")] == ["anna-uncertainty.npy"]


def test_the_best_trials_of_a_sweep_are_an_ensemble(places: dict[str, Path], tmp_path: Path) -> None:
    folder = write_sweep(str(tmp_path / "sweep"), num_trials=10)
    rated = [trial for trial in folder.trials() if trial.is_rated]
    ranked = sorted(rated, key=lambda trial: -trial.metrics["val/psnr"])
    pull(folder.url, tmp_path / "best")
    options = ReconstructOptions(uncertainty=[folder.url], members=2)
    (report,) = reconstruct(tmp_path / "best", str(places["head"]), tmp_path / "to", options)
    models = [tmp_path / "best"]
    for trial in ranked[1:3]:  # the best one is the model itself
        pull(folder.url, tmp_path / trial.id, trial=trial.id)
        models.append(tmp_path / trial.id)
    others = ReconstructOptions(uncertainty=models[1:])
    (expected,) = reconstruct(models[0], str(places["head"]), tmp_path / "by-hand", others)
    for found, wanted in ((report.files[0], expected.files[0]), (report.files[-1], expected.files[-1])):
        assert np.array_equal(volume(found), volume(wanted))
    with pytest.raises(InputError, match=r"rated trials beside the model, and 20 are wanted; give a smaller --members"):
        reconstruct(models[0], str(places["head"]), tmp_path / "no", replace(options, members=20))
    with pytest.raises(InputError, match="a model directory is made by `larmor pull`"):
        reconstruct(models[0], str(places["head"]), tmp_path / "no", ReconstructOptions(uncertainty=[tmp_path / "x"]))


def test_calibration_of_errors_that_are_as_large_as_said() -> None:
    rng = np.random.default_rng(0)
    target, deviation = rng.uniform(0, 1, (6, 64, 64)), rng.uniform(0, 0.2, (6, 64, 64))
    image = target + rng.normal(size=target.shape) * deviation
    parts, whole = Calibration(), Calibration()
    whole.add(target, image, deviation)
    for place in range(6):
        parts.add(target[place], image[place], deviation[place])
    assert abs(whole.coverage - math.erf(math.sqrt(2))) < 0.01
    expected = np.corrcoef(deviation.ravel(), np.abs(image - target).ravel())[0, 1]
    assert whole.correlation == pytest.approx(expected)
    assert (parts.coverage, parts.correlation) == pytest.approx((whole.coverage, whole.correlation))
    constant = Calibration()
    constant.add(target, target, target * 0)
    assert math.isnan(constant.correlation)
    assert constant.coverage == 1
