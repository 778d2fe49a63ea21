"""k-space that is laid out otherwise than it should be is noticed by where its energy lies; none that is right is."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from larmor.storage.formats import arrays, fastmri
from larmor.storage.formats.centred_fft import to_kspace
from larmor.storage.formats.source import SourceOptions, SourceRef
from tests.helpers import coil_scan, ellipsoid

SIZE = (48, 40)
AXES = "does not lie as that of"
CORNER = "lies at the ends of its {}, but zero frequency is expected"
VOLUME = "as in 3-D k-space"


@pytest.fixture(scope="module")
def scan() -> np.ndarray:
    """(slice, coil, height, width)."""
    return coil_scan(6, 36, *SIZE)[0]


def notes(folder: Path, kspace: np.ndarray) -> str:
    np.save(folder / "scan.npy", kspace)
    ref = SourceRef("arrays", "scan", "scan", (str(folder / "scan.npy"),))
    return " ".join(arrays.open_source(ref, [folder / "scan.npy"], SourceOptions()).notes)


@pytest.mark.parametrize("undersampled", [False, True])
def test_kspace_as_it_should_be_gets_no_note(tmp_path: Path, scan: np.ndarray, undersampled: bool) -> None:
    if undersampled:
        columns = np.random.default_rng(0).random(SIZE[1]) < 0.3
        columns[16:24] = True
        scan = scan * columns
    for right in (scan, scan[:, 0], scan[0, 0], scan[18, 0], scan[:3], scan[..., 4:], np.roll(scan, 3, axis=-2)):
        assert notes(tmp_path, right) == ""


@pytest.mark.parametrize("shape", [(40, 48, 40), (40, 6, 48, 40), (48, 40)])
def test_noise_and_nothing_tell_nothing(tmp_path: Path, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    noise = (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)
    for kspace in (noise, np.zeros_like(noise), noise * np.nan):
        assert notes(tmp_path, kspace) == ""


@pytest.mark.parametrize(("axes", "named"), [((-2, -1), "height and width"), ((-2,), "height"), ((-1,), "width")])
def test_zero_frequency_in_the_corner(tmp_path: Path, scan: np.ndarray, axes: tuple[int, ...], named: str) -> None:
    shifted = np.fft.ifftshift(scan, axes=axes)
    for wrong in (shifted, shifted[:, 0], shifted[18, 0]):
        assert CORNER.format(named) in notes(tmp_path, wrong)
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["kspace"] = shifted
    ref = SourceRef("fastmri", "scan", "scan", (str(tmp_path / "scan.h5"),))
    source = fastmri.open_source(ref, [tmp_path / "scan.h5"], SourceOptions())
    assert CORNER.format(named) in " ".join(source.notes)


@pytest.mark.parametrize("corner", [False, True])
@pytest.mark.parametrize(
    "order", [(1, 2, 0), (2, 0, 1), (2, 1, 0), (2, 3, 1, 0), (2, 3, 0, 1), (1, 2, 3, 0), (0, 2, 3, 1)]
)
def test_axes_in_another_order(tmp_path: Path, scan: np.ndarray, order: tuple[int, ...], corner: bool) -> None:
    kspace = np.fft.ifftshift(scan, axes=(-2, -1)) if corner else scan
    wrong = (kspace if len(order) == 4 else kspace[:, 0]).transpose(order)
    assert AXES in notes(tmp_path, wrong)


def test_an_encoded_volume_is_no_stack_of_slices(tmp_path: Path) -> None:
    image = ellipsoid((36, *SIZE))
    assert VOLUME in notes(tmp_path, to_kspace(image, axes=(0, 1, 2)))
    assert notes(tmp_path, to_kspace(image)) == ""
