"""Files in, images out: in the source's intensities and, for volumes, in their place."""

from __future__ import annotations

import dataclasses
import io
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import ismrmrd
import nibabel
import numpy as np
import pytest
import torch

from larmor.recon.inference.inference import Physics
from larmor.recon.models.measured import calibrated_maps
from larmor.recon.models.model import Model, at_ratio, load_model
from larmor.recon.models.reconstruct import ScanReport, check_places, describe_speed, reconstruct_scans
from larmor.recon.models.scans import open_scans
from larmor.recon.networks.networks import build_generator
from larmor.recon.physics.masks import make_mask
from larmor.recon.recipe.mask_config import MaskConfig
from larmor.storage.conversion.convert import ConvertOptions, convert
from larmor.storage.formats.bart import write_cfl
from larmor.storage.formats.nifti import read_volume
from larmor.storage.formats.recognise import find_sources
from larmor.storage.formats.volumes import image_to_kspace
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore
from tests.helpers import (
    centre_of_mass,
    coil_scan,
    ellipsoid,
    make_generator,
    small_recipe,
    write_coil_splits,
    write_heads,
    write_model,
    write_volume,
)
from tests.storage.formats import test_mrd

CROP = (32, 32)


def make_model(
    ratio: Any = 1.0, trained: bool = False, crop: tuple[int, int] = CROP, per_slice: bool = False, **sections: Any
) -> Model:
    mask = {"kind": "gaussian2d", "sampling_ratio": ratio, "per_slice": per_slice}
    recipe = small_recipe(data={"url": "unused", "crop": crop}, mask=mask, **sections)
    torch.manual_seed(0)
    generator = build_generator(recipe.generator, recipe.signal.channels).eval() if sections else None
    physics = Physics(crop, recipe.mask, recipe.signal)
    return Model(generator or make_generator(recipe, trained=trained), physics, recipe, {}, Path("model"))


def run_all(
    model: Model, source: str | Path, folder: Path, batch_size: int = 4, **options: Any
) -> tuple[list[ScanReport], list[tuple[str, int, int]]]:
    """The reports, and the calls of the progress."""
    calls: list[tuple[str, int, int]] = []
    with open_scans(str(source), model.physics, **options) as scans:
        return reconstruct_scans(model, scans, folder, batch_size, lambda *call: calls.append(call)), calls


def run(model: Model, source: Path, folder: Path, **options: Any) -> list[Path]:
    """The files of the only scan. Raises `InputError` if it is bad."""
    (report,) = run_all(model, source, folder, **options)[0]
    if report.problem:
        raise InputError(report.problem)
    return list(report.files)


def data_of(path: Path) -> np.ndarray:
    """(slice, height, width), of a NIfTI volume as of an array."""
    if path.suffix == ".npy":
        return np.load(path)
    image: Any = nibabel.load(path)
    return np.asarray(image.dataobj).transpose(1, 2, 0)[:, ::-1, ::-1]


def images(num_slices: int, *size: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(3, 90, (num_slices, *size)).astype(np.float32)


def lesion(size: tuple[int, int]) -> np.ndarray:
    """A grey disc with one small bright spot of 1.0."""
    rows, columns = np.meshgrid(*(np.linspace(-1, 1, length) for length in size), indexing="ij")
    image = np.where(rows**2 + columns**2 < 0.8, 0.3, 0).astype(np.float32)
    image[size[0] // 3, size[1] // 3] = 1.0
    return image


ALL_COILS: dict[str, Any] = {
    "system": "deepcomplexmri",
    "signal": {"num_coils": 4},
    "generator": {"width": 4, "cascades": 2},
}


def zero_filled_complex(kspace: np.ndarray) -> np.ndarray:
    """(…, height, width) complex: the images of k-space."""
    return np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, (-2, -1)), norm="ortho"), (-2, -1))


def zero_filled_of(kspace: np.ndarray) -> np.ndarray:
    return np.abs(zero_filled_complex(kspace))


class Oracle(torch.nn.Module):
    """Returns the truth (height, width), in units of the zero-filled image, whatever it is given."""

    def __init__(self, truth: np.ndarray) -> None:
        super().__init__()
        self.truth = torch.nn.Parameter(torch.from_numpy(truth.astype(np.float32)))

    def forward(self, zero_filled: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return self.truth.expand_as(zero_filled)


class TestVolume:
    @pytest.mark.parametrize("crop", [(32, 32), (27, 31), (64, 48)])
    @pytest.mark.parametrize("air", [0, 5, 5000, -300])
    def test_with_everything_measured_the_volume_comes_back(
        self, tmp_path: Path, crop: tuple[int, int], air: float
    ) -> None:
        data = ellipsoid((27, 9, 25)) + air
        affine = np.array([[0, 1.0, 0, -10], [-1.0, 0, 0, 4], [0, 0, 1.0, 7], [0, 0, 0, 1]])
        written = run(make_model(crop=crop), write_volume(tmp_path / "head.nii.gz", data, affine), tmp_path / "out")
        assert [path.name for path in written] == [
            f"head-reconstruction.{suffix}" for suffix in ("nii.gz", "png", "html")
        ]
        back: Any = nibabel.load(written[0])
        source = read_volume(tmp_path / "head.nii.gz")
        values = np.asarray(back.dataobj)
        assert values.shape == (crop[1], source.data.shape[1], crop[0])
        assert values.dtype == np.float32
        checked = 0
        to_source = np.linalg.inv(source.affine) @ back.affine
        for place in np.ndindex(*values.shape):
            x, y, z = np.rint(to_source @ [*place, 1])[:3].astype(int)
            if all(0 <= at < size for at, size in zip((x, y, z), source.data.shape, strict=True)):
                assert abs(values[place] - source.data[x, y, z]) < 1e-2
                checked += 1
            else:
                assert abs(values[place] - air) < 1e-2
        inside = [min(size, wanted) for size, wanted in zip(source.data.shape, values.shape, strict=True)]
        assert checked == np.prod(inside)

    def test_a_mark_keeps_its_position_on_other_voxels(self, tmp_path: Path) -> None:
        shape, marked = (24, 20, 18), np.array([13, 12, 8])
        grid = np.meshgrid(*(np.arange(size) for size in shape), indexing="ij")
        distance = sum((axis - place) ** 2 for axis, place in zip(grid, marked, strict=True))
        blob = np.exp(-0.5 * distance).astype(np.float32) * (distance < 16)
        affine = np.array([[0, 0, 1.9, -3], [-1.2, 0, 0, 40], [0, 1.1, 0, 7], [0, 0, 0, 1]])
        source = write_volume(tmp_path / "blob.nii", blob, affine)
        written = run(make_model(crop=(45, 64)), source, tmp_path / "out")
        back: Any = nibabel.load(written[0])
        found = centre_of_mass(np.asarray(back.dataobj), back.affine)
        assert np.linalg.norm(found - (affine[:3, :3] @ marked + affine[:3, 3])) < 0.05

    def test_every_slice_is_undersampled_and_reconstructed(self, tmp_path: Path) -> None:
        path = write_volume(tmp_path / "head.nii", ellipsoid((40, 7, 36)))
        volume, untrained = read_volume(path), make_model(ratio=0.3)
        (report,), calls = run_all(untrained, path, tmp_path / "out")
        assert calls == [("slices", 4, 7), ("slices", 7, 7), ("scans", 1, 1)]
        assert report.num_slices == 7
        assert report.generator_seconds > 0
        found = data_of(report.files[0])
        middle = volume.data[::-1, 3, ::-1].T[2:34, 4:36]
        assert np.abs(found[3] - middle).mean() > 1
        measured = image_to_kspace(middle) * make_mask(untrained.physics.mask, CROP)
        expected = np.abs(np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(measured), norm="ortho")))
        assert np.abs(found[3] - expected).max() < 1e-2
        changed = data_of(run(make_model(ratio=0.3, trained=True), path, tmp_path / "trained")[0])
        assert np.abs(changed[3] - found[3]).mean() > 0.1


class TestImages:
    @pytest.mark.parametrize("air", [0, -300, 5000])
    def test_arrays_come_back_in_their_own_intensities(self, tmp_path: Path, air: float) -> None:
        truth = images(3, *CROP) + air
        np.save(tmp_path / "images.npy", truth)
        found = np.load(run(make_model(), tmp_path / "images.npy", tmp_path / "out")[0])
        np.testing.assert_allclose(found, truth, atol=1e-2)


class TestKspace:
    @pytest.mark.parametrize("coils", [None, 1, 2])
    def test_an_untrained_model_returns_the_zero_filled_images(self, tmp_path: Path, coils: int | None) -> None:
        truth = images(5, 40, 36)
        kspace = image_to_kspace(truth)
        if coils:
            weights = np.array([1.0]) if coils == 1 else np.array([0.6, 0.8j])
            kspace = kspace[:, None] * weights[:, None, None]
        np.save(tmp_path / "scan.npy", kspace)
        written = run(make_model(), tmp_path / "scan.npy", tmp_path / "out")
        assert [path.name for path in written] == [f"scan-reconstruction.{suffix}" for suffix in ("npy", "png", "html")]
        found = np.load(written[0])
        assert found.dtype == np.float32
        assert np.abs(found - truth[:, 4:36, 2:34]).max() < 1e-2
        assert written[1].read_bytes().startswith(b"\x89PNG")

    def test_undersampled_kspace_goes_through_the_generator(self, tmp_path: Path) -> None:
        model = make_model(trained=True)
        mask = make_mask(MaskConfig(kind="gaussian2d", sampling_ratio=0.4), CROP)
        kspace = image_to_kspace(images(3, *CROP)) * mask
        np.save(tmp_path / "scan.npy", kspace)
        found = np.load(run(model, tmp_path / "scan.npy", tmp_path / "out")[0])
        zero_filled = np.abs(np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, (1, 2)), norm="ortho"), (1, 2)))
        high = zero_filled.max(axis=(1, 2), keepdims=True)
        with torch.no_grad():
            scaled = torch.from_numpy((zero_filled / high).astype(np.float32))[:, None]
            expected = model.generator(scaled)[:, 0].clamp_min(0).numpy() * high
        assert np.abs(found - expected).max() < 1e-2
        assert np.abs(found - zero_filled).max() > 1

    @pytest.mark.parametrize("consistency", ["none", "hard"])
    @pytest.mark.parametrize("ratio", [0.1, 0.3])
    def test_a_highlight_is_not_cut(self, tmp_path: Path, ratio: float, consistency: str) -> None:
        """A small lesion is much fainter in the zero-filled image; a model that returns the truth writes it all."""
        truth = lesion(CROP)
        mask = make_mask(MaskConfig(kind="gaussian2d", sampling_ratio=ratio), CROP)
        kspace = image_to_kspace(truth) * mask
        high = zero_filled_of(kspace).max()
        assert high < 0.9 * truth.max()
        np.save(tmp_path / "scan.npy", kspace)
        model = make_model(generator={"width": 4, "data_consistency": consistency})
        model = dataclasses.replace(model, generator=Oracle(truth / high))
        found = np.load(run(model, tmp_path / "scan.npy", tmp_path / "out")[0])[0]
        np.testing.assert_allclose(found, truth, atol=1e-5)

    @pytest.mark.parametrize("name", ["scan.h5", "scan.mrd", "scan.cfl", "scan.npz"])
    def test_every_format_gives_what_npy_gives(self, tmp_path: Path, name: str) -> None:
        """Undersampled in columns, two coils, one of them faint; without a fully sampled copy."""
        columns = np.flatnonzero(make_mask(MaskConfig(kind="gaussian1d", sampling_ratio=0.5), CROP)[0])
        full = image_to_kspace(images(3, *CROP))[:, None] * np.array([1, 0.1j], np.complex64)[:, None, None]
        kspace = np.zeros_like(full)
        kspace[..., columns] = full[..., columns]
        np.save(tmp_path / "same.npy", kspace)
        path = tmp_path / "in" / name
        path.parent.mkdir()
        if name == "scan.h5":
            with h5py.File(path, "w") as file:
                file["kspace"], file["mask"] = kspace, (kspace[0, 0] != 0).any(axis=0)
        elif name == "scan.mrd":
            write_mrd(path, kspace, columns)
        elif name == "scan.cfl":
            stored = np.zeros((32, 32, 1, 2, *[1] * 9, 3), np.complex64)
            stored.reshape(32, 32, 2, 3)[:] = kspace.transpose(2, 3, 1, 0)
            write_cfl(path.with_suffix(""), stored)
        else:
            np.savez(path, kspace=kspace)
        model = make_model(trained=True)
        expected = np.load(run(model, tmp_path / "same.npy", tmp_path / "out")[0])
        found = np.load(run(model, path, tmp_path / "out")[0])
        np.testing.assert_allclose(found, expected, atol=1e-3)

    @pytest.mark.parametrize("axes", ["width", "height, width", "slice, height, width"])
    def test_the_mask_of_an_hdf5_file_says_what_was_measured(self, tmp_path: Path, axes: str) -> None:
        kspace = image_to_kspace(images(3, *CROP))[:, None]
        mask = make_mask(MaskConfig(kind="gaussian1d", sampling_ratio=0.4), CROP)
        stored = {"width": mask[0], "height, width": mask.astype("u1"), "slice, height, width": np.stack([mask] * 3)}
        with h5py.File(tmp_path / "scan.h5", "w") as file:
            file["kspace"], file["mask"] = kspace, stored[axes]
        np.save(tmp_path / "same.npy", kspace * mask)
        model = make_model(trained=True)
        expected = np.load(run(model, tmp_path / "same.npy", tmp_path / "out")[0])
        found = np.load(run(model, tmp_path / "scan.h5", tmp_path / "out")[0])
        np.testing.assert_allclose(found, expected, atol=1e-3)
        with pytest.raises(InputError, match=r"scan\.h5: its 'mask' leaves out .*k-space is undersampled"):
            run(model, tmp_path / "scan.h5", tmp_path / "out", undersample=True)

    def test_a_mask_that_is_given_says_what_was_measured(self, tmp_path: Path) -> None:
        kspace = image_to_kspace(images(3, *CROP))
        mask = make_mask(MaskConfig(kind="gaussian2d", sampling_ratio=0.4), CROP)
        np.save(tmp_path / "mask.npy", mask)
        np.save(tmp_path / "whole.npy", kspace)
        np.save(tmp_path / "same.npy", kspace * mask)
        with h5py.File(tmp_path / "scan.h5", "w") as file:
            file["kspace"], file["mask"] = kspace, np.ones(32)
        model, given = make_model(trained=True), str(tmp_path / "mask.npy")
        expected = np.load(run(model, tmp_path / "same.npy", tmp_path / "out")[0])
        for name in ("whole.npy", "scan.h5"):
            found = np.load(run(model, tmp_path / name, tmp_path / "out", mask=given)[0])
            np.testing.assert_allclose(found, expected, atol=1e-3)

    def test_where_a_mask_says_nothing_it_is_refused(self, tmp_path: Path) -> None:
        np.save(tmp_path / "mask.npy", np.ones((16, 32), bool))
        np.save(tmp_path / "images.npy", images(2, *CROP))
        np.save(tmp_path / "scan.npy", GOOD)
        (head,) = write_heads(tmp_path, ["ann"])
        model, given = make_model(), str(tmp_path / "mask.npy")
        with pytest.raises(InputError, match=r"mask .* is 16×32, but the images are 32×32"):
            run(model, tmp_path / "scan.npy", tmp_path / "out", mask=given)
        for source in (tmp_path / "images.npy", head):
            with pytest.raises(InputError, match="holds whole images; --mask says what of measured k-space"):
                run(model, source, tmp_path / "out", mask=given)
        with pytest.raises(InputError, match=r"--mask .*--undersample"):
            run(model, tmp_path / "scan.npy", tmp_path / "out", mask=given, undersample=True)

    def test_a_residue_was_not_measured(self, tmp_path: Path) -> None:
        """What single-precision transforms leave of zeros must not tell data consistency that zeros were measured."""
        mask = make_mask(MaskConfig(kind="gaussian1d", sampling_ratio=0.4), CROP)
        kspace = image_to_kspace(images(3, *CROP)) * mask
        rng = np.random.default_rng(0)
        residue = 6e-9 * np.abs(kspace).max() * rng.standard_normal((*kspace.shape, 2)).astype(np.float32) @ [1, 1j]
        np.save(tmp_path / "clean.npy", kspace)
        np.save(tmp_path / "residue.npy", (kspace + residue).astype(np.complex64))
        model = make_model(generator={"width": 4, "data_consistency": "hard"})
        for name, weight in model.generator.named_parameters():
            if name.endswith("last.weight"):
                torch.nn.init.normal_(weight, std=0.02)
        clean, found = (
            np.load(run(model, tmp_path / f"{name}.npy", tmp_path / "out")[0]) for name in ("clean", "residue")
        )
        np.testing.assert_allclose(found, clean, atol=1e-2)
        with pytest.raises(InputError, match=r"residue\.npy: slice 0 is undersampled"):
            run(model, tmp_path / "residue.npy", tmp_path / "out", undersample=True)

    @pytest.mark.parametrize("size", [(30, 32), (20, 27), (16, 40), (33, 31)])
    def test_slices_of_any_size_are_fitted_as_in_training(self, tmp_path: Path, size: tuple[int, int]) -> None:
        truth = images(2, *size)
        np.save(tmp_path / "kspace.npy", image_to_kspace(truth))
        np.save(tmp_path / "images.npy", truth)
        model = make_model(trained=True)
        expected = np.load(run(model, tmp_path / "images.npy", tmp_path / "out")[0])
        found = np.load(run(model, tmp_path / "kspace.npy", tmp_path / "out")[0])
        assert found.shape == (2, *CROP)
        np.testing.assert_allclose(found, expected, atol=1e-2)

    def test_whole_kspace_can_be_undersampled_with_the_models_mask(self, tmp_path: Path) -> None:
        truth = images(3, *CROP)
        np.save(tmp_path / "kspace.npy", image_to_kspace(truth))
        np.save(tmp_path / "images.npy", truth)
        model = make_model(ratio=0.3, trained=True)
        found = np.load(run(model, tmp_path / "kspace.npy", tmp_path / "out", undersample=True)[0])
        np.testing.assert_allclose(found, np.load(run(model, tmp_path / "images.npy", tmp_path / "out")[0]), atol=1e-2)
        assert np.abs(found - truth).mean() > 1
        half = image_to_kspace(truth)
        half[:, :, ::2] = 0
        np.save(tmp_path / "half.npy", half)
        with pytest.raises(InputError, match=r"half.npy: slice 0 is undersampled"):
            run(model, tmp_path / "half.npy", tmp_path / "out", undersample=True)

    @pytest.mark.parametrize("mode", ["sense", "sense hard", "rss"])
    def test_complex_models_take_several_coils(self, tmp_path: Path, mode: str) -> None:
        kspace, _ = coil_scan(4, 2, *CROP)
        np.save(tmp_path / "scan.npy", kspace)
        consistency = "hard" if mode.endswith("hard") else "none"
        signal = {"mode": "complex", "coils": mode.split()[0]}
        model = make_model(signal=signal, generator={"width": 4, "data_consistency": consistency})
        found = np.load(run(model, tmp_path / "scan.npy", tmp_path / "out")[0])
        truth = np.linalg.norm(
            np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, (2, 3)), norm="ortho"), (2, 3)), axis=1
        )
        assert np.abs(found - truth).max() < 0.01 * truth.max(), "an untrained model leaves whole k-space as it is"

    @pytest.mark.parametrize("coils", [2, 4, 6])
    def test_a_model_of_all_coils_needs_no_maps_and_no_certain_number(self, tmp_path: Path, coils: int) -> None:
        """Four are trained for: two more are compressed, two less are missing; measured points stay as they are."""
        kspace, _ = coil_scan(coils, 5, *CROP)
        np.save(tmp_path / "scan.npy", kspace)
        model = make_model(ratio=0.4, **ALL_COILS)
        truth = np.linalg.norm(zero_filled_complex(kspace), axis=1)
        found = np.load(run(model, tmp_path / "scan.npy", tmp_path / "out")[0])
        assert np.abs(found - truth).mean() < 0.01 * truth.max(), "whole k-space comes back"
        half = kspace * make_mask(model.physics.mask, CROP)
        np.save(tmp_path / "half.npy", half)
        measured = np.load(run(model, tmp_path / "half.npy", tmp_path / "out")[0])
        whole = np.load(run(model, tmp_path / "scan.npy", tmp_path / "out", undersample=True)[0])
        np.testing.assert_allclose(measured, whole, atol=0.01 * truth.max())
        seen = np.linalg.norm(zero_filled_complex(half), axis=1)
        assert np.abs(measured - seen).mean() < 0.01 * truth.max(), "untrained: nearly the zero-filled images"

    def test_a_model_of_all_coils_refuses_images(self, tmp_path: Path) -> None:
        (head,) = write_heads(tmp_path, ["ann"])
        np.save(tmp_path / "real.npy", images(2, *CROP))
        for path in (head, tmp_path / "real.npy"):
            with pytest.raises(InputError, match=r"holds magnitude images, which have no phase.*larmor simulate coils"):
                run(make_model(**ALL_COILS), path, tmp_path / "out")

    def test_maps_come_from_the_measured_centre(self) -> None:
        kspace, maps = coil_scan(4, 1, 48, 40)
        mask = make_mask(MaskConfig(kind="gaussian1d", sampling_ratio=0.5, center_fraction=0.3), (48, 40))
        found = calibrated_maps(kspace[0] * mask)
        inside = np.linalg.norm(found, axis=0) > 0
        overlap = np.abs((found.conj() * maps[0]).sum(axis=0))[inside]
        assert inside.mean() > 0.4
        assert np.median(overlap) > 0.99
        thin = np.zeros_like(mask)
        thin[:, 18:23] = True
        with pytest.raises(InputError, match=r"centre of the k-space is 5 wide.* 4 coils need 6"):
            calibrated_maps(kspace[0] * thin)

    def test_a_magnitude_model_that_puts_points_back_takes_one_coil(self, tmp_path: Path) -> None:
        kspace, _ = coil_scan(2, 3, *CROP)
        np.save(tmp_path / "scan.npy", kspace)
        model = make_model(generator={"width": 4, "data_consistency": "hard"})
        with pytest.raises(InputError, match=r"k-space of 2 coils: this model .* takes one coil"):
            run(model, tmp_path / "scan.npy", tmp_path / "out")
        np.save(tmp_path / "one.npy", kspace[:, :1])
        run(model, tmp_path / "one.npy", tmp_path / "out")


def write_mrd(path: Path, kspace: np.ndarray, columns: np.ndarray) -> None:
    """The lines `columns` of (slice, coil, height, width) k-space."""
    header = test_mrd.xml((kspace.shape[2], kspace.shape[3], 1))
    lines = (
        line
        for number, one in enumerate(kspace)
        for line in test_mrd.lines_of(one, slice=number)
        if line.idx.kspace_encode_step_1 in columns
    )
    with ismrmrd.Dataset(path, "dataset", mode="a") as file:
        file.write_xml_header(header.encode())
        for line in lines:
            file.append_acquisition(line)


class TestManyRatios:
    """A model that was trained for a range of sampling ratios."""

    def test_each_slice_has_its_own_ratio_and_the_report_says_so_or_one_is_chosen(self, tmp_path: Path) -> None:
        path = write_heads(tmp_path / "heads", ["ann"])[0]
        many = make_model(ratio={"min": 0.2, "max": 0.6}, trained=True)
        (report,), _ = run_all(many, path, tmp_path / "many")
        assert report.notes == (
            "undersampled at 20 to 60 %, a ratio drawn for each slice; --ratio chooses one for all",
        )
        one = at_ratio(many, 0.3)
        (chosen,), _ = run_all(one, path, tmp_path / "one")
        assert chosen.notes == ()
        alone = data_of(run(make_model(ratio=0.3, trained=True), path, tmp_path / "alone")[0])
        assert np.array_equal(data_of(chosen.files[0]), alone)
        assert not np.array_equal(data_of(report.files[0]), alone)

    def test_of_measured_kspace_nothing_is_said(self, tmp_path: Path) -> None:
        scan = coil_scan(1, 3, *CROP)[0] * make_mask(MaskConfig(kind="gaussian2d", sampling_ratio=0.4), CROP)
        np.save(tmp_path / "scan.npy", scan.astype(np.complex64))
        (report,), _ = run_all(make_model(ratio={"min": 0.2, "max": 0.6}), tmp_path / "scan.npy", tmp_path / "out")
        assert not any("ratio" in note for note in report.notes)
        assert report.files

    @pytest.mark.parametrize("wrong", [0, -0.1, 1.5, float("nan")])
    def test_a_ratio_that_is_none_is_refused(self, wrong: float) -> None:
        with pytest.raises(InputError, match="give a number above 0, up to 1"):
            at_ratio(make_model(), wrong)


class TestDataSet:
    @pytest.mark.parametrize("per_slice", [False, True])
    def test_a_split_gives_the_images_of_its_files(self, tmp_path: Path, per_slice: bool) -> None:
        heads, url = write_heads(tmp_path / "heads", ["ann", "ben", "cid", "dan"]), str(tmp_path / "data")
        held_out = {"validation": ["ben"], "test": ["cid", "dan"]}
        convert(find_sources([str(tmp_path / "heads")]), url, ConvertOptions((64, 64), 0.05, held_out))
        model = make_model(ratio=0.3, trained=True, per_slice=per_slice)
        reports, _ = run_all(model, url, tmp_path / "from-data")
        assert [report.name for report in reports] == ["cid", "dan"]
        for report, path in zip(reports, heads[2:], strict=True):
            whole = data_of(run(model, path, tmp_path / "from-file")[0])
            found = np.load(report.files[0])
            assert 4 < len(found) < len(whole), "slices without a head are not stored"
            first = next(place for place in range(len(whole)) if np.abs(whole[place] - found[0]).max() < 1e-3)
            np.testing.assert_allclose(found, whole[first : first + len(found)], atol=1e-3)
        (one,), _ = run_all(model, url, tmp_path / "from-data", split="validation")
        assert one.name == "ben"

    def test_a_data_set_remembers_what_was_taken_off(self, tmp_path: Path) -> None:
        for seed, (name, air) in enumerate({"ann": 0, "ben": 0, "cid": -70, "dan": 5000}.items()):
            write_volume(tmp_path / "heads" / f"{name}.nii.gz", ellipsoid((28, 14, 30), seed) + air)
        url, options = str(tmp_path / "data"), {"validation": ["ben"], "test": ["cid", "dan"]}
        convert(find_sources([str(tmp_path / "heads")]), url, ConvertOptions((64, 64), 0.05, options))
        reports, _ = run_all(make_model(), url, tmp_path / "out")
        for report, air in zip(reports, (-70, 5000), strict=True):
            found = np.load(report.files[0])
            assert np.isclose(found.min(), air, atol=1e-2)
            assert found.max() > air + 100

    def test_stored_maps_are_used(self, tmp_path: Path) -> None:
        scan = coil_scan(4, 3, *CROP)
        write_coil_splits(ObjectStore(str(tmp_path / "data")), {"test": [scan]})
        signal = {"mode": "complex", "coils": "sense"}
        model = make_model(ratio=0.4, signal=signal, generator={"width": 4, "data_consistency": "hard"})
        found = np.load(run(model, tmp_path / "data", tmp_path / "out")[0])
        truth = np.linalg.norm(
            np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(scan[0], (2, 3)), norm="ortho"), (2, 3)), axis=1
        )
        assert np.abs(found - truth).mean() < 0.1 * truth.max()

    @pytest.mark.parametrize("coils", [3, 7])
    def test_all_coils_of_a_volume_are_those_of_its_file(self, tmp_path: Path, coils: int) -> None:
        scan = coil_scan(coils, 6, *CROP)
        write_coil_splits(ObjectStore(str(tmp_path / "data")), {"test": [scan]})
        np.save(tmp_path / "scan.npy", scan[0])
        model = make_model(ratio=0.4, **ALL_COILS)
        found = np.load(run(model, tmp_path / "data", tmp_path / "out")[0])
        file = np.load(run(model, tmp_path / "scan.npy", tmp_path / "out", undersample=True)[0])
        np.testing.assert_allclose(found, file, rtol=1e-4, atol=1e-3)

    def test_what_is_no_data_set_has_no_split(self, tmp_path: Path) -> None:
        write_heads(tmp_path, ["ann"])
        with pytest.raises(InputError, match=r"--split test: .* is not a data set"):
            run_all(make_model(), tmp_path, tmp_path / "out", split="test")


class TestManyScans:
    def test_a_model_that_gives_no_numbers_writes_no_images(self, tmp_path: Path) -> None:
        write_heads(tmp_path / "in", ["ann"])
        model = make_model(trained=True)
        with torch.no_grad():
            next(model.generator.parameters()).fill_(torch.nan)
        (report,), _ = run_all(model, tmp_path / "in", tmp_path / "out")
        assert "ann: the model gives values that are not finite for slice 0" in report.problem
        assert not (tmp_path / "out").exists()

    def test_a_bad_scan_does_not_stop_the_others(self, tmp_path: Path) -> None:
        write_heads(tmp_path / "in" / "deep", ["ann", "cid"])
        (tmp_path / "in" / "ben.nii.gz").write_text("hello")
        np.save(tmp_path / "in" / "bob.npy", np.where(np.arange(5)[:, None, None] == 3, np.nan, images(5, *CROP)))
        reports, calls = run_all(make_model(), tmp_path / "in", tmp_path / "out")
        assert [(report.name, bool(report.problem)) for report in reports] == [
            ("ann", False),
            ("ben", True),
            ("bob", True),
            ("cid", False),
        ]
        assert "ben.nii.gz: does not match its suffix" in reports[1].problem
        assert "bob.npy: slice 3 has pixels that are not finite" in reports[2].problem
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
            f"{name}-reconstruction.{suffix}" for name in ("ann", "cid") for suffix in ("html", "nii.gz", "png")
        ], "nothing half-written, nothing hidden"
        assert [call for call in calls if call[0] == "scans"] == [("scans", number, 4) for number in range(1, 5)]
        assert "28 slices of 2 scan(s)" in describe_speed(reports, 2.0, "cpu")
        assert "14.0 slices/s" in describe_speed(reports, 2.0, "cpu")

    def test_patterns_name_scans_too(self, tmp_path: Path) -> None:
        write_heads(tmp_path, ["ann", "cid"])
        (report,), _ = run_all(make_model(), tmp_path / "a*.nii.gz", tmp_path / "out")
        assert report.name == "ann"

    def test_the_batch_size_does_not_change_the_images(self, tmp_path: Path) -> None:
        (head,) = write_heads(tmp_path, ["ann"])
        model = make_model(ratio=0.3, trained=True)
        found = [data_of(run(model, head, tmp_path / str(size), batch_size=size)[0]) for size in (1, 5, 64)]
        np.testing.assert_allclose(found[1], found[0], atol=1e-3)
        np.testing.assert_allclose(found[2], found[0], atol=1e-3)

    def test_memory_does_not_grow_with_the_scan(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The slices of a scan are never together in memory. (Pictures are slow to trace.)"""
        monkeypatch.setattr("larmor.recon.models.pictures.contact_sheet", lambda *arguments: arguments[-1].touch())
        model, peaks = make_model(), []
        for num_slices in (16, 16, 160):  # the first imports and fills caches
            np.save(tmp_path / "scan.npy", image_to_kspace(images(num_slices, 64, 64)))
            tracemalloc.start()
            run(model, tmp_path / "scan.npy", tmp_path / "out")
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert peaks[2] < peaks[1] + 2**19
        assert 160 * 64 * 64 * 4 > 4 * 2**19, "the images alone are more"

    def test_results_do_not_go_among_the_scans(self, tmp_path: Path) -> None:
        write_heads(tmp_path / "in", ["ann"])
        for folder in (tmp_path / "in", tmp_path / "in" / "results"):
            with pytest.raises(InputError, match=r"lies in .*, whose scans are read; choose a folder outside"):
                check_places(str(tmp_path / "in"), folder)
        check_places(str(tmp_path / "in" / "ann.nii.gz"), tmp_path / "in" / "results")
        check_places(str(tmp_path / "in"), tmp_path / "in2")


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
NOT_AN_ARRAY = "scan.npy: is not a complete array of numbers"
WRONG: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing": ("scan.npy", lambda path: None, "scan.npy: no such file"),
    "another kind": ("scan.txt", lambda path: path.write_bytes(b"1"), r"scan.txt: not a file of a known kind.*\.nii"),
    "text": ("scan.npy", lambda path: path.write_text("hello"), NOT_AN_ARRAY),
    "empty file": ("scan.npy", lambda path: path.write_bytes(b""), NOT_AN_ARRAY),
    "pickle": ("scan.npy", lambda path: path.write_bytes(pickle.dumps([1, 2])), NOT_AN_ARRAY),
    "objects": ("scan.npy", lambda path: save(path, np.array([{}, None])), NOT_AN_ARRAY),
    "cut short": ("scan.npy", lambda path: path.write_bytes(bytes_of(GOOD)[:-9]), NOT_AN_ARRAY),
    "archive": ("scan.npy", save_archive, "scan.npy: is an .npz archive"),
    "one axis": ("scan.npy", lambda path: save(path, GOOD[0, 0]), r"scan.npy: has shape \(32,\).* is expected"),
    "NaN": ("scan.npy", lambda path: save(path, WITH_NAN), "scan.npy: slice 0 has 32 of 1024 values that are not fin"),
    "no slices": ("scan.npy", lambda path: save(path, GOOD[:0]), r"scan.npy: has shape \(0, 32, 32\)"),
    "bad volume": ("head.nii.gz", lambda path: path.write_text("hello"), "head.nii.gz: does not match its suffix"),
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
    written = run(model, tmp_path / "scan.npy", tmp_path / "out")
    assert np.load(written[0]).shape == (2, *CROP)


@pytest.mark.parametrize("name", ["../../planted", "deeper/planted"])
def test_an_array_whose_name_is_no_files_is_refused(tmp_path: Path, name: str) -> None:
    """Results are named for the arrays of an archive, and lie in the folder that was asked for."""
    arrays: dict[str, Any] = {name: np.ones((2, 8, 8)), "good": np.ones((2, 8, 8))}
    np.savez(tmp_path / "scan.npz", **arrays)
    with (
        pytest.raises(InputError, match=f"has a volume 'scan-{name}', which cannot be the name of a file"),
        open_scans(str(tmp_path / "scan.npz"), make_model().physics),
    ):
        pass
