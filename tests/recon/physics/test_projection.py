"""Projections and filtered back-projection against scikit-image's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.data import shepp_logan_phantom
from skimage.transform import iradon, radon, resize

from larmor.recon.physics.projection import back_project, project


def phantom(size: int) -> np.ndarray:
    return resize(shepp_logan_phantom(), (size, size)).astype(np.float64)


@pytest.mark.parametrize(("size", "num_angles"), [(64, 60), (49, 45)])
def test_projections_are_those_of_scikit_image(size: int, num_angles: int) -> None:
    image = phantom(size)
    expected = radon(image, np.arange(num_angles) * 180 / num_angles, circle=True).T
    found = project(torch.from_numpy(image).float()[None, None], num_angles)[0, 0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5 * expected.max())


@pytest.mark.parametrize(("size", "num_angles"), [(64, 60), (49, 45)])
def test_back_projection_is_that_of_scikit_image_with_a_hann_ramp(size: int, num_angles: int) -> None:
    sinogram = radon(phantom(size), np.arange(num_angles) * 180 / num_angles, circle=True)
    expected = iradon(sinogram, np.arange(num_angles) * 180 / num_angles, filter_name="hann", circle=True)
    found = back_project(torch.from_numpy(sinogram.T.copy()).float()[None])[0].numpy()
    along = np.arange(size) - size // 2
    inside = np.hypot(*np.meshgrid(along, along)) < size // 2 - 3  # at the rim scikit-image has one detector less
    np.testing.assert_allclose(found[inside], expected[inside], atol=0.01 * expected.max())


def test_channels_and_batches_are_projected_alone() -> None:
    images = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    whole = project(images, 20)
    alone = torch.stack([project(image[None, None], 20)[0, 0] for image in images.flatten(0, 1)])
    torch.testing.assert_close(whole.flatten(0, 1), alone)
    torch.testing.assert_close(back_project(alone), torch.cat([back_project(part[None]) for part in alone]))


def test_the_sum_of_a_projection_is_that_of_the_image() -> None:
    image = torch.zeros(1, 1, 40, 40)
    image[..., 15:25, 12:20] = 1.0
    sums = project(image, 30).sum(dim=-1)
    torch.testing.assert_close(sums, torch.full_like(sums, 80.0), rtol=0.02, atol=0)
