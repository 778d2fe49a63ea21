"""Segmentation of a head made of ellipses whose tissues are known, and Dice."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.image import imread
from scipy.ndimage import gaussian_filter

from larmor.recon.evaluation.evaluate import evaluate
from larmor.recon.evaluation.segmentation import (
    TISSUES,
    Segmentation,
    SegmentationConfig,
    dice,
    dice_per_class,
    segment,
)
from larmor.recon.evaluation.segmentation_figure import SegmentationExample, SegmentedImage, write_segmentation_figure
from larmor.recon.evaluation.tables import slug, write_evaluation
from larmor.recon.inference.inference import Physics
from larmor.recon.recipe.mask_config import MaskConfig
from larmor.storage.formats.volumes import image_to_kspace
from larmor.storage.loading.config import DataConfig, open_reader
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore
from tests.helpers import property_test, write_dataset

CONFIG = SegmentationConfig()
SIZE = (128, 112)
BRIGHTNESS = {"air": 0.0, "scalp": 1.0, "skull": 0.04, "csf": 0.1, "grey_matter": 0.3, "white_matter": 0.42}
masks = arrays(bool, (4, 5), elements=st.booleans())

needs_libraries = pytest.mark.usefixtures("libraries")


@pytest.fixture
def libraries() -> None:
    for name in ("SimpleITK", "dipy"):
        pytest.importorskip(name)


def head(size: tuple[int, int] = SIZE, depth: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """An image (height, width) in [0, 1] with a bias field and noise, and its true classes.

    `depth` in (−1, 1) is the place of the slice between the back and the front of the head.
    """
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in size), indexing="ij")
    shrink = np.sqrt(1 - depth**2)
    radius = np.hypot(y / 0.92, x / 0.88) / shrink
    angle = np.arctan2(y, x)
    names = np.full(size, "air", dtype="U12")
    fold = 0.18 * np.cos(9 * angle)  # as cortex is folded: rings would be taken for a bias field
    for name, limit in (("scalp", 1.0), ("skull", 0.88), ("csf", 0.8), ("grey_matter", 0.78)):
        names[radius < limit] = name
    names[radius < 0.55 + fold] = "white_matter"
    for side in (-1, 1):
        names[np.hypot((y + 0.02) / 0.22, (x - side * 0.14) / 0.09) < shrink] = "csf"
    classes = sum((names == tissue) * number for number, tissue in enumerate(TISSUES, 1))
    image = np.vectorize(BRIGHTNESS.__getitem__)(names)
    image = image * np.exp(0.25 * x - 0.2 * y + 0.1 * depth)
    image = image + np.random.default_rng([1, round(50 * depth) + 50]).normal(0, 0.01, size)
    return np.clip(image / image.max(), 0, 1).astype(np.float32), np.asarray(classes, np.uint8)


def only(classes: np.ndarray) -> Segmentation:
    return Segmentation(classes, np.zeros(classes.shape, np.int32), [])


@given(masks, masks)
@property_test
def test_dice_is_symmetric_and_between_0_and_1(first: np.ndarray, second: np.ndarray) -> None:
    assert 0 <= dice(first, second) <= 1
    assert dice(first, second) == dice(second, first)
    assert dice(first, first) == 1
    assert (dice(first, second) == 1) == bool((first == second).all())


def test_dice_by_hand() -> None:
    first, second = np.array([1, 1, 1, 0], bool), np.array([0, 1, 1, 1], bool)
    assert dice(first, second) == pytest.approx(2 / 3)
    assert dice(first, ~first) == 0
    assert dice(np.zeros(4, bool), np.zeros(4, bool)) == 1
    with pytest.raises(InputError, match=r"\(4,\) and \(3,\)"):
        dice(first, second[:3])


def test_dice_of_each_class() -> None:
    original, found = np.array([[[0, 1, 1, 2, 3]]], np.uint8), np.array([[[1, 1, 2, 2, 3]]], np.uint8)
    rated = dice_per_class(only(original), only(found))
    expected = {"csf": 1 / 2, "grey_matter": 2 / 3, "white_matter": 1.0, "brain": 8 / 9}
    assert rated == pytest.approx({**expected, "mean": (1 / 2 + 2 / 3 + 1) / 3})


@needs_libraries
def test_the_tissues_of_a_known_head_are_found() -> None:
    image, truth = head()
    found = segment(image[None], CONFIG)
    rated = dice_per_class(only(truth[None]), found)
    assert min(rated.values()) > 0.85, rated
    assert rated["mean"] > 0.9
    assert found.classes.dtype == np.uint8
    assert found.instances.dtype == np.int32
    means = [image[found.classes[0] == number].mean() for number in (1, 2, 3)]
    assert means == sorted(means)


@needs_libraries
def test_a_volume_is_segmented_as_one() -> None:
    depths = np.linspace(-0.5, 0.5, 25)
    parts = [head((96, 96), depth) for depth in depths]
    images, truth = (np.stack(part) for part in zip(*parts, strict=True))
    high = images.max(axis=(1, 2))
    scale = np.stack([np.zeros(len(images)), 700 * high], axis=1)
    found = segment(images / high[:, None, None], CONFIG, scale)  # each slice was normalised on its own
    rated = dice_per_class(only(truth), found)
    assert rated["brain"] > 0.95
    # these slices are alike in depth, which N4 takes for a bias field: less than of a single slice
    assert rated["mean"] > 0.7


@needs_libraries
def test_the_same_image_gives_the_same_segmentation_and_a_worse_one_a_lower_dice() -> None:
    image = head()[0][None]
    original, again = segment(image, CONFIG), segment(image.copy(), CONFIG)
    np.testing.assert_array_equal(original.classes, again.classes)
    np.testing.assert_array_equal(original.instances, again.instances)
    assert original.regions == again.regions
    assert set(dice_per_class(original, again).values()) == {1.0}
    blurred = [segment(gaussian_filter(image, (0, sigma, sigma)), CONFIG) for sigma in (0.8, 2.5)]
    good, bad = (dice_per_class(original, found)["mean"] for found in blurred)
    assert 1 > good > bad


@needs_libraries
def test_segmentation_leaves_the_global_generator_alone() -> None:
    before = np.random.get_state(legacy=False)["state"]["key"].copy()
    segment(head((64, 64))[0][None], CONFIG)
    np.testing.assert_array_equal(before, np.random.get_state(legacy=False)["state"]["key"])


@needs_libraries
def test_regions_describe_the_instances() -> None:
    image = head()[0][None]
    found = segment(image, CONFIG)
    brain, *instances = found.regions
    assert (brain.tissue, brain.number, brain.area) == ("brain", 0, int((found.classes > 0).sum()))
    assert [region.area for region in instances] == sorted((region.area for region in instances), reverse=True)
    assert {region.number for region in instances} == set(np.unique(found.instances)) - {0}
    for region in instances:
        inside = found.instances[0] == region.number
        top, left, bottom, right = region.box
        assert inside[top:bottom, left:right].sum() == region.area == inside.sum() >= CONFIG.min_area
        assert set(found.classes[0][inside]) == {1 + TISSUES.index(region.tissue)}
        assert region.mean_intensity == pytest.approx(image[0][inside].mean(), rel=1e-4)
        assert region.centroid == pytest.approx([axis.mean() for axis in np.nonzero(inside)])
    assert found.regions_of_interest(0) == found.regions[:4]
    assert found.regions_of_interest(1) == []


@needs_libraries
@pytest.mark.parametrize("level", [0.0, 0.5])
def test_an_image_without_brain_is_background(level: float) -> None:
    found = segment(np.full((2, 40, 40), level, np.float32), CONFIG)
    assert not found.classes.any()
    assert not found.instances.any()
    assert list(found.regions) == []


@needs_libraries
@pytest.mark.parametrize("seed", range(3))
def test_noise_and_small_spots_do_no_harm(seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.random((3, 33, 47), dtype=np.float32)
    image[1] = 0
    image[1, 8 : 12 + 2 * seed, 20:32] = 1
    image[2, 5:25, 5 : 8 + 5 * seed] += 3
    assert segment(np.clip(image / 4, 0, 1), CONFIG).classes.max() <= len(TISSUES)


@needs_libraries
def test_wrong_input_is_refused() -> None:
    image = head((64, 64))[0][None]
    with pytest.raises(InputError, match="is expected"):
        segment(image[0], CONFIG)
    with pytest.raises(InputError, match="at least 32×32"):
        segment(image[:, :20], CONFIG)
    with pytest.raises(InputError, match="not finite"):
        segment(np.where(image > 0.5, np.nan, image), CONFIG)
    with pytest.raises(InputError, match=r"\(1, 2\) is expected"):
        segment(image, CONFIG, np.zeros((2, 2)))


@pytest.mark.parametrize(("module", "name"), [("SimpleITK", "SimpleITK"), ("dipy.segment.tissue", "DIPY")])
def test_without_a_library_the_extra_is_named(module: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if module != "SimpleITK":
        pytest.importorskip("SimpleITK")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"{name}.*larmor-mri\[segmentation\]"):
        segment(np.zeros((1, 40, 40), np.float32), CONFIG)


@needs_libraries
def test_evaluation_rates_segmentations_and_draws_them(tmp_path: Path) -> None:
    images = np.stack([head((64, 64), depth)[0] for depth in np.linspace(-0.3, 0.3, 9)])
    store = ObjectStore(str(tmp_path / "data"))
    write_dataset(store, {"test": image_to_kspace(images)[:, None]}, subjects=1)
    physics = Physics((64, 64), MaskConfig(kind="gaussian2d", sampling_ratio=0.1))
    methods = {"perfect": lambda sample: sample.target}
    with contextlib.closing(open_reader(DataConfig(url=store.url), "test")) as reader:
        result = evaluate(methods, physics, reader, "paper", 4, lambda *_: None, segmentation=CONFIG)
        written = write_evaluation([result], reader.info, {}, tmp_path / "table")
    assert result.mean("perfect")["dice"] == 1
    assert result.mean("zero_filled")["dice"] < 0.95
    assert len(result.segmented) == 3, "of the only volume three slices"
    expected = segment(images, CONFIG, np.tile([0.0, 1.0], (9, 1)))
    for example, place in zip(result.segmented, (2, 4, 5), strict=True):
        zero_filled, perfect = example.reconstructions
        np.testing.assert_array_equal(example.original.segmentation.classes[0], expected.classes[place])
        np.testing.assert_array_equal(perfect.segmentation.instances, example.original.segmentation.instances)
        assert len(perfect.segmentation.regions) == len(example.original.segmentation.regions) > 3
        assert (zero_filled.segmentation.classes != example.original.segmentation.classes).any()
    (figure,) = [path for path in written if path.name == f"segmentation-{slug(physics)}.png"]
    assert imread(figure).std() > 0.1


def test_the_figure_marks_what_differs(tmp_path: Path) -> None:
    image, truth = head()
    other = np.where((np.arange(SIZE[0]) < SIZE[0] // 2)[:, None], truth, (truth > 0) * np.uint8(1 + truth % 3))
    shares = []
    for name, classes in (("same", truth), ("other", other.astype(np.uint8))):
        original, found = only(truth[None]), only(classes[None])
        example = SegmentationExample(SegmentedImage("head", image, original), [SegmentedImage(name, image, found)])
        write_segmentation_figure([example], tmp_path / f"{name}.png")
        red, green, blue = np.moveaxis(imread(tmp_path / f"{name}.png")[..., :3], -1, 0)
        marked = (red > 0.85) & (green < 0.3) & (blue < 0.3)
        half = marked.shape[1] // 2
        assert marked[:-80, :half].sum() == 0, "nothing differs from itself"
        shares.append(marked[:-80, half:].mean())
    assert shares[0] == 0
    assert shares[1] > 0.02


def test_a_figure_needs_slices(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one slice"):
        write_segmentation_figure([], tmp_path / "none.png")
