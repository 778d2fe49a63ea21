"""From stored k-space to target and zero-filled input."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from larmor.recon.physics.feed import to_device
from larmor.recon.physics.masks import make_mask
from larmor.recon.physics.samples import Sample, centre_fit, denormalize, magnitude, normalize, prepare
from larmor.recon.recipe.mask_config import MaskConfig
from larmor.storage.formats import volumes
from larmor.storage.formats.volumes import image_to_kspace
from larmor.storage.loading.loader import Batch
from tests.helpers import random_images, random_kspace

CPU = torch.device("cpu")
SIZES = [(8, 8), (7, 9)]


def zero_filled(target: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
    """|F⁻¹(mask · F(target))| of (batch, 1, height, width), by numpy."""
    kspace = image_to_kspace(target.numpy()) * mask.numpy()
    return np.abs(np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, (-2, -1)), norm="ortho"), (-2, -1)))


def make_samples(num_slices: int) -> np.ndarray:
    return np.array([(2, 10 + number) for number in range(num_slices)])


def make_batch(num_slices: int = 5, coils: int = 1) -> Batch:
    return Batch.of(random_kspace(num_slices, (coils, 24, 30)), make_samples(num_slices))


def some_of(batch: Batch, places: list[int]) -> Batch:
    return Batch.of(batch.groups[0].kspace[places], batch.samples[places])


def rows_of(sample: Sample, rows: list[int]) -> Sample:
    parts = (sample.target, sample.zero_filled, sample.kspace, sample.mask, sample.scale)
    target, zero_filled, kspace, mask, scale = (part[rows] for part in parts)
    return Sample(target, zero_filled, kspace, mask, scale, sample.samples[rows])


def assert_close(found: Sample, expected: Sample) -> None:
    assert torch.equal(found.mask, expected.mask)
    torch.testing.assert_close(found.target, expected.target, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.zero_filled, expected.zero_filled, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.kspace, expected.kspace, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.scale, expected.scale, rtol=1e-6, atol=0)


class TestNormalize:
    def test_images_fill_the_range_and_come_back(self) -> None:
        images = random_images(4, 9, 7) * torch.tensor([1.0, 50, 1e4, 1e-3]).view(-1, 1, 1, 1) - 3
        normal, scale = normalize(images)
        assert torch.equal(normal.amin(dim=(1, 2, 3)), torch.zeros(4))
        torch.testing.assert_close(normal.amax(dim=(1, 2, 3)), torch.ones(4))
        assert torch.equal(scale[:, 0], images.amin(dim=(1, 2, 3)))
        assert torch.equal(scale[:, 1], images.amax(dim=(1, 2, 3)))
        torch.testing.assert_close(denormalize(normal, scale), images, rtol=1e-5, atol=1e-6)

    def test_a_constant_image_becomes_zero_and_comes_back(self) -> None:
        images = torch.full((2, 1, 5, 5), 7.0)
        normal, scale = normalize(images)
        assert torch.equal(normal, torch.zeros_like(images))
        assert torch.equal(denormalize(normal, scale), images)


class TestCrop:
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("crop", [(4, 4), (5, 3), (7, 8), (1, 1)])
    def test_the_centre_of_the_fft_stays_in_the_centre(self, size: tuple[int, int], crop: tuple[int, int]) -> None:
        image = torch.arange(size[0] * size[1]).reshape(1, 1, *size)
        cropped = centre_fit(image, crop)
        assert cropped.shape == (1, 1, *crop)
        assert cropped[0, 0, crop[0] // 2, crop[1] // 2] == image[0, 0, size[0] // 2, size[1] // 2]
        assert np.array_equal(cropped, volumes.centre_fit(image.numpy(), crop)), "as volumes are cropped"


class TestFit:
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("wanted", [(4, 4), (5, 3), (7, 9), (8, 8), (12, 11), (9, 4), (4, 15), (1, 30)])
    def test_it_crops_and_pads_about_the_centre_of_the_fft(
        self, size: tuple[int, int], wanted: tuple[int, int]
    ) -> None:
        image = 1 + torch.arange(2 * size[0] * size[1]).reshape(2, 1, *size)
        fitted = centre_fit(image, wanted)
        assert fitted.shape == (2, 1, *wanted)
        assert torch.equal(fitted[:, 0, wanted[0] // 2, wanted[1] // 2], image[:, 0, size[0] // 2, size[1] // 2])
        kept = min(size[0], wanted[0]) * min(size[1], wanted[1])
        assert (fitted != 0).sum() == 2 * kept, "the rest is zero"
        assert np.array_equal(fitted, volumes.centre_fit(image.numpy(), wanted)), "as volumes are fitted"

    @pytest.mark.parametrize("size", SIZES)
    def test_what_was_padded_is_cropped_back(self, size: tuple[int, int]) -> None:
        image = random_images(3, *size)
        for larger in ((8, 9), (20, 31), (9, 10)):
            assert torch.equal(centre_fit(centre_fit(image, larger), size), image)


class TestMagnitude:
    def test_one_coil_gives_the_image(self) -> None:
        images = random_images(3, 10, 13)
        kspace = torch.from_numpy(image_to_kspace(images.numpy()))
        torch.testing.assert_close(magnitude(kspace), images, rtol=1e-4, atol=1e-5)

    def test_coils_add_as_the_root_of_the_sum_of_squares(self) -> None:
        images = random_images(1, 10, 13)
        weights = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
        kspace = torch.from_numpy(image_to_kspace((images * weights).numpy()))
        torch.testing.assert_close(magnitude(kspace), 5 * images, rtol=1e-4, atol=1e-4)


def test_a_sample_has_its_ratio_of_a_range_in_any_batch() -> None:
    batch, mask = make_batch(), MaskConfig(sampling_ratio={"min": 0.2, "max": 0.8})
    sample = prepare(batch, (16, 20), mask, CPU)
    assert len(sample.mask.flatten(1).sum(dim=1).unique()) > 1
    assert_close(prepare(some_of(batch, [3, 0]), (16, 20), mask, CPU), rows_of(sample, [3, 0]))
    assert_close(prepare(to_device(batch, CPU), (16, 20), mask, CPU), sample)


@pytest.mark.parametrize("per_slice", [False, True])
class TestPrepare:
    def config(self, per_slice: bool, **settings: object) -> MaskConfig:
        return MaskConfig(sampling_ratio=0.3, per_slice=per_slice, **settings)

    def test_shapes_and_ranges(self, per_slice: bool) -> None:
        batch = make_batch(coils=2)
        sample = prepare(batch, (16, 20), self.config(per_slice), CPU)
        assert sample.target.shape == sample.zero_filled.shape == sample.mask.shape == (5, 1, 16, 20)
        assert sample.scale.shape == (5, 2)
        assert (sample.mask.dtype, sample.target.dtype) == (torch.bool, torch.float32)
        assert sample.target.min() >= 0
        torch.testing.assert_close(sample.zero_filled.amax(dim=(1, 2, 3)), torch.ones(5))
        np.testing.assert_allclose(sample.zero_filled, zero_filled(sample.target, sample.mask), atol=1e-5)
        image = centre_fit(magnitude(torch.from_numpy(batch.groups[0].kspace)), (16, 20))
        torch.testing.assert_close(denormalize(sample.target, sample.scale), image, rtol=1e-4, atol=1e-5)

    def test_a_sample_does_not_depend_on_its_batch(self, per_slice: bool) -> None:
        batch, config = make_batch(), self.config(per_slice)
        whole = prepare(batch, (16, 20), config, CPU)
        for places in ([3], [4, 0], [2, 2, 1]):
            part = prepare(some_of(batch, places), (16, 20), config, CPU)
            assert_close(part, rows_of(whole, places))

    def test_a_slice_does_not_depend_on_the_shapes_beside_it(self, per_slice: bool) -> None:
        """Larger and smaller than the crop, of one coil and of several: as if each came alone."""
        config = self.config(per_slice)
        shapes = [(1, 24, 30), (3, 12, 18), (1, 24, 30), (2, 40, 16), (3, 12, 18), (1, 17, 21)]
        slices = [random_kspace(1, shape, seed)[0] for seed, shape in enumerate(shapes)]
        samples = make_samples(len(shapes))
        batch = Batch.gather(slices, samples)
        assert len(batch.groups) == 4
        whole = prepare(batch, (16, 20), config, CPU)
        assert whole.target.shape == (6, 1, 16, 20)
        for row, kspace in enumerate(slices):
            alone = prepare(Batch.of(kspace[None], samples[row : row + 1]), (16, 20), config, CPU)
            assert_close(rows_of(whole, [row]), alone)

    def test_a_batch_may_be_on_the_device_already(self, per_slice: bool) -> None:
        batch, config = make_batch(), self.config(per_slice)
        assert_close(prepare(to_device(batch, CPU), (16, 20), config, CPU), prepare(batch, (16, 20), config, CPU))

    def test_the_batch_stays_as_it_was(self, per_slice: bool) -> None:
        batch = make_batch()
        before = batch.groups[0].kspace.copy()
        prepare(batch, (16, 20), self.config(per_slice), CPU)
        assert np.array_equal(batch.groups[0].kspace, before)

    def test_it_is_reproducible(self, per_slice: bool) -> None:
        first, again = (prepare(make_batch(), (16, 20), self.config(per_slice), CPU) for _ in range(2))
        assert torch.equal(first.zero_filled, again.zero_filled)
        assert torch.equal(first.target, again.target)
        other = prepare(make_batch(), (16, 20), self.config(per_slice, seed=1), CPU)
        assert not torch.equal(first.mask, other.mask)

    def test_masks_follow_epoch_and_slice_where_asked(self, per_slice: bool) -> None:
        batch, config = make_batch(), self.config(per_slice)
        mask = prepare(batch, (16, 20), config, CPU).mask
        for place, (epoch, index) in enumerate(batch.samples):
            stream = (int(epoch), int(index)) if per_slice else ()
            assert np.array_equal(mask[place, 0], make_mask(config, (16, 20), stream))
        later = prepare(Batch.of(batch.groups[0].kspace, batch.samples + np.array([1, 0])), (16, 20), config, CPU).mask
        assert torch.equal(mask, later) == (not per_slice)


class TestAugmentation:
    """Whatever is put in: it gets whole images before they are cut, each with its own epoch and slice."""

    MASK = MaskConfig(sampling_ratio=0.3)

    def test_it_changes_the_image_before_crop_normalisation_and_mask(self) -> None:
        batch = make_batch(coils=2)
        image = magnitude(torch.from_numpy(batch.groups[0].kspace))
        seen: list[tuple[torch.Size, list[list[int]]]] = []

        def shifted(images: torch.Tensor, samples: np.ndarray) -> torch.Tensor:
            seen.append((images.shape, samples.tolist()))
            return images.roll(10, dims=-1) * 3

        sample = prepare(batch, (16, 20), self.MASK, CPU, shifted)
        assert seen == [(torch.Size((5, 1, 24, 30)), batch.samples.tolist())]
        expected = centre_fit(3 * image.roll(10, dims=-1), (16, 20))
        torch.testing.assert_close(denormalize(sample.target, sample.scale), expected, rtol=0, atol=1e-4)
        np.testing.assert_allclose(sample.zero_filled, zero_filled(sample.target, sample.mask), atol=1e-5)

    def test_every_image_gets_its_own_sample(self) -> None:
        shapes = [(1, 24, 30), (2, 12, 18), (1, 24, 30), (2, 12, 18)]
        slices = [random_kspace(1, shape, seed)[0] for seed, shape in enumerate(shapes)]
        samples = make_samples(4)

        def bright(images: torch.Tensor, about: np.ndarray) -> torch.Tensor:
            return images + torch.from_numpy(1000.0 * about[:, 1]).float().view(-1, 1, 1, 1)

        whole = prepare(Batch.gather(slices, samples), (10, 10), self.MASK, CPU, bright)
        for row, kspace in enumerate(slices):
            image = centre_fit(magnitude(torch.from_numpy(kspace[None])), (10, 10)) + 1000.0 * samples[row, 1]
            torch.testing.assert_close(denormalize(whole.target, whole.scale)[row], image[0])

    def test_without_one_nothing_is_changed(self) -> None:
        batch = make_batch()
        same = prepare(batch, (16, 20), self.MASK, CPU, lambda images, _: images)
        assert_close(same, prepare(batch, (16, 20), self.MASK, CPU))
