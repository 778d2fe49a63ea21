"""Maps that ESPIRiT finds are those that a phantom was made with."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from skimage.data import shepp_logan_phantom
from skimage.transform import resize

from larmor.storage.formats.centred_fft import to_image, to_kspace
from larmor.storage.formats.sensitivity import estimate_sensitivity_maps
from larmor.storage.objects.errors import InputError

SIZE, NUM_COILS = 80, 8


def known_maps() -> np.ndarray:
    """Eight coils around the object, smooth in magnitude and phase; squares sum to 1."""
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    angles = 2 * np.pi * np.arange(NUM_COILS)[:, None, None] / NUM_COILS
    distance = (y - 1.3 * np.sin(angles)) ** 2 + (x - 1.3 * np.cos(angles)) ** 2
    maps = np.exp(-distance / 1.5 + 1j * (angles + x * np.cos(angles) + y * np.sin(angles)))
    return maps / np.sqrt((np.abs(maps) ** 2).sum(axis=0))


@pytest.fixture(scope="module")
def scan() -> tuple[np.ndarray, np.ndarray]:
    """(image, k-space with noise at 0.1 % of the brightest pixel)."""
    pytest.importorskip("sigpy")
    image = resize(shepp_logan_phantom(), (SIZE, SIZE), anti_aliasing=True)
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(2, NUM_COILS, SIZE, SIZE)) * 1e-3
    return image, (to_kspace(known_maps() * image) + noise[0] + 1j * noise[1]).astype(np.complex64)


def test_maps_are_those_of_the_coils(scan: tuple[np.ndarray, np.ndarray], capfd: pytest.CaptureFixture[str]) -> None:
    image, kspace = scan
    before = kspace.copy()
    maps = estimate_sensitivity_maps(kspace)
    assert capfd.readouterr() == ("", ""), "no progress bar"
    np.testing.assert_array_equal(kspace, before)
    assert (maps.shape, maps.dtype) == (kspace.shape, np.complex64)

    squares = (np.abs(maps) ** 2).sum(axis=0)
    assert (np.isclose(squares, 1, atol=1e-5) | (squares == 0)).all()
    inside = image > 0.05
    assert (squares[inside] > 0).mean() > 0.99
    # cosine of the angle between the coil vectors of a pixel: 1 if they agree up to a phase
    agreement = np.abs((maps.conj() * known_maps()).sum(axis=0))[inside & (squares > 0)]
    assert agreement.min() > 0.99
    assert np.median(agreement) > 0.9995


def test_the_combined_image_is_the_true_one(scan: tuple[np.ndarray, np.ndarray]) -> None:
    image, kspace = scan
    maps = estimate_sensitivity_maps(kspace)
    combined = np.abs((maps.conj() * to_image(kspace)).sum(axis=0))
    assert np.corrcoef(combined.ravel(), image.ravel())[0, 1] > 0.99


def test_maps_are_the_same_every_time(scan: tuple[np.ndarray, np.ndarray]) -> None:
    kspace = scan[1][:3, 20:60, 20:60]
    np.testing.assert_array_equal(estimate_sensitivity_maps(kspace, 16), estimate_sensitivity_maps(kspace, 16))


def test_a_first_coil_that_sees_nothing_does_no_harm(scan: tuple[np.ndarray, np.ndarray]) -> None:
    image, kspace = scan[0], scan[1].copy()
    kspace[0] = 0
    maps = estimate_sensitivity_maps(kspace)
    squares = (np.abs(maps) ** 2).sum(axis=0)
    assert (squares[image > 0.05] > 0).mean() > 0.99
    assert np.abs(maps[0]).max() < 1e-5


def test_a_single_coil_sees_everything_alike() -> None:
    kspace = np.ones((1, 4, 5), np.complex64)
    maps = estimate_sensitivity_maps(kspace)
    assert maps.dtype == np.complex64
    np.testing.assert_array_equal(maps, np.ones((1, 4, 5)))


@pytest.mark.parametrize(
    ("kspace", "width", "message"),
    [
        (np.ones((4, 5)), 24, "coil, height, width"),
        (np.full((2, 9, 9), np.nan), 24, "not finite"),
        (np.zeros((2, 9, 9)), 24, "is zero"),
        (np.ones((2, 5, 9)), 24, "region is 5 wide"),
        (np.ones((2, 9, 9)), 4, "region is 4 wide"),
    ],
)
def test_bad_kspace(kspace: np.ndarray, width: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        estimate_sensitivity_maps(kspace, width)


def test_without_sigpy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sigpy.mri.app", None)
    with pytest.raises(InputError, match=r"larmor-mri\[maps\]"):
        estimate_sensitivity_maps(np.ones((2, 9, 9), np.complex64))
