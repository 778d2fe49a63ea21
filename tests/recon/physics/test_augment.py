"""Augmentation depends on (seed, epoch, index) alone, moves images rigidly and keeps their range."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from larmor.recon.physics.augment import AUGMENT_STREAM, augment, draw_motion
from larmor.recon.physics.elastic import displacements
from larmor.recon.recipe.settings import AugmentConfig
from tests.helpers import property_test, random_images

DAGAN = AugmentConfig(flip=0.5, rotation=10, shift=0.1, zoom=0.1)
# PyTorch's cubic kernel (a = −0.75) keeps constants but not slopes: off by up to 0.049 pixels, which the steepest part
# of a `blob`, 0.15 per pixel, shows along both axes
OFF, RIPPLE = 0.05, 0.015  # pixels; intensity
sides = st.integers(1, 40)
configs = st.builds(
    AugmentConfig,
    flip=st.floats(0, 1),
    rotation=st.floats(0, 180),
    shift=st.floats(0, 0.5),
    zoom=st.floats(0, 0.5),
    elastic=st.one_of(st.just(0.0), st.floats(0, 0.02)),
)


def samples_of(count: int, epoch: int = 0) -> np.ndarray:
    return np.stack([np.full(count, epoch), np.arange(count)], axis=1)


def blob(height: int, width: int, spread: float = 4.0) -> Tensor:
    """(1, 1, height, width): a smooth round bell at the image's centre."""
    y, x = torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2
    return torch.exp(-(y[:, None] ** 2 + x**2) / (2 * spread**2))[None, None]


def centre(image: Tensor) -> np.ndarray:
    """Centre of mass (y, x) of a (1, 1, height, width) image, in pixels."""
    weights = image[0, 0].double().numpy()
    y, x = np.indices(weights.shape)
    return np.array([(weights * y).sum(), (weights * x).sum()]) / weights.sum()


@property_test
@given(configs, sides, sides, st.permutations(range(5)), st.integers(0, 2**31), st.integers(0, 1000))
def test_neither_the_batch_nor_the_place_in_it_matters(
    config: AugmentConfig, height: int, width: int, order: list[int], seed: int, epoch: int
) -> None:
    images, samples = random_images(5, height, width), samples_of(5, epoch)
    together = augment(images, samples, config, seed)
    assert torch.equal(augment(images[order], samples[order], config, seed), together[order])
    for number in range(5):
        alone = augment(images[number : number + 1], samples[number : number + 1], config, seed)
        assert torch.equal(alone[0], together[number])


def test_seed_epoch_and_slice_each_give_another_motion() -> None:
    places = [(seed, epoch, index) for seed in range(6) for epoch in range(6) for index in range(6)]
    assert len({draw_motion(DAGAN, *place) for place in places}) == len(places)
    image = random_images(1, 24, 20)
    first, second = (augment(image, samples_of(1, epoch), DAGAN, 0) for epoch in (0, 1))
    assert not torch.equal(first, second)


def test_the_stream_is_no_other_ones() -> None:
    mine = np.random.default_rng([0, AUGMENT_STREAM, 0, 0]).random()
    # numpy fills up with zeros, so that [0], [0, 0] and [0, 0, 0] are one stream: an order's and a mask's
    assert mine != np.random.default_rng([0, 0, 0]).random() == np.random.default_rng([0]).random()


@property_test
@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 1000))
def test_one_setting_leaves_the_draws_of_the_others(flip: float, size: float, seed: int) -> None:
    bare, full = AugmentConfig(rotation=10), AugmentConfig(flip=flip, rotation=10, shift=size / 2, zoom=size / 2)
    assert draw_motion(bare, seed, 3, 5).rotation == draw_motion(full, seed, 3, 5).rotation


def test_nothing_is_done_by_default() -> None:
    assert not AugmentConfig().enabled
    for image in (random_images(3, 9, 14), random_images(3, 9, 14).to(torch.complex64)):
        assert torch.equal(augment(image, samples_of(3), AugmentConfig(), 0), image)


@pytest.mark.parametrize("width", [13, 14])
def test_a_flip_moves_whole_pixels_and_twice_is_none(width: int) -> None:
    images, samples, always = random_images(3, 9, width), samples_of(3), AugmentConfig(flip=1)
    once = augment(images, samples, always, 0)
    assert torch.equal(once, images.flip(-1))
    assert torch.equal(augment(once, samples, always, 0), images)


def test_a_flip_comes_as_often_as_asked_for() -> None:
    images = random_images(400, 3, 4)
    flipped = (augment(images, samples_of(400), AugmentConfig(flip=0.3), 0) != images).flatten(1).any(dim=1)
    assert 0.2 < flipped.double().mean() < 0.4
    assert torch.equal(augment(images, samples_of(400), AugmentConfig(flip=0.3), 0)[~flipped], images[~flipped])


@property_test
@given(configs, st.integers(0, 1000))
def test_draws_keep_to_their_bounds(config: AugmentConfig, seed: int) -> None:
    motions = [draw_motion(config, seed, epoch, index) for epoch in range(5) for index in range(5)]
    assert all(abs(motion.rotation) <= config.rotation for motion in motions)
    assert all(1 - config.zoom <= motion.zoom <= 1 + config.zoom for motion in motions)
    assert all(abs(part) <= config.shift for motion in motions for part in motion.shift)


def test_draws_use_their_bounds() -> None:
    motions = [draw_motion(DAGAN, 0, 0, index) for index in range(400)]
    down, right = zip(*(motion.shift for motion in motions), strict=True)
    values = ([m.rotation / 10 for m in motions], [(m.zoom - 1) / 0.1 for m in motions])
    for drawn in (*values, np.array(down) / 0.1, np.array(right) / 0.1):
        assert min(drawn) < -0.95
        assert max(drawn) > 0.95
        assert abs(np.mean(drawn)) < 0.15
    assert abs(np.corrcoef(down, right)[0, 1]) < 0.15


@pytest.mark.parametrize("size", [(40, 72), (73, 41)])
def test_a_disc_is_still_round_and_in_place_after_a_rotation(size: tuple[int, int]) -> None:
    disc = blob(*size)
    for index in range(8):
        turned = augment(disc, np.array([[0, index]]), AugmentConfig(rotation=180), 0)
        torch.testing.assert_close(turned, disc, atol=RIPPLE, rtol=0)


def test_a_rotation_turns_by_its_angle_counter_clockwise() -> None:
    image = torch.roll(blob(48, 80, 3), 15, dims=3)  # 15 pixels right of the centre
    for index in range(8):
        angle = np.deg2rad(draw_motion(AugmentConfig(rotation=180), 0, 0, index).rotation)
        turned = augment(image, np.array([[0, index]]), AugmentConfig(rotation=180), 0)
        found = centre(turned) - centre(blob(48, 80))
        np.testing.assert_allclose(found, [-15 * np.sin(angle), 15 * np.cos(angle)], atol=OFF)


def test_a_shift_moves_the_centre_of_mass_by_what_was_drawn() -> None:
    image, config = blob(60, 90), AugmentConfig(shift=0.2)
    for index in range(8):
        moved = augment(image, np.array([[0, index]]), config, 0)
        expected = np.array(draw_motion(config, 0, 0, index).shift) * image.shape[-2:]
        np.testing.assert_allclose(centre(moved) - centre(image), expected, atol=OFF)


def test_a_zoom_changes_the_size_by_its_factor_both_ways_alike() -> None:
    config = AugmentConfig(zoom=0.3)
    for index in range(8):
        factor = draw_motion(config, 0, 0, index).zoom
        grown = augment(blob(60, 90), np.array([[0, index]]), config, 0)
        torch.testing.assert_close(grown, blob(60, 90, 4 * factor), atol=RIPPLE, rtol=0)


def test_all_at_once_is_flip_then_zoom_and_rotation_then_shift() -> None:
    config = AugmentConfig(flip=1, rotation=60, shift=0.1, zoom=0.2)
    image = torch.roll(blob(90, 110, 3), (-6, 12), dims=(2, 3))
    for index in range(8):
        motion = draw_motion(config, 0, 0, index)
        angle, (y, x) = np.deg2rad(motion.rotation), np.array([-6, -12]) * motion.zoom
        turned = np.array([y * np.cos(angle) - x * np.sin(angle), y * np.sin(angle) + x * np.cos(angle)])
        expected = turned + np.array(motion.shift) * image.shape[-2:]
        found = centre(augment(image, np.array([[0, index]]), config, 0)) - centre(blob(90, 110))
        np.testing.assert_allclose(found, expected, atol=OFF)


@property_test
@given(configs, sides, sides, st.floats(-2, 2), st.floats(0, 5))
def test_values_stay_in_the_range_of_the_image_and_padding(
    config: AugmentConfig, height: int, width: int, offset: float, span: float
) -> None:
    images = random_images(4, height, width).round() * span + offset  # hard edges overshoot most
    moved = augment(images, samples_of(4), config, 1)
    assert moved.shape == images.shape
    assert moved.dtype == torch.float32
    assert (moved >= images.amin((1, 2, 3), keepdim=True).clamp(max=0)).all()
    assert (moved <= images.amax((1, 2, 3), keepdim=True).clamp(min=0)).all()


def test_fine_detail_is_kept() -> None:
    """Up to half of the Nyquist frequency no more than a tenth of the power is lost."""
    image = torch.from_numpy(np.random.default_rng(0).standard_normal((8, 1, 128, 128), dtype=np.float32))
    moved = augment(image, samples_of(8), AugmentConfig(rotation=10), 0)
    window = torch.hann_window(128, periodic=False)
    before, after = (torch.fft.fft2(part * window * window[:, None]).abs().square().mean(0) for part in (image, moved))
    frequency = torch.fft.fftfreq(128)
    radius = torch.hypot(frequency[:, None], frequency)
    for low, high in ((0.05, 0.125), (0.125, 0.25)):
        ring = (radius >= low) & (radius < high)
        assert 0.9 < after[0, ring].sum() / before[0, ring].sum() < 1.15


def test_complex_images_are_moved_as_real_and_imaginary_parts() -> None:
    real, imaginary = random_images(4, 21, 30), -2 * random_images(4, 30, 21).mT
    parts = [augment(part.repeat(1, 2, 1, 1), samples_of(4), DAGAN, 0) for part in (real, imaginary)]
    both = augment(torch.complex(real, imaginary).repeat(1, 2, 1, 1), samples_of(4), DAGAN, 0)
    assert both.dtype == torch.complex64
    assert torch.equal(both, torch.complex(*parts))


class TestElastic:
    @pytest.mark.parametrize("size", [(64, 48), (33, 57), (30, 28), (101, 8)])
    def test_a_weak_one_leaves_everything_in_place(self, size: tuple[int, int]) -> None:
        """Half a pixel, or a ripple of the interpolation, would be in all images alike."""
        image = random_images(3, *size)
        bent = augment(image, samples_of(3), AugmentConfig(elastic=1e-6), 0)
        torch.testing.assert_close(bent, image, rtol=0, atol=5e-3)

    def test_displacements_grow_with_the_setting_and_have_its_size(self) -> None:
        size, samples = (64, 48), samples_of(200)
        weak, strong = (displacements(size, samples, strength, 0) for strength in (0.005, 0.02))
        torch.testing.assert_close(strong, 4 * weak)
        deviation = strong[:, 32, 24].std(dim=0) / 64  # of magnitudes between 0 and 0.02
        assert ((deviation > 0.004) & (deviation < 0.016)).all()
        assert strong[:, 32, 24].mean(dim=0).abs().max() < 0.25

    def test_images_are_not_folded_and_by_the_strongest_one_hardly_any(self) -> None:
        def folded(strength: float) -> float:
            x, y = displacements((64, 64), samples_of(400), strength, 0).unbind(-1)
            along_x, along_y = ([part.diff(dim=axis)[:, :63, :63] for part in (x, y)] for axis in (2, 1))
            stretch = (1 + along_x[0]) * (1 + along_y[1]) - along_x[1] * along_y[0]
            return float((stretch.flatten(1).amin(dim=1) <= 0).float().mean())

        assert folded(0.01) == 0
        assert folded(0.02) < 0.05

    def test_places_are_exact(self) -> None:
        """A slope shows where each pixel came from."""
        y, x = torch.meshgrid(torch.arange(48.0), torch.arange(60.0), indexing="ij")
        slopes = torch.stack([x, y])[None]
        bent = augment(slopes, samples_of(1, 3), AugmentConfig(elastic=0.01), 5)
        inside = slice(6, -6)
        moved = (bent - slopes)[0].permute(1, 2, 0)[inside, inside]
        expected = displacements((48, 60), samples_of(1, 3), 0.01, 5)[0, inside, inside]
        torch.testing.assert_close(moved, expected, rtol=0, atol=0.1)
        assert moved.abs().max() > 0.5


def test_the_given_images_are_not_changed() -> None:
    images = random_images(2, 12, 16)
    copy = images.clone()
    augment(images, samples_of(2), DAGAN, 0)
    assert torch.equal(images, copy)


@pytest.mark.parametrize(
    "wrong", [{"flip": 1.1}, {"rotation": -1}, {"rotation": 181}, {"shift": 0.6}, {"zoom": 1}, {"zoom": float("nan")}]
)
def test_settings_out_of_bounds_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        AugmentConfig.model_validate(wrong)
