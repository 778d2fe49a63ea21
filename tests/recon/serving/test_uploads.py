"""A volume that is sent whole comes back as the file that `larmor reconstruct` writes of it."""

from __future__ import annotations

import dataclasses
import gzip
import io
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from larmor.recon.models.model import Model
from larmor.recon.serving.uploads import LARGEST_VOXELS, Upload, answer
from larmor.storage.formats.volumes import image_to_kspace
from tests.helpers import write_heads
from tests.recon.models.test_reconstruct import images, make_model, run
from tests.recon.serving.test_serving import HEADER, slices
from tests.storage.formats.test_mrd import write


@pytest.fixture(scope="module")
def model() -> Model:
    return make_model(0.4, trained=True)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("uploads")
    np.save(folder / "scan.npy", image_to_kspace(images(3, 32, 32)))
    return {
        ".nii.gz": write_heads(folder, ["ann"])[0],
        ".npy": folder / "scan.npy",
        ".mrd": write(folder / "scan.mrd", HEADER, slices(2)),
    }


def array_of(content: bytes) -> np.ndarray:
    if content[:2] == b"\x1f\x8b":
        image: Any = nibabel.Nifti1Image.from_bytes(gzip.decompress(content))
        return np.asarray(image.dataobj)
    return np.load(io.BytesIO(content))


@pytest.mark.parametrize("suffix", [".nii.gz", ".npy", ".mrd"])
def test_the_answer_is_the_file(model: Model, files: dict[str, Path], tmp_path: Path, suffix: str) -> None:
    found = answer(model, Upload(files[suffix].read_bytes(), suffix), 4)
    assert found.status == 200, found.content
    expected = run(model, files[suffix], tmp_path, whole=True)[0]
    assert np.array_equal(array_of(found.content), array_of(expected.read_bytes()))
    assert found.name == ("volume-reconstruction.nii.gz" if suffix == ".nii.gz" else "volume-reconstruction.npy")
    assert found.num_slices > 1


def test_format_and_undersampling_are_chosen(model: Model, files: dict[str, Path]) -> None:
    content = files[".npy"].read_bytes()
    plain, undersampled = (answer(model, Upload(content, ".npy", "h5", undersample=more), 4) for more in (False, True))
    assert plain.content[:4] == undersampled.content[:4] == b"\x89HDF"
    assert plain.content != undersampled.content


def wrong(name: str, files: dict[str, Path]) -> Upload:
    volume = Upload(files[".nii.gz"].read_bytes(), ".nii.gz")
    huge: Any = nibabel.Nifti1Image(np.zeros((1, 1, 1), np.uint8), np.eye(4))
    huge.header.set_data_shape((1024, 1024, LARGEST_VOXELS // 2**20 + 1))
    objects = io.BytesIO()
    np.save(objects, np.array([{}]), allow_pickle=True)
    return {
        "suffix": dataclasses.replace(volume, suffix="/../x.nii"),
        "garbage": Upload(b"GET / HTTP/1.1" * 99, ".nii.gz"),
        "cut": Upload(volume.content[:-500], ".nii.gz"),
        "pickle": Upload(objects.getvalue(), ".npy"),
        "format": dataclasses.replace(volume, format="png"),
        "dicom": dataclasses.replace(volume, format="dicom"),
        "view": dataclasses.replace(volume, field_of_view="half"),
        "huge": Upload(gzip.compress(huge.header.binaryblock + bytes(4)), ".nii.gz"),
        "image": dataclasses.replace(volume, suffix=".h5"),
    }[name]


@pytest.mark.parametrize(
    ("name", "status", "sentence"),
    [
        ("suffix", 415, "send one of .npy, .nii"),
        ("garbage", 400, "volume.nii.gz"),
        ("cut", 400, "volume.nii.gz"),
        ("pickle", 400, "volume.npy"),
        ("format", 400, "choose one of"),
        ("dicom", 400, "the answer is one file"),
        ("view", 400, "choose"),
        ("huge", 400, f"at most {LARGEST_VOXELS} are taken"),
        ("image", 400, "volume.h5"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    model: Model, files: dict[str, Path], name: str, status: int, sentence: str
) -> None:
    found = answer(model, wrong(name, files), 4)
    text = found.content.decode()
    assert (found.status, text.count("\n")) == (status, 1), text
    assert sentence in text
    assert "/tmp" not in text
