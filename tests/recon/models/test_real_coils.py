"""A real brain of 13 coils, as measured: all coils together, without a sensitivity map."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import requests
import torch
from pypi_simple import PYPI_SIMPLE_ENDPOINT, NoSuchProjectError, PyPISimple

from larmor.recon.inference.inference import network_method, reconstruct_sample
from larmor.recon.networks.networks import build_generator
from larmor.recon.physics.coils import coils_of_scan
from larmor.recon.physics.feed import to_device
from larmor.recon.physics.fourier import fft2c
from larmor.recon.physics.samples import Sample, prepare
from larmor.recon.physics.sense import channels_to_complex
from larmor.recon.recipe.recipe import Recipe
from larmor.recon.training.gan import Gan
from larmor.storage.formats.centred_fft import to_image, to_kspace
from larmor.storage.loading.loader import Batch
from larmor.storage.objects.file_digest import file_digest
from tests.helpers import small_recipe

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
MEMBER = "test/VFA_cart_smalltest.h5"  # of pyqmri 1.3.0 (Apache-2.0), which is not installed: nothing of it is run
DIGEST = "336d6557ebb2ab7e7d750422992b07b76278d6795d4b0de6513c28e23d10a573"
SIZE = (224, 224)


@pytest.fixture(scope="module")
def brain(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray]:
    """Centred k-space (flip angle, coil, height, width) of one axial slice, and its combined images (flip angle,
    height, width). Skips where the package cannot be had; a file that was fetched is kept with pytest's cache."""
    cache: Any = request.config.cache
    path = Path(cache.mkdir("brain13")) / "brain13.h5"
    if not path.is_file():
        try:
            fetch(path)
        except (requests.RequestException, NoSuchProjectError, StopIteration, OSError) as error:
            pytest.skip(f"pyqmri 1.3.0 cannot be had from the package index: {error}")
    assert file_digest(path) == DIGEST
    with h5py.File(path) as file:
        measured = (file["real_dat"][()] + 1j * file["imag_dat"][()])[:, :, 0]
        images = file["images"][()][:, 0]
    return to_kspace(np.fft.ifft2(measured, norm="ortho")).astype(np.complex64), images


def fetch(path: Path) -> None:
    """The one member of the archive, whose digest the index states."""
    archive = path.with_suffix(".tar.gz")
    with PyPISimple(os.environ.get("PIP_INDEX_URL", PYPI_SIMPLE_ENDPOINT)) as index:
        page = index.get_project_page("pyqmri", timeout=(15, 60))
        listed = next(each for each in page.packages if (each.version, each.package_type) == ("1.3.0", "sdist"))
        index.download_package(listed, archive, timeout=(15, 60))
    with tarfile.open(archive) as packed:
        member = packed.extractfile(f"pyqmri-1.3.0/{MEMBER}")
        assert member is not None
        with path.with_suffix(".part").open("wb") as file:
            shutil.copyfileobj(member, file)
    archive.unlink()
    path.with_suffix(".part").replace(path)


def recipe_of(num_coils: int) -> Recipe:
    return small_recipe(
        system="deepcomplexmri",
        data={"url": "unused", "crop": SIZE},
        mask={"kind": "uniform1d", "sampling_ratio": 0.34, "center_fraction": 0.13},
        signal={"num_coils": num_coils},
        generator={"width": 8, "cascades": 3},
        generator_optimizer={"learning_rate": 3e-3},
        training={"global_batch_size": 1, "backend": "plain", "zero_stage": 0},
    )


def sample_of(kspace: np.ndarray, recipe: Recipe, flips: list[int]) -> Sample:
    """The slice at some flip angles, as the system sees it."""
    scan = coils_of_scan(lambda places: [kspace[place] for place in places], len(kspace), recipe.signal)
    batch = Batch.of(kspace[flips], np.array([(0, flip) for flip in flips]))
    return prepare(scan(to_device(batch, CPU)), SIZE, recipe.mask, CPU, signal=recipe.signal)


def test_the_images_are_those_that_were_measured(brain: tuple[np.ndarray, np.ndarray]) -> None:
    kspace, images = brain
    assert kspace.shape == (10, 13, *SIZE)
    seen, combined = np.linalg.norm(to_image(kspace), axis=1), np.abs(images)
    assert np.corrcoef(seen.ravel(), combined.ravel())[0, 1] > 0.95


@pytest.mark.parametrize("num_coils", [16, 13, 12, 8])
def test_compressed_coils_hold_the_brain(brain: tuple[np.ndarray, np.ndarray], num_coils: int) -> None:
    kspace, _ = brain
    sample = sample_of(kspace, recipe_of(num_coils), [4])
    assert sample.target.shape == (1, 2 * num_coils, *SIZE)
    wanted = np.linalg.norm(to_image(kspace[4]), axis=0)
    found = torch.linalg.vector_norm(sample.target, dim=1)[0].numpy() * float(sample.scale[0, 1])
    error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
    assert error < (1e-5 if num_coils >= 13 else 0.05)


def test_it_learns_from_flip_angles_and_keeps_every_measured_point(brain: tuple[np.ndarray, np.ndarray]) -> None:
    """Trained on eight flip angles of the slice, rated at another one: the anatomy is known, the contrast is not."""
    kspace, _ = brain
    torch.set_num_threads(1)
    recipe = recipe_of(12)
    gan = Gan(recipe, CPU)
    for step in range(60):
        gan.set_learning_rates(step)
        gan.train_generator([sample_of(kspace, recipe, [step % 8])])
    sample = sample_of(kspace, recipe, [9])
    generator = build_generator(recipe.generator, recipe.signal.channels).eval()
    generator.load_state_dict(gan.weights())
    with torch.no_grad():
        found = fft2c(channels_to_complex(generator(*sample.measurement)))
    torch.testing.assert_close(found * sample.mask, sample.kspace, rtol=0, atol=1e-4)
    rated = reconstruct_sample({"deepcomplexmri": network_method(generator)}, sample, (0,))
    errors = {name: np.mean((image - rated.target) ** 2) for name, image in rated.images.items()}
    assert errors["deepcomplexmri"] < 0.8 * errors["zero_filled"]
