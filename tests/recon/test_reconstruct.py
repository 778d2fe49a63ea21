"""Files in, images out: in the source's intensities and, for volumes, in their place."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from recon.inference import Physics
from recon.masks import MaskConfig, make_mask
from recon.model import Model, load_model
from recon.reconstruct import reconstruct_file, reconstruct_kspace, reconstruct_volume
from storage.errors import InputError
from storage.formats.nifti import read_volume
from storage.volumes import image_to_kspace
from tests.helpers import centre_of_mass, ellipsoid, make_generator, small_recipe, write_model, write_volume

CROP = (32, 32)


def make_model(ratio: float = 1.0, trained: bool = False, crop: tuple[int, int] = CROP) -> Model:
    recipe = small_recipe(data={"url": "unused", "crop": crop}, mask={"kind": "gaussian2d", "sampling_ratio": ratio})
    return Model(make_generator(recipe, trained=trained), Physics(crop, recipe.mask), recipe, {}, Path("model"))


def run(model: Model, source: Path, folder: Path) -> tuple[list[Path], float]:
    return reconstruct_file(model, source, folder, 4, lambda *_: None)


def images(num_slices: int, *size: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(3, 90, (num_slices, *size)).astype(np.float32)


class TestVolume:
    @pytest.mark.parametrize("crop", [(32, 32), (27, 31), (64, 48)])
    def test_with_everything_measured_the_volume_comes_back(self, tmp_path: Path, crop: tuple[int, int]) -> None:
        data = ellipsoid((27, 9, 25)) + 5
        affine = np.array([[0, 1.0, 0, -10], [-1.0, 0, 0, 4], [0, 0, 1.0, 7], [0, 0, 0, 1]])
        written, _ = run(make_model(crop=crop), write_volume(tmp_path / "head.nii.gz", data, affine), tmp_path / "out")
        assert [path.name for path in written] == ["head-reconstruction.nii.gz", "head-reconstruction.png"]
        back, source = nibabel.load(written[0]), read_volume(tmp_path / "head.nii.gz")
        values = np.asarray(back.dataobj)
        assert values.shape == (crop[1], source.data.shape[1], crop[0])
        assert values.dtype == np.float32
        checked = 0
        to_source = np.linalg.inv(source.affine) @ back.affine
        for place in np.ndindex(*values.shape):
            x, y, z = np.rint(to_source @ [*place, 1])[:3].astype(int)
            if all(0 <= at < size for at, size in zip((x, y, z), source.data.shape, strict=True)):
                assert abs(values[place] - (source.data[x, y, z] - 5)) < 1e-2, "air becomes 0"
                checked += 1
            else:
                assert abs(values[place]) < 1e-2
        inside = [min(size, wanted) for size, wanted in zip(source.data.shape, values.shape, strict=True)]
        assert checked == np.prod(inside)

    def test_a_mark_keeps_its_position_on_other_voxels(self, tmp_path: Path) -> None:
        shape, marked = (24, 20, 18), np.array([13, 12, 8])
        grid = np.meshgrid(*(np.arange(size) for size in shape), indexing="ij")
        distance = sum((axis - place) ** 2 for axis, place in zip(grid, marked, strict=True))
        blob = np.exp(-0.5 * distance).astype(np.float32) * (distance < 16)
        affine = np.array([[0, 0, 1.9, -3], [-1.2, 0, 0, 40], [0, 1.1, 0, 7], [0, 0, 0, 1]])
        source = write_volume(tmp_path / "blob.nii", blob, affine)
        written, _ = run(make_model(crop=(45, 64)), source, tmp_path / "out")
        back = nibabel.load(written[0])
        found = centre_of_mass(np.asarray(back.dataobj), back.affine)
        assert np.linalg.norm(found - (affine[:3, :3] @ marked + affine[:3, 3])) < 0.05

    def test_every_slice_is_undersampled_and_reconstructed(self, tmp_path: Path) -> None:
        volume = read_volume(write_volume(tmp_path / "head.nii", ellipsoid((40, 7, 36))))
        calls: list[tuple[int, int]] = []
        model = make_model(ratio=0.3, trained=True)
        result, _ = reconstruct_volume(model, volume, 4, lambda *call: calls.append(call))
        assert calls == [(4, 7), (7, 7)]
        assert result.images.shape == result.zero_filled.shape == (7, *CROP)
        assert result.target is not None
        middle = result.target[3]
        assert np.abs(middle - volume.data[::-1, 3, ::-1].T[2:34, 4:36]).max() < 1e-2
        assert np.abs(result.zero_filled[3] - middle).mean() > 1
        assert np.abs(result.images[3] - result.zero_filled[3]).mean() > 0.1
        mask = make_mask(model.physics.mask, CROP)
        span = np.ptp(middle)
        measured = image_to_kspace((middle - middle.min()) / span) * mask
        expected = np.abs(np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(measured), norm="ortho"))).clip(0, 1)
        assert np.abs(result.zero_filled[3] - (expected * span + middle.min())).max() < 1e-2


class TestKspace:
    @pytest.mark.parametrize("coils", [None, 1, 2])
    def test_an_untrained_model_returns_the_zero_filled_images(self, tmp_path: Path, coils: int | None) -> None:
        truth = images(5, 40, 36)
        kspace = image_to_kspace(truth)
        if coils:
            weights = np.array([1.0]) if coils == 1 else np.array([0.6, 0.8j])
            kspace = kspace[:, None] * weights[:, None, None]
        np.save(tmp_path / "scan.npy", kspace)
        written, _ = run(make_model(), tmp_path / "scan.npy", tmp_path / "out")
        assert [path.name for path in written] == ["scan-reconstruction.npy", "scan-reconstruction.png"]
        found = np.load(written[0])
        assert found.dtype == np.float32
        assert np.abs(found - truth[:, 4:36, 2:34]).max() < 1e-2
        assert written[1].read_bytes().startswith(b"\x89PNG")

    def test_undersampled_kspace_goes_through_the_generator(self) -> None:
        model = make_model(trained=True)
        mask = make_mask(MaskConfig(kind="gaussian2d", sampling_ratio=0.4), CROP)
        kspace = image_to_kspace(images(3, *CROP)) * mask
        result = reconstruct_kspace(model, kspace, 2, lambda *_: None)
        zero_filled = np.abs(np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, (1, 2)), norm="ortho"), (1, 2)))
        assert result.target is None
        assert np.abs(result.zero_filled - zero_filled).max() < 1e-2
        low, high = (edge(zero_filled, axis=(1, 2), keepdims=True) for edge in (np.min, np.max))
        with torch.no_grad():
            normal = torch.from_numpy(((zero_filled - low) / (high - low)).astype(np.float32))[:, None]
            expected = model.generator(normal)[:, 0].clamp(0, 1).numpy() * (high - low) + low
        assert np.abs(result.images - expected).max() < 1e-2
        assert np.abs(result.images - zero_filled).max() > 1


def save(path: Path, array: Any) -> None:
    np.save(path, array, allow_pickle=True)


def save_archive(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, kspace=image_to_kspace(images(2, *CROP)))


def bytes_of(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


GOOD = image_to_kspace(images(2, *CROP))
WITH_NAN = np.where(np.arange(32) == 5, np.nan, GOOD)
WRONG: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing": ("scan.npy", lambda path: None, "scan.npy: no such file"),
    "another kind": ("scan.dcm", lambda path: path.write_bytes(b"1"), "scan.dcm: expected a NIfTI volume"),
    "text": ("scan.npy", lambda path: path.write_text("hello"), "scan.npy: is not a .npy array"),
    "empty file": ("scan.npy", lambda path: path.write_bytes(b""), "scan.npy: is not a .npy array"),
    "pickle": ("scan.npy", lambda path: path.write_bytes(pickle.dumps([1, 2])), "scan.npy: is not a .npy array"),
    "objects": ("scan.npy", lambda path: save(path, np.array([{}, None])), "scan.npy: is not a .npy array"),
    "cut short": ("scan.npy", lambda path: path.write_bytes(bytes_of(GOOD)[:-9]), "scan.npy: is not a .npy array"),
    "archive": ("scan.npy", save_archive, "scan.npy: is an .npz archive"),
    "real": ("scan.npy", lambda path: save(path, GOOD.real), r"type float32: expected complex \(slice"),
    "two axes": ("scan.npy", lambda path: save(path, GOOD[0]), r"shape \(32, 32\).*expected complex \(slice"),
    "NaN": ("scan.npy", lambda path: save(path, WITH_NAN), "values that are not finite"),
    "no slices": ("scan.npy", lambda path: save(path, GOOD[:0]), r"shape \(0, 32, 32\) holds nothing"),
    "too small": ("scan.npy", lambda path: save(path, GOOD[:, :30]), "a crop of 32×32 does not fit into .* 30×32"),
    "bad volume": ("head.nii.gz", lambda path: path.write_text("hello"), "head.nii.gz: is not what its name says"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_sources_are_refused_and_nothing_is_written(tmp_path: Path, case: str) -> None:
    name, make, reason = WRONG[case]
    make(tmp_path / name)
    with pytest.raises(InputError, match=reason):
        run(make_model(), tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_pulled_model_reconstructs(tmp_path: Path) -> None:
    model = load_model(write_model(tmp_path / "model", small_recipe()))
    np.save(tmp_path / "scan.npy", GOOD)
    written, _ = run(model, tmp_path / "scan.npy", tmp_path / "out")
    assert np.load(written[0]).shape == (2, *CROP)
