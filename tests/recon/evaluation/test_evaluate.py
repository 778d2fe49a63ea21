"""The table equals what the stored slices, the mask and the definitions give directly."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import scipy.stats
import torch
from skimage.metrics import structural_similarity

from larmor.recon.evaluation import evaluate as evaluation
from larmor.recon.evaluation.evaluate import Evaluation, Row, evaluate
from larmor.recon.evaluation.evaluation_file import load_evaluation, save_evaluation
from larmor.recon.evaluation.segmentation import SegmentationConfig
from larmor.recon.evaluation.tables import PAPER, caption, latex, markdown, table_text, text_table, write_evaluation
from larmor.recon.inference.inference import Physics, network_method
from larmor.recon.inference.texture import edges, gmsd
from larmor.recon.models.model import Model, load_model
from larmor.recon.physics.masks import make_mask
from larmor.recon.physics.samples import Sample
from larmor.recon.recipe.mask_config import MaskConfig
from larmor.recon.recipe.metric import METRICS, PRESETS
from larmor.storage.dataset import dataset, writing
from larmor.storage.dataset.layout import SplitLayout
from larmor.storage.formats.volumes import centre_fit, image_to_kspace
from larmor.storage.loading.config import DataConfig, open_reader
from larmor.storage.loading.reader import SliceReader
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore
from tests.helpers import (
    ellipsoid,
    random_kspace,
    small_recipe,
    stored_volume,
    write_images,
    write_layout,
    write_model,
)

CROP = (32, 32)
VOLUMES = {"ann1": ("ann", 5, (40, 44)), "ann2": ("ann", 3, (36, 50)), "bob": ("bob", 4, (40, 44))}
NUM_SLICES = 12
METHODS = ("zero_filled", "model")


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SliceReader]:
    """A split of three volumes of different brightness, two of them of one subject and of unequal matrices."""
    store = ObjectStore(tmp_path_factory.mktemp("data"))
    records, kspace = [], []
    for seed, (name, (subject, num_slices, matrix)) in enumerate(VOLUMES.items()):
        volume = ellipsoid((36, 2 * num_slices, 38), seed) * (1 + 8 * seed)
        images = [centre_fit(volume[:, index + num_slices // 2].T, matrix) for index in range(num_slices)]
        records.append(stored_volume(name, subject, (1, *matrix), num_slices, first=50))
        kspace.append(np.stack([image_to_kspace(image)[None] for image in images]))
    layout = SplitLayout("test", tuple(records))
    writing.publish(store, {"test": write_layout(store, layout, kspace)}, [], plane="coronal")
    reader = SliceReader(store, dataset.read_split(store, "test"))
    yield reader
    reader.close()


@pytest.fixture(scope="module", params=[False, True], ids=["one mask", "mask per slice"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    mask = {"kind": "gaussian2d", "sampling_ratio": 0.3, "per_slice": request.param}
    return load_model(write_model(tmp_path_factory.mktemp("models") / "model", small_recipe(mask=mask)))


@torch.no_grad()
def directly(model: Model, reader: SliceReader) -> list[dict[str, Any]]:
    """Every slice from its definition, in NumPy: volume, images in [0, 1] and in the source's intensities."""
    rows = []
    for index in range(reader.info.num_slices):
        kspace = reader.read([index])[0][0]
        image = np.abs(np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace), norm="ortho")))
        image = centre_fit(image, CROP)
        low, high = image.min(), image.max()
        mask = make_mask(model.physics.mask, CROP, (0, index))
        measured = np.fft.ifftshift(np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image), norm="ortho")) * mask)
        zero_filled = np.abs(np.fft.fftshift(np.fft.ifft2(measured, norm="ortho"))).astype(np.float32)
        unit = zero_filled.max()
        found = model.generator(torch.from_numpy(zero_filled / unit)[None, None])[0, 0].numpy()
        volume = reader.info.volumes[reader.info.volume[index]]
        bright = {"target": image, "zero_filled": zero_filled, "model": found.clip(0) * unit}
        images = {name: (values - low) / (high - low) for name, values in bright.items()}
        rows.append({"volume": volume, "slice": index, "images": images, "bright": bright})
    return rows


def rate(target: np.ndarray, found: np.ndarray, peak: float) -> dict[str, float]:
    """Figures of a stack (slice, height, width); the SSIM is the mean over slices."""
    target, found = target.astype(np.float64), found.astype(np.float64)
    mse = np.mean((target - found) ** 2)
    ssim = [structural_similarity(t, f, data_range=peak, win_size=7) for t, f in zip(target, found, strict=True)]
    nmse = np.linalg.norm(target - found) ** 2 / np.linalg.norm(target) ** 2
    psnr = 10 * np.log10(peak**2 / mse)
    log = [np.stack([edges(image) for image in images]) for images in (target - found, target)]
    texture = {
        "hfen": np.linalg.norm(log[0]) / np.linalg.norm(log[1]),
        "gmsd": float(np.mean([gmsd(t, f, peak) for t, f in zip(target, found, strict=True)])),
    }
    return {"psnr": psnr, "ssim": float(np.mean(ssim)), "mse": mse, "rmse": mse**0.5, "nmse": nmse, **texture}


def run(model: Model, reader: SliceReader, preset: Any, batch_size: int = 3) -> Evaluation:
    methods = {"model": network_method(model.generator)}
    return evaluate(methods, model.physics, reader, preset, batch_size, lambda *_: None)


def test_every_slice_is_rated_as_computed_directly(model: Model, reader: SliceReader) -> None:
    result = run(model, reader, "paper")
    rows = {(row.volume, row.slice_index, row.method): row.metrics for row in result.slices}
    assert len(rows) == len(result.slices) == 2 * NUM_SLICES
    for wanted in directly(model, reader):
        images = wanted["images"]
        for method in ("zero_filled", "model"):
            expected = rate(images["target"][None], images[method][None], peak=1.0)
            found = rows[wanted["volume"], wanted["slice"], method]
            assert dict(found) == pytest.approx(expected, rel=1e-3)
    methods = [np.mean([row.metrics["psnr"] for row in result.slices if row.method == method]) for method in METHODS]
    assert methods[0] != pytest.approx(methods[1], rel=1e-3), "the model changes its input"


def test_paper_means_over_slices_then_volumes_then_subjects(model: Model, reader: SliceReader) -> None:
    result = run(model, reader, "paper")
    for method in METHODS:
        means = {}
        for volume in VOLUMES:
            rows = [row for row in result.slices if (row.volume, row.method) == (volume, method)]
            (line,) = [row for row in result.volumes if (row.volume, row.method) == (volume, method)]
            means[volume] = {name: np.mean([row.metrics[name] for row in rows]) for name in METRICS}
            assert dict(line.metrics) == pytest.approx(means[volume])
        ann = {name: (means["ann1"][name] + means["ann2"][name]) / 2 for name in METRICS}
        expected = {name: (ann[name] + means["bob"][name]) / 2 for name in METRICS}
        found = result.mean(method)
        assert {name: found[name] for name in METRICS} == pytest.approx(expected)


def test_fastmri_rates_volumes_in_the_sources_intensities(model: Model, reader: SliceReader) -> None:
    result = run(model, reader, "fastmri")
    wanted = directly(model, reader)
    for volume in VOLUMES:
        stacks = {
            name: np.stack([row["bright"][name] for row in wanted if row["volume"] == volume])
            for name in ("target", *METHODS)
        }
        for method in METHODS:
            (line,) = [row for row in result.volumes if (row.volume, row.method) == (volume, method)]
            expected = rate(stacks["target"], stacks[method], peak=stacks["target"].max())
            assert dict(line.metrics) == pytest.approx(expected, rel=1e-3)


def test_the_batch_size_does_not_matter(model: Model, reader: SliceReader) -> None:
    one, all_ = run(model, reader, "paper", batch_size=1), run(model, reader, "paper", batch_size=100)
    for left, right in zip(one.slices, all_.slices, strict=True):
        assert (left.volume, left.slice_index, left.method) == (right.volume, right.slice_index, right.method)
        assert dict(left.metrics) == pytest.approx(dict(right.metrics), rel=1e-3)


def test_some_slices_are_the_same_ones_for_every_method(model: Model, reader: SliceReader) -> None:
    methods = {"model": network_method(model.generator), "again": network_method(model.generator)}
    whole = evaluate(methods, model.physics, reader, "paper", 3, lambda *_: None)
    done: list[tuple[int, int]] = []
    some = evaluate(methods, model.physics, reader, "paper", 3, lambda *place: done.append(place), every=2)
    chosen = {int(index) for volume in reader.info.volumes for index in reader.info.slices_of(volume)[::2]}
    for method in whole.methods:
        assert {row.slice_index for row in some.slices if row.method == method} == chosen
    expected = {(row.slice_index, row.method): row.metrics for row in whole.slices}
    for row in some.slices:
        assert row.metrics == pytest.approx(expected[row.slice_index, row.method])
    assert done[-1] == (len(chosen), len(chosen))
    assert "one in 2 of each volume, the same ones in every row" in caption(some)
    assert "one in" not in caption(whole)


def test_a_segmentation_of_some_slices_is_refused(model: Model, reader: SliceReader) -> None:
    with pytest.raises(InputError, match="--segmentation needs whole volumes, not one slice in 2; leave --every out"):
        evaluate({}, model.physics, reader, "paper", 3, lambda *_: None, segmentation=SegmentationConfig(), every=2)


@pytest.mark.parametrize("preset", ["paper", "fastmri"])
def test_the_folder_holds_tables_summary_and_figures(
    model: Model, reader: SliceReader, preset: Any, tmp_path: Path
) -> None:
    result = run(model, reader, preset)
    written = write_evaluation([result], reader.info, {"model": {"step": 7}}, tmp_path / "out")
    assert {path.name for path in written} == {path.name for path in (tmp_path / "out").iterdir()}
    with (tmp_path / "out" / "metrics.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * (NUM_SLICES + len(VOLUMES))
    assert {(line["height"], line["mask"], line["sampling_ratio"]) for line in lines} == {("32", "gaussian2d", "0.3")}
    by_slice = [line for line in lines if line["slice"]]
    assert {(line["volume"], int(line["slice"]), line["method"]) for line in by_slice} == {
        (row.volume, row.slice_index, row.method) for row in result.slices
    }
    assert {line["preset"] for line in by_slice} == {"paper"}, "a single slice is always rated so"
    by_volume = [line for line in lines if not line["slice"]]
    assert {line["preset"] for line in by_volume} == {preset}
    for line, row in zip(lines, [*result.slices, *result.volumes], strict=True):
        assert {name: float(line[name]) for name in METRICS} == pytest.approx(dict(row.metrics), rel=1e-4)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["preset"], summary["definition"]) == (preset, PRESETS[preset])
    assert summary["volumes"] == list(VOLUMES)
    assert summary["subjects"] == ["ann", "bob"]
    (cell,) = summary["cells"]
    assert cell["mean"]["model"] == pytest.approx(result.mean("model"))
    figure = matplotlib.image.imread(tmp_path / "out" / cell["figure"])
    assert min(figure.shape[:2]) > 200
    assert figure[..., :3].std() > 0.1, "there is something in it"
    assert len(result.examples) == len(VOLUMES)


def test_an_ensemble_is_measured_and_written(model: Model, reader: SliceReader, tmp_path: Path) -> None:
    own = network_method(model.generator)
    methods = {"a": own, "b": lambda sample: own(sample) * 0.9}
    result = evaluate(methods, model.physics, reader, "paper", 3, lambda *_: None, members=["a", "b"])
    assert len(result.calibrations) == len(result.subject_of)
    assert text_table(result)[-1].startswith("uncertainty of the mean of 2 models: correlation")
    files = write_evaluation([result], reader.info, {}, tmp_path)
    assert any(path.name.startswith("calibration-") and path.is_file() for path in files)
    (cell,) = json.loads((tmp_path / "summary.json").read_text())["cells"]
    assert cell["uncertainty"]["models"] == ["a", "b"]
    alone = evaluate(methods, model.physics, reader, "paper", 3, lambda *_: None)
    assert [row.metrics for row in alone.slices] == [row.metrics for row in result.slices], "rows stay as they are"


def test_what_was_measured_and_changed_is_written(model: Model, reader: SliceReader, tmp_path: Path) -> None:
    """A method that gives the target changes nothing; one that darkens it by a tenth, a tenth of each point."""
    methods = {"target": lambda sample: sample.target, "darker": lambda sample: sample.target * 0.9}
    result = evaluate(methods, model.physics, reader, "paper", 3, lambda *_: None)
    assert result.residuals["target"] < 1e-6
    assert result.residuals["darker"] == pytest.approx(0.1, rel=1e-4)
    assert "measured points changed by darker: 10 % of the measured norm" in text_table(result)
    write_evaluation([result], reader.info, {}, tmp_path)
    (cell,) = json.loads((tmp_path / "summary.json").read_text())["cells"]
    assert cell["residual"] == dict(result.residuals)


@pytest.mark.parametrize("preset", ["paper", "fastmri"])
def test_the_printed_table_names_the_preset_and_the_means(model: Model, reader: SliceReader, preset: Any) -> None:
    result = run(model, reader, preset)
    lines = text_table(result)
    per_slice = ", a mask per slice" if model.physics.mask.per_slice else ""
    assert f"32×32, gaussian2d 30 %{per_slice}: mean over 2 subjects (3 volumes, 12 slices)" in lines[0]
    assert f"preset '{preset}': {PRESETS[preset]}" in lines[0]
    heading, rows = table_text(result)
    assert heading[1] == "PSNR (dB)"
    for row, method in zip(rows, METHODS, strict=True):
        mean = result.mean(method)
        assert row[0] == method
        assert [float(text.split()[0]) for text in row[1 : 1 + len(METRICS)]] == pytest.approx(
            [mean[name] for name in METRICS], rel=2e-3, abs=6e-5
        )
    gain = float(lines[-1].split()[3])
    assert gain == pytest.approx(result.mean("model")["psnr"] - result.mean("zero_filled")["psnr"], abs=6e-4)


def of_subjects(values: Mapping[str, Sequence[float]]) -> Evaluation:
    """An evaluation whose volumes, one after another of each subject, have these figures."""
    volumes, subject_of = [], {}
    for subject, figures in values.items():
        for number, value in enumerate(figures):
            name = f"{subject}{number}"
            subject_of[name] = subject
            volumes.append(Row(name, None, "zero_filled", dict.fromkeys(METRICS, value), 0.1))
    return Evaluation(Physics(CROP, MaskConfig()), "paper", ("zero_filled",), volumes, volumes, [], subject_of)


@pytest.mark.parametrize("figures", [[1.0, 4.0], [20.0, 31.5, 24.0], [30.0] * 4, list(range(12))])
def test_the_interval_is_that_of_the_mean_beside_it(figures: list[float]) -> None:
    """Student's t over subjects, as SciPy gives it; the mean is in its middle."""
    result = of_subjects({f"s{number}": [value] for number, value in enumerate(figures)})
    mean, interval = result.mean("zero_filled")["psnr"], result.interval("zero_filled")
    assert interval is not None
    expected = scipy.stats.ttest_1samp(figures, 0).confidence_interval(0.95) if np.ptp(figures) else (30.0, 30.0)
    assert interval["psnr"] == pytest.approx(tuple(expected))
    assert mean == pytest.approx(np.mean(figures)) == pytest.approx(np.mean(interval["psnr"]))
    assert f"{len(figures)} subjects" in caption(result)


def test_a_subject_with_more_volumes_counts_once() -> None:
    """Mean and interval of a mean over volumes would be of different things: 27.4 [32.9, 36.1] was printed."""
    many, one = of_subjects({"ann": [20.0] * 9, "bob": [32.0], "cid": [36.0]}), of_subjects({"ann": [20.0]})
    means = of_subjects({"ann": [20.0], "bob": [32.0], "cid": [36.0]})
    assert many.mean("zero_filled")["psnr"] == pytest.approx((20 + 32 + 36) / 3)
    found, expected = many.interval("zero_filled"), means.interval("zero_filled")
    assert found is not None
    assert expected is not None
    assert found["psnr"] == pytest.approx(expected["psnr"])
    assert one.interval("zero_filled") is None
    assert "mean over 3 subjects (11 volumes" in caption(many)
    assert "mean over 1 subject (1 volume, 1 slice); preset" in caption(one)
    assert "one subject, so no interval" in caption(one)


@pytest.mark.parametrize("num_subjects", [2, 3, 5, 20])
def test_95_of_100_intervals_hold_the_mean(num_subjects: int) -> None:
    """Of two subjects a percentile bootstrap's hold it in half of the cases."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        result = of_subjects({f"s{number}": [value] for number, value in enumerate(rng.normal(30, 3, num_subjects))})
        interval = result.interval("zero_filled")
        assert interval is not None
        held += interval["psnr"][0] <= 30 <= interval["psnr"][1]
    assert 0.92 < held / 400 < 0.98


def test_tables_for_a_paper_mark_the_best_and_stand_beside_the_papers(model: Model, reader: SliceReader) -> None:
    result = run(model, reader, "paper")
    best = max(METHODS, key=lambda method: result.mean(method)["psnr"])
    (line,) = [line for line in markdown([result]).splitlines() if line.startswith(f"| {best} |")]
    assert f"| **{result.mean(best)['psnr']:.3f}" in line
    text = latex([result])
    assert text.count(r"\textbf{") == len(METRICS)
    assert r"zero\_filled & " in text
    assert text.count("{") == text.count("}")
    assert "paper:" not in markdown([result])
    mask = result.physics.mask.model_copy(update={"sampling_ratio": 0.1})
    as_theirs = dataclasses.replace(
        result,
        physics=Physics((128, 256), mask),
        methods=("zero_filled", "gan_resnet50"),
        volumes=[
            dataclasses.replace(row, method="gan_resnet50" if row.method == "model" else row.method)
            for row in result.volumes
        ],
    )
    (line,) = [line for line in markdown([as_theirs]).splitlines() if line.startswith("| gan_resnet50")]
    assert line.endswith("| 37.4 / 0.953 |")
    assert len(PAPER) == 6


def test_a_model_for_larger_images_is_refused(reader: SliceReader, tmp_path: Path) -> None:
    recipe = small_recipe(data={"url": "unused", "crop": [48, 32]})
    model = load_model(write_model(tmp_path / "model", recipe))
    with pytest.raises(InputError, match="images of 48×32 are wanted, the data set has slices of 40×50; convert"):
        run(model, reader, "paper")


@pytest.mark.parametrize("preset", ["paper", "fastmri"])
def test_constant_slices_are_left_out_and_counted(model: Model, tmp_path: Path, preset: Any) -> None:
    """Two are constant as stored, one within the crop; the figures are those of the others."""
    images = ellipsoid((48, 12, 48))[:, 3:10].transpose(1, 2, 0)
    images[[0, 2, 4]] = 0
    images[4, 1, 1] = 90  # outside the crop
    write_images(ObjectStore(tmp_path / "with"), {"test": images})
    write_images(ObjectStore(tmp_path / "without"), {"test": images[[1, 3, 5, 6]]})
    results = []
    for name in ("with", "without"):
        with contextlib.closing(open_reader(DataConfig(url=str(tmp_path / name)), "test")) as reader:
            results.append(run(model, reader, preset))
    found, expected = results
    assert [row.slice_index for row in found.slices if row.method == "model"] == [0, 1, 3, 4]
    if not model.physics.mask.per_slice:
        for method in METHODS:
            mean = {name: expected.mean(method)[name] for name in METRICS}
            assert {name: found.mean(method)[name] for name in METRICS} == pytest.approx(mean, rel=1e-3)
    assert "4 slices, 3 constant ones left out)" in text_table(found)[0]
    assert "left out" not in text_table(expected)[0]
    save_evaluation(found, tmp_path / "kept.json", {})
    assert caption(load_evaluation(tmp_path / "kept.json")) == caption(found)


def test_images_that_are_no_numbers_are_not_rated(model: Model, reader: SliceReader) -> None:
    def broken(sample: Sample) -> torch.Tensor:
        return torch.where(torch.from_numpy(sample.samples[:, 1] == 6).view(-1, 1, 1, 1), torch.nan, sample.zero_filled)

    methods = {"good": network_method(model.generator), "bad": broken}
    with pytest.raises(InputError, match=r"bad gives values that are not finite for slice 51 of ann2.*checkpoint"):
        evaluate(methods, model.physics, reader, "paper", 3, lambda *_: None)


def test_the_figure_does_not_grow_with_the_number_of_volumes(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "_MOST_PICTURED", 3)
    store, names = ObjectStore(tmp_path / "data"), [f"v{number}" for number in range(7)]
    layout = SplitLayout("test", tuple(stored_volume(name, name, (1, *CROP), 2) for name in names))
    entry = write_layout(store, layout, [random_kspace(2, (1, *CROP), seed) for seed in range(7)])
    writing.publish(store, {"test": entry}, [])
    reader = SliceReader(store, dataset.read_split(store, "test"))
    result = run(model, reader, "paper")
    reader.close()
    assert [example.title.split(",")[0] for example in result.examples] == ["v0", "v3", "v6"]
    assert len(result.volumes) == 2 * len(names), "every volume is rated"
