"""A series in time becomes one volume for each slice, whose stored slices are the frames, in the native plane."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from larmor.storage.conversion.convert import ConvertOptions, convert
from larmor.storage.dataset.dataset import read_root, read_split
from larmor.storage.formats.centred_fft import to_image
from larmor.storage.formats.nifti_series import list_parts, read_series
from larmor.storage.formats.recognise import find_sources, open_source
from larmor.storage.formats.source import SourceOptions
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore
from tests.helpers import ellipsoid, write_volume

SHAPE, FRAMES = (20, 24, 5), 7
AXIAL = np.diag([2.0, 2.0, 4.0, 1.0])
NATIVE = SourceOptions((28, 28), 0.05, plane="native")


def series_data(seed: int = 0) -> np.ndarray:
    """(20, 24, 5, 7) int16 whose brightness changes from frame to frame."""
    brightness = 1 + 0.1 * np.arange(FRAMES)
    return np.rint(ellipsoid(SHAPE, seed)[..., None] * brightness).astype(np.int16)


def write_series(path: Path, affine: np.ndarray = AXIAL, seed: int = 0, unit: str = "msec") -> Path:
    image: Any = nibabel.Nifti1Image(series_data(seed), affine)
    image.header.set_xyzt_units("mm", unit)
    image.header["pixdim"][4] = 1160 if unit == "msec" else 1.16
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


def images_of(path: Path, options: SourceOptions = NATIVE) -> dict[str, np.ndarray]:
    """The images (frame, height, width) of each scan that is found, with what was taken off."""
    found = {}
    for ref in find_sources([str(path)], plane="native"):
        with open_source(ref, options) as source:
            kspace = np.concatenate([source.kspace(index) for index in range(source.num_slices)])
            found[ref.name] = to_image(kspace).real + source.offset
    return found


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_each_slice_is_a_volume_of_frames(tmp_path: Path, suffix: str) -> None:
    path = write_series(tmp_path / f"sub-a_bold{suffix}")
    refs = find_sources([str(path)], plane="native")
    assert [ref.name for ref in refs] == [f"sub-a_bold_slice{number:03d}" for number in range(5)]
    assert {ref.subject for ref in refs} == {"sub-a"}
    found, data = images_of(path), series_data()
    for number in range(5):
        frames = found[f"sub-a_bold_slice{number:03d}"][:, 2:26, 4:24]
        # anterior at the top, the subject's right at the left
        expected = data[::-1, ::-1, number].transpose(2, 1, 0)
        np.testing.assert_allclose(frames, expected, atol=1e-3)


def test_the_plane_is_the_files_whatever_way_its_axes_run(tmp_path: Path) -> None:
    """Stored right to left and superior to inferior, slices are numbered as in the file and shown the same way up."""
    straight = images_of(write_series(tmp_path / "a.nii"))
    data = series_data()[::-1, :, ::-1]
    affine = AXIAL @ np.array([[-1, 0, 0, 19], [0, 1, 0, 0], [0, 0, -1, 4], [0, 0, 0, 1.0]])
    turned = images_of(write_volume(tmp_path / "b.nii", data, affine))
    for number in range(5):
        np.testing.assert_allclose(turned[f"b_slice{number:03d}"], straight[f"a_slice{4 - number:03d}"], atol=1e-3)


def test_sagittal_slices_stay_sagittal(tmp_path: Path) -> None:
    affine = np.array([[0, 0, 4.0, 0], [2.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 0, 1]])
    found, data = images_of(write_series(tmp_path / "a.nii", affine)), series_data()
    np.testing.assert_allclose(found["a_slice001"][:, 2:26, 4:24], data[::-1, ::-1, 1].transpose(2, 1, 0), atol=1e-3)


def test_a_volume_is_cut_in_its_native_plane(tmp_path: Path) -> None:
    path = write_volume(tmp_path / "head.nii", series_data()[..., 0], AXIAL)
    (images,) = images_of(path).values()
    assert len(images) == 5
    np.testing.assert_allclose(images[3, 2:26, 4:24], series_data()[::-1, ::-1, 3, 0].T, atol=1e-3)


@pytest.mark.parametrize(("unit", "note"), [("msec", ""), ("sec", ""), ("unknown", "no unit of time")])
def test_positions_are_seconds_and_all_frames_are_kept(tmp_path: Path, unit: str, note: str) -> None:
    (_, ref, *_) = find_sources([str(write_series(tmp_path / "a.nii.gz", unit=unit))], plane="native")
    with open_source(ref, NATIVE) as source:
        np.testing.assert_allclose([source.position(index) for index in range(3)], [0, 1.16, 2.32], rtol=1e-6)
        assert list(source.kept_slices()) == list(range(FRAMES))
        assert any(note in line for line in source.notes) or not note
    with open_source(ref, SourceOptions((28, 28), 0.9, plane="native")) as source:
        assert list(source.kept_slices()) == [], "all or none"


def test_conversion_stores_a_volume_for_each_slice(tmp_path: Path) -> None:
    paths = [write_series(tmp_path / "scans" / f"{name}.nii.gz", seed=seed) for seed, name in enumerate("abc")]
    options = ConvertOptions((28, 28), 0.05, {"validation": ["b"], "test": ["c"]}, plane="native", num_threads=2)
    convert(find_sources([str(path) for path in paths], plane="native"), str(tmp_path / "data"), options)
    store = ObjectStore(tmp_path / "data")
    info = read_split(store, "train")
    assert info.subjects == ("a",)
    assert set(info.volumes) <= {f"a_slice{number:03d}" for number in range(5)}
    for volume in info.volumes:
        indices = info.slices_of(volume)
        assert np.array_equal(np.diff(indices), np.ones(FRAMES - 1)), "side by side"
        assert info.index[indices].tolist() == list(range(FRAMES))
    about = {source["volume"]: source for source in read_root(store)["sources"]}
    assert about["a_slice002"]["plane"] == "native"
    assert about["a_slice002"]["frames"] == FRAMES
    assert about["a_slice002"]["voxel_size_mm"] == [2, 2, 4]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_series_that_is_cut_in_the_middle_is_refused_once(tmp_path: Path, suffix: str) -> None:
    path = write_series(tmp_path / f"a{suffix}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    others = [str(write_series(tmp_path / f"{name}.nii.gz")) for name in "bc"]
    refs = find_sources([str(path), *others], plane="native")
    options = ConvertOptions((28, 28), 0.05, {"validation": ["b"]}, plane="native")
    with pytest.raises(InputError, match=r"cannot be read to its end .*truncated\?") as raised:
        convert(refs, str(tmp_path / "data"), options)
    assert str(raised.value).count("truncated?") == 1


def test_a_series_needs_the_native_plane(tmp_path: Path) -> None:
    (ref,) = find_sources([str(write_series(tmp_path / "a.nii"))])
    with pytest.raises(InputError, match=r"one 3-D volume is expected; .*--plane native"), open_source(ref, NATIVE):
        pass


def test_a_file_that_is_no_nifti_is_named_when_it_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(b"nothing of the kind"))
    with pytest.raises(InputError, match="no NIfTI header"):
        list_parts(str(path))
    (ref,) = find_sources([str(path)], plane="native")
    with pytest.raises(InputError, match=r"a.nii.gz: does not match its suffix"), open_source(ref, NATIVE):
        pass


def test_large_series_are_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from larmor.storage.formats import volume_array

    path = write_series(tmp_path / "a.nii.gz")
    whole = read_series(path).frames
    monkeypatch.setattr(volume_array, "MAX_VOLUME_IN_MEMORY", 0)
    np.testing.assert_array_equal(read_series(path).frames, whole)
