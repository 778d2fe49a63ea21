"""fastMRI files give the k-space that h5py reads, one slice at a time, and nothing about the person."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from larmor.storage.formats import fastmri, hdf5
from larmor.storage.formats.centred_fft import to_image
from larmor.storage.formats.source import Source, SourceOptions, SourceRef
from larmor.storage.objects.errors import InputError

SECRETS = ("Hofmann^Erika", "19580417", "9c2f0ab77", "General Hospital", "1.3.12.2.1107", "DEV-4711")
HEADER = """<?xml version="1.0"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
 <subjectInformation><patientName>Hofmann^Erika</patientName><patientID>9c2f0ab77</patientID>
  <patientBirthdate>19580417</patientBirthdate></subjectInformation>
 <measurementInformation><measurementID>1.3.12.2.1107</measurementID><patientPosition>HFS</patientPosition>
 </measurementInformation>
 <acquisitionSystemInformation><systemVendor>SIEMENS</systemVendor><systemModel>Aera</systemModel>
  <systemFieldStrength_T>1.494</systemFieldStrength_T><receiverChannels>3</receiverChannels>
  <institutionName>General Hospital</institutionName><deviceID>DEV-4711</deviceID></acquisitionSystemInformation>
 <experimentalConditions><H1resonanceFrequency_Hz>63642459</H1resonanceFrequency_Hz></experimentalConditions>
 <encoding>
  <encodedSpace><matrixSize><x>{x}</x><y>{y}</y><z>1</z></matrixSize>
   <fieldOfView_mm><x>440</x><y>220</y><z>7.5</z></fieldOfView_mm></encodedSpace>
  <reconSpace><matrixSize><x>20</x><y>20</y><z>1</z></matrixSize>
   <fieldOfView_mm><x>220</x><y>220</y><z>5</z></fieldOfView_mm></reconSpace>
  <encodingLimits/><trajectory>cartesian</trajectory></encoding>
 <sequenceParameters><TR>2200</TR><TE>27</TE><flipAngle_deg>140</flipAngle_deg></sequenceParameters>
</ismrmrdHeader>"""


def random_kspace(*shape: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)


def write(path: Path, kspace: np.ndarray, header: str | None = None, **datasets: Any) -> Path:
    with h5py.File(path, "w") as file:
        file["kspace"] = kspace
        if header is not None:
            file["ismrmrd_header"] = header.encode()
        for name, values in datasets.items():
            file[name] = values
        file.attrs.update(acquisition="AXT2", max=1.0, norm=2.0, patient_id="9c2f0ab77")
    return path


def opened(path: Path) -> Source:
    return fastmri.open_source(SourceRef("fastmri", "a", "s", (str(path),)), [path], SourceOptions())


def test_multi_coil_slices_are_those_of_h5py(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", random_kspace(4, 3, 40, 22), HEADER.format(x=40, y=22))
    source = opened(path)
    assert hdf5.kind(path) == "fastmri"
    assert (source.num_slices, source.slice_shape, source.plane) == (4, (3, 40, 22), "acquired")
    assert source.voxel_size == pytest.approx((11, 10, 7.5))
    assert [source.position(index) for index in (0, 2)] == [0, 15]
    with h5py.File(path) as file:
        for index in source.kept_slices():
            axes = (-2, -1)
            expected = np.fft.fftshift(
                np.fft.ifft2(np.fft.ifftshift(file["kspace"][index], axes=axes), norm="ortho"), axes=axes
            )
            kspace = source.kspace(index)
            assert kspace.dtype == np.complex64
            np.testing.assert_array_equal(kspace, file["kspace"][index])
            assert np.linalg.norm(to_image(kspace) - expected) <= 1e-6 * np.linalg.norm(expected)
    source.close()


def test_single_coil_has_one_coil(tmp_path: Path) -> None:
    kspace = random_kspace(3, 16, 12)
    source = opened(write(tmp_path / "a.h5", kspace.astype(np.complex128)))
    assert source.slice_shape == (1, 16, 12)
    np.testing.assert_array_equal(source.kspace(2)[0], kspace[2])


@pytest.mark.parametrize("header", [None, "", "<a/>", "no xml", HEADER.format(x="many", y=22)])
def test_without_a_header_only_the_voxel_size_is_unknown(tmp_path: Path, header: str | None) -> None:
    source = opened(write(tmp_path / "a.h5", random_kspace(2, 1, 8, 8), header))
    assert source.voxel_size is None
    assert source.position(1) == 1
    assert source.about == {"acquisition": "AXT2"}


@pytest.mark.parametrize(
    ("stored", "expected"),
    [((40, 22), (11, 10)), ((40, 28), (11, 220 / 28)), ((20, 22), (11, 10)), ((80, 22), (5.5, 10))],
    ids=["as encoded", "zero-filled lines", "oversampling removed", "zero-filled readout"],
)
def test_voxel_size_of_what_is_stored(tmp_path: Path, stored: tuple[int, int], expected: tuple[float, float]) -> None:
    source = opened(write(tmp_path / "a.h5", random_kspace(1, 1, *stored), HEADER.format(x=40, y=22)))
    assert source.voxel_size == pytest.approx((*expected, 7.5))


def test_empty_slices_are_not_kept(tmp_path: Path) -> None:
    kspace = random_kspace(5, 2, 8, 8)
    kspace[[0, 3]] = 0
    assert opened(write(tmp_path / "a.h5", kspace)).kept_slices() == [1, 2, 4]


def test_empty_margins_are_kept_and_gaps_are_undersampling(tmp_path: Path) -> None:
    kspace = random_kspace(2, 2, 8, 16)
    kspace[..., :3] = 0
    kspace[..., 14:] = 0
    assert opened(write(tmp_path / "margins.h5", kspace)).kept_slices() == [0, 1]
    kspace[1, ..., 5:9:2] = 0
    with pytest.raises(InputError, match="slice 1 is undersampled: 2 of 11 k-space columns are empty"):
        opened(write(tmp_path / "gaps.h5", kspace)).kept_slices()


@pytest.mark.parametrize("mask", [np.ones(16), (np.arange(16) > 1) & (np.arange(16) < 15)])
def test_a_mask_that_leaves_nothing_out_between_is_no_undersampling(tmp_path: Path, mask: np.ndarray) -> None:
    kspace = random_kspace(2, 2, 8, 16) * mask
    source = opened(write(tmp_path / "a.h5", kspace, mask=mask))
    assert source.kept_slices() == [0, 1]
    np.testing.assert_array_equal(source.kspace(1), kspace[1].astype(np.complex64))


def test_residues_are_no_lines(tmp_path: Path) -> None:
    kspace = random_kspace(2, 2, 8, 16)
    kspace[..., 5:9:2] *= 1e-8
    with pytest.raises(InputError, match="slice 0 is undersampled: 2 of 16 k-space columns are empty"):
        opened(write(tmp_path / "a.h5", kspace)).kept_slices()


def test_nothing_of_the_person_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", random_kspace(1, 3, 40, 22), HEADER.format(x=40, y=22))
    source = opened(path)
    assert source.about == {
        "acquisition": "AXT2",
        "vendor": "SIEMENS",
        "model": "Aera",
        "field_strength_T": 1.494,
        "receiver_channels": 3,
        "repetition_time_ms": [2200.0],
        "echo_time_ms": [27.0],
        "flip_angle_deg": [140.0],
        "trajectory": "cartesian",
        "encoded_matrix": [40, 22, 1],
        "encoded_field_of_view_mm": [440.0, 220.0, 7.5],
        "recon_matrix": [20, 20, 1],
        "recon_field_of_view_mm": [220.0, 220.0, 5.0],
    }
    ref = SourceRef("fastmri", "a", "s", (str(path),))
    told = json.dumps([source.about, asdict(ref)]) + repr(source)
    assert not [secret for secret in SECRETS if secret in told]
    assert fastmri.subject_key(path) == "9c2f0ab77"


def test_a_value_of_the_wrong_type_is_neither_stored_nor_printed(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    header = HEADER.format(x=8, y=8).replace("<TR>2200</TR>", "<TR>Hofmann^Erika</TR>")
    source = opened(write(tmp_path / "a.h5", random_kspace(1, 1, 8, 8), header))
    assert "repetition_time_ms" not in source.about
    assert not [warning for warning in recwarn if "Erika" in str(warning.message)]


def test_one_slice_is_read_at_a_time(tmp_path: Path) -> None:
    kspace = random_kspace(40, 4, 64, 64)
    path = write(tmp_path / "a.h5", kspace)
    one = kspace[0].nbytes
    del kspace
    tracemalloc.start()
    source = opened(path)
    assert len(source.kept_slices()) == 40
    source.kspace(17)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * one


def test_the_slice_with_a_nan_is_named(tmp_path: Path) -> None:
    kspace = random_kspace(5, 2, 8, 8)
    kspace[3, 1, 2, 2] = np.nan
    source = opened(write(tmp_path / "a.h5", kspace))
    source.kspace(2)
    for action in (source.kept_slices, lambda: source.kspace(3)):
        with pytest.raises(InputError, match=r"a\.h5: slice 3 has 1 of 128 values"):
            action()


@pytest.mark.parametrize(
    ("kspace", "datasets", "message"),
    [
        (random_kspace(2, 8, 8), {"mask": np.arange(8) % 2}, "'mask' leaves out 24 of 64 .*k-space is undersampled"),
        (random_kspace(2, 8, 8), {"mask": np.eye(8) + np.eye(8)[::-1]}, "'mask' leaves out .*k-space is undersampled"),
        (random_kspace(2, 8, 8), {"mask": np.ones(7)}, r"'mask' has shape \(7,\); \(width,\), \(height, width\) or"),
        (random_kspace(2, 8, 8), {"mask": np.full(8, 0.5)}, "'mask' .*values other than 0 and 1"),
        (random_kspace(2, 8, 8), {"mask": np.zeros(8)}, "'mask' .*measures nothing"),
        (np.ones((2, 8, 8, 24), np.float32), {}, "holds float32; complex64 is expected"),
        (random_kspace(8, 8), {}, r"shape \(8, 8\)"),
        (random_kspace(2, 0, 8), {}, r"shape \(2, 0, 8\)"),
    ],
)
def test_what_is_not_fully_sampled_kspace_is_refused(
    tmp_path: Path, kspace: np.ndarray, datasets: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        opened(write(tmp_path / "a.h5", kspace, **datasets))


@pytest.mark.parametrize("read", [opened, hdf5.kind, fastmri.subject_key])
def test_files_that_are_not_whole_hdf5(tmp_path: Path, read: Any) -> None:
    whole = write(tmp_path / "whole.h5", random_kspace(4, 16, 16)).read_bytes()
    for name, content in (("cut.h5", whole[: len(whole) // 2]), ("text.h5", b"a" * 99), ("empty.h5", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            read(tmp_path / name)
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "missing.h5")


def test_other_hdf5_is_named_by_its_datasets(tmp_path: Path) -> None:
    path = tmp_path / "other.h5"
    with h5py.File(path, "w") as file:
        file["group/images"] = np.ones((3, 4))
    with pytest.raises(InputError, match=r"group/images \(3, 4\)"):
        hdf5.kind(path)
    with pytest.raises(InputError, match="no dataset 'kspace'"):
        opened(path)


def test_one_file_is_one_scan(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", random_kspace(1, 8, 8))
    with pytest.raises(InputError, match="2 files are given"):
        fastmri.open_source(SourceRef("fastmri", "a", "s", ()), [path, path], SourceOptions())
