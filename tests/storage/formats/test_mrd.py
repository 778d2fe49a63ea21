"""ISMRMRD lines come together to the k-space that the `ismrmrd` reader and a hand-made reconstruction give."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import ismrmrd
import numpy as np
import pytest

from larmor.storage.formats import hdf5, mrd, partitions
from larmor.storage.formats.centred_fft import to_image
from larmor.storage.formats.mrd_lines import padded
from larmor.storage.formats.source import Source, SourceOptions, SourceRef
from larmor.storage.objects.errors import InputError

GENERATOR = "ismrmrd_generate_cartesian_shepp_logan"
SECRETS = ("Hofmann^Erika", "19580417", "9c2f0ab77", "General Hospital", "1.3.12.2.1107", "DEV-4711", "Erika brain")
HEADER = """<?xml version="1.0"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
 <subjectInformation><patientName>Hofmann^Erika</patientName><patientID>9c2f0ab77</patientID>
  <patientBirthdate>19580417</patientBirthdate></subjectInformation>
 <measurementInformation><measurementID>1.3.12.2.1107</measurementID><patientPosition>HFS</patientPosition>
  <protocolName>Erika brain</protocolName></measurementInformation>
 <acquisitionSystemInformation><systemFieldStrength_T>2.89</systemFieldStrength_T>
  <institutionName>General Hospital</institutionName><deviceID>DEV-4711</deviceID></acquisitionSystemInformation>
 <experimentalConditions><H1resonanceFrequency_Hz>123000000</H1resonanceFrequency_Hz></experimentalConditions>
 {encodings}
 <sequenceParameters><TR>500</TR><TE>12</TE><sequence_type>Flash</sequence_type></sequenceParameters>
</ismrmrdHeader>"""
PARALLEL = """<parallelImaging><accelerationFactor><kspace_encoding_step_1>3</kspace_encoding_step_1>
 <kspace_encoding_step_2>1</kspace_encoding_step_2></accelerationFactor><calibrationMode>{}</calibrationMode>
 </parallelImaging>"""
ENCODING = """<encoding>
  <encodedSpace><matrixSize><x>{x}</x><y>{y}</y><z>{z}</z></matrixSize>
   <fieldOfView_mm><x>400</x><y>200</y><z>6</z></fieldOfView_mm></encodedSpace>
  <reconSpace><matrixSize><x>16</x><y>{y}</y><z>{z}</z></matrixSize>
   <fieldOfView_mm><x>200</x><y>200</y><z>6</z></fieldOfView_mm></reconSpace>
  <encodingLimits>{limits}</encodingLimits><trajectory>{trajectory}</trajectory></encoding>"""
LIMIT = """<kspace_encoding_step_{n}><minimum>{0}</minimum><maximum>{1}</maximum><center>{2}</center>
 </kspace_encoding_step_{n}>"""

Limits = tuple[int, int, int]


def xml(
    matrix: tuple[int, int, int],
    step1: Limits | None = None,
    step2: Limits | None = None,
    trajectory: str = "cartesian",
    num_encodings: int = 1,
) -> str:
    limits = "".join(LIMIT.format(*limit, n=n) for n, limit in ((1, step1), (2, step2)) if limit)
    x, y, z = matrix
    return HEADER.format(encodings=num_encodings * ENCODING.format(x=x, y=y, z=z, limits=limits, trajectory=trajectory))


def random_kspace(*shape: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)


def line(values: np.ndarray, flags: Sequence[int] = (), center: int | None = None, **fields: Any) -> Any:
    """One acquisition of `values` (coil, sample); `fields` are counters, or header fields if they are named so."""
    acquisition = ismrmrd.Acquisition.from_array(np.ascontiguousarray(values, np.complex64))
    acquisition.center_sample = values.shape[1] // 2 if center is None else center
    for name, value in fields.items():
        owner = acquisition.idx if hasattr(acquisition.idx, name) else acquisition
        setattr(owner, name, value)
    for flag in flags:
        acquisition.setFlag(flag)
    return acquisition


def lines_of(kspace: np.ndarray, **fields: Any) -> Iterator[Any]:
    """The lines of (coil, height, width) k-space in which every line was measured."""
    for y in range(kspace.shape[-1]):
        yield line(kspace[..., y], kspace_encode_step_1=y, **fields)


def write(path: Path, header: str, acquisitions: Any, group: str = "dataset") -> Path:
    with ismrmrd.Dataset(path, group, mode="a") as dataset:
        dataset.write_xml_header(header.encode())
        for acquisition in acquisitions:
            dataset.append_acquisition(acquisition)
    return path


def opened(path: Path, part: str = "") -> Source:
    return mrd.open_source(SourceRef("mrd", "a", "s", (str(path),), part), [path], SourceOptions())


def by_hand(path: Path, shape: tuple[int, ...], first_sample: int, first_line: int) -> np.ndarray:
    """(slice, coil, height, width) images by the package's own reader and numpy's transform."""
    total, count = np.zeros(shape, np.complex128), np.zeros((shape[0], shape[-1]))
    with ismrmrd.Dataset(path, mode="r") as dataset:
        for number in range(dataset.number_of_acquisitions()):
            found = dataset.read_acquisition(number)
            if found.isFlagSet(ismrmrd.ACQ_IS_NOISE_MEASUREMENT):
                continue
            y = first_line + found.idx.kspace_encode_step_1
            total[found.idx.slice, :, first_sample : first_sample + found.number_of_samples, y] += found.data
            count[found.idx.slice, y] += 1
    axes = (-2, -1)
    kspace = total / np.maximum(count, 1)[:, None, None]
    return np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, axes=axes), norm="ortho"), axes=axes)


def images(source: Source) -> np.ndarray:
    return np.stack([to_image(source.kspace(index)) for index in range(source.num_slices)])


def close_to(found: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.linalg.norm(found - expected) <= 1e-6 * np.linalg.norm(expected))


def test_averages_slices_and_an_asymmetric_echo(tmp_path: Path) -> None:
    """24 of 32 samples, of which sample 8 is the centre; 15 of 20 lines, of which line 5 is the centre."""
    kspace = random_kspace(2, 2, 3, 24, 15)  # average, slice, coil, sample, line
    acquisitions = [line(random_kspace(3, 24), [ismrmrd.ACQ_IS_NOISE_MEASUREMENT])]
    for y in reversed(range(15)):
        for slice_ in (1, 0):
            for average in (0, 1):
                place: dict[str, Any] = {"kspace_encode_step_1": y, "slice": slice_, "average": average}
                place |= {"position": (0, 0, 7.0 * slice_ - 30), "slice_dir": (0, 0, 1)}
                acquisitions.append(line(kspace[average, slice_, ..., y], center=8, **place))
    path = write(tmp_path / "a.h5", xml((32, 20, 1), (0, 14, 5)), acquisitions)

    assert hdf5.kind(path) == "mrd"
    assert mrd.list_parts(path) == [""]
    source = opened(path)
    assert (source.num_slices, source.slice_shape, source.plane) == (2, (3, 32, 20), "acquired")
    assert source.voxel_size == pytest.approx((12.5, 10, 6))
    assert [source.position(index) for index in range(2)] == [0, 7]
    assert source.kept_slices() == [0, 1]
    assert close_to(images(source), by_hand(path, (2, 3, 32, 20), first_sample=8, first_line=5))
    np.testing.assert_allclose(source.kspace(1)[:, 16, 10], kspace[:, 1, :, 8, 5].mean(axis=0), rtol=1e-6)
    source.close()


@pytest.mark.skipif(shutil.which(GENERATOR) is None, reason="the ISMRMRD tools are not installed")
@pytest.mark.parametrize("options", ["-m 32", "-m 32 -C", "-m 32 -k", "-m 30 -O 1"])
def test_the_formats_own_phantom(tmp_path: Path, options: str) -> None:
    path = tmp_path / "a.h5"
    arguments = [GENERATOR, *options.split(), "-c", "4", "-n", "0", "-o", str(path)]
    subprocess.run(arguments, check=True, capture_output=True)
    with h5py.File(path) as file:
        truth = file["dataset/coil_images"][()]
    expected = (truth["real"] + 1j * truth["imag"]).reshape(truth.shape[-3:]).swapaxes(1, 2)
    source = opened(path)
    assert close_to(images(source)[0], expected)
    source.close()


@pytest.mark.skipif(shutil.which(GENERATOR) is None, reason="the ISMRMRD tools are not installed")
def test_the_formats_own_phantom_undersampled_and_repeated(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    command = [GENERATOR, "-m", "32", "-c", "2", "-a", "2", "-r", "2", "-o", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    parts = mrd.list_parts(path)
    assert parts == [f"repetition{number}" for number in range(4)], "each half of the lines is one"
    with pytest.raises(InputError, match="slice 0 is undersampled: 16 of 32 lines"):
        opened(path, parts[0])


def test_each_combination_is_a_scan(tmp_path: Path) -> None:
    kspace = random_kspace(2, 3, 2, 8, 6)
    acquisitions = (
        found
        for contrast in range(2)
        for repetition in range(3)
        for found in lines_of(kspace[contrast, repetition], contrast=contrast, repetition=repetition)
    )
    path = write(tmp_path / "a.h5", xml((8, 6, 1), (0, 5, 3)), acquisitions)
    parts = mrd.list_parts(path)
    assert parts == [f"contrast{contrast}-repetition{repetition}" for contrast in range(2) for repetition in range(3)]
    for number, part in enumerate(parts):
        source = opened(path, part)
        assert source.num_slices == 1
        np.testing.assert_array_equal(source.kspace(0), kspace[divmod(number, 3)])
        source.close()
    for part in ("", "contrast2"):
        with pytest.raises(InputError, match=f"no part '{part}'; choose one of contrast0-repetition0, "):
            opened(path, part)


def test_each_encoding_is_a_scan_of_its_own(tmp_path: Path) -> None:
    kspace = random_kspace(2, 1, 8, 6)
    acquisitions = [found for number in (0, 1) for found in lines_of(kspace[number], encoding_space_ref=number)]
    path = write(tmp_path / "a.h5", xml((8, 6, 1), (0, 5, 3), num_encodings=2), acquisitions)
    assert mrd.list_parts(path) == ["encoding0", "encoding1"]
    np.testing.assert_array_equal(opened(path, "encoding1").kspace(0), kspace[1])
    path = write(tmp_path / "b.h5", xml((8, 6, 1), (0, 5, 3)), acquisitions)
    with pytest.raises(InputError, match="refer to encoding 1; the header has 1"):
        opened(path, "encoding1")


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("num_partitions", [5, 3])
def test_partitions_become_slices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: bool, num_partitions: int
) -> None:
    """Two stacks; 5 of 5 partitions with the centre at 2, or the last 3 of them with the centre at 0."""
    if not in_memory:
        monkeypatch.setattr(partitions, "LARGEST_IN_MEMORY", 0)
        monkeypatch.setattr(partitions, "BLOCK", 1)
        (tmp_path / "scratch").mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    kspace = random_kspace(2, 5, 2, 8, 6)  # stack, partition, coil, sample, line
    first = 5 - num_partitions
    kspace[:, :first] = 0
    acquisitions = [
        found
        for stack in range(2)
        for z in range(num_partitions)
        for found in lines_of(kspace[stack, first + z], kspace_encode_step_2=z, slice=stack)
    ]
    limits = (0, num_partitions - 1, 2 - first)
    source = opened(write(tmp_path / "a.h5", xml((8, 6, 5), (0, 5, 3), limits), acquisitions))
    assert (source.num_slices, source.slice_shape) == (10, (2, 8, 6))
    assert source.voxel_size == pytest.approx((50, 200 / 6, 1.2))
    assert close_to(images(source).reshape(kspace.shape), to_image(kspace, axes=(1, 3, 4)))
    assert source.kept_slices() == list(range(10))
    source.close()
    assert in_memory or list((tmp_path / "scratch").iterdir()) == []


def test_lines_that_make_no_image_are_skipped(tmp_path: Path) -> None:
    kspace = random_kspace(1, 8, 6)
    names = ("NOISE_MEASUREMENT", "PARALLEL_CALIBRATION", "NAVIGATION_DATA", "PHASECORR_DATA", "DUMMYSCAN_DATA")
    more = ("HPFEEDBACK_DATA", "RTFEEDBACK_DATA", "SURFACECOILCORRECTIONSCAN_DATA", "PHASE_STABILIZATION")
    others = [line(random_kspace(2, 5), [getattr(ismrmrd, f"ACQ_IS_{name}")], contrast=3) for name in (*names, *more)]
    both = [ismrmrd.ACQ_IS_PARALLEL_CALIBRATION, ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING]
    measured = list(lines_of(kspace))
    measured[3] = line(kspace[..., 3], both, kspace_encode_step_1=3)
    path = write(tmp_path / "a.h5", xml((8, 6, 1), (0, 5, 3)), [*others, *measured])
    assert mrd.list_parts(path) == [""]
    np.testing.assert_array_equal(opened(path).kspace(0), kspace)
    with pytest.raises(InputError, match="none of its 9 acquisitions is an image line"):
        opened(write(tmp_path / "b.h5", xml((8, 6, 1)), others))


CALIBRATION = ismrmrd.ACQ_IS_PARALLEL_CALIBRATION
APART = ("separate", "external")


def accelerated(kspace: np.ndarray, reference: np.ndarray) -> list[Any]:
    """Every third line of (coil, height, width) k-space as an image line, and the 23 in the middle of `reference`."""
    lines = [line(kspace[..., y], kspace_encode_step_1=y) for y in range(0, kspace.shape[-1], 3)]
    calibration = [line(reference[..., y], [CALIBRATION], kspace_encode_step_1=y) for y in range(9, 32)]
    return [*calibration, *lines]


def undersampled(path: Path) -> Source:
    return mrd.open_source(SourceRef("mrd", "a", "s", (str(path),)), [path], SourceOptions(undersampled=True))


def with_mode(header: str, mode: str) -> str:
    return header.replace("</encoding>", f"{PARALLEL.format(mode)}</encoding>") if mode else header


@pytest.mark.parametrize("mode", ["", "embedded", "interleaved", "separate", "external"])
def test_calibration_lines_are_measured_lines_unless_of_another_scan(tmp_path: Path, mode: str) -> None:
    kspace, reference = random_kspace(2, 2, 8, 40)
    path = write(tmp_path / "a.h5", with_mode(xml((8, 40, 1), (0, 39, 20)), mode), accelerated(kspace, reference))
    expected = np.zeros_like(kspace)
    if mode not in APART:
        expected[..., 9:32] = reference[..., 9:32]
    expected[..., ::3] = kspace[..., ::3]
    source = undersampled(path)
    np.testing.assert_array_equal(source.kspace(0), expected)
    assert ["calibration lines are of another scan" in note for note in source.notes] == [True] * (mode in APART)
    assert mrd.list_parts(path) == [""]


def test_calibration_lines_that_fit_no_image_line_are_skipped(tmp_path: Path) -> None:
    kspace, reference = random_kspace(2, 2, 8, 40)
    path = tmp_path / "a.h5"
    others = [
        line(reference[..., 10], [CALIBRATION], kspace_encode_step_1=10, slice=4),
        line(reference[..., 10], [CALIBRATION], kspace_encode_step_1=10, contrast=1),
        line(reference[:1, :, 10], [CALIBRATION], kspace_encode_step_1=10),
        line(reference[:, :6, 10], [CALIBRATION], kspace_encode_step_1=10),
        line(reference[..., 10], [CALIBRATION, ismrmrd.ACQ_IS_REVERSE], kspace_encode_step_1=10),
        line(reference[..., 10], [CALIBRATION], kspace_encode_step_1=60),
    ]
    once = accelerated(kspace, reference)
    source = undersampled(write(path, xml((8, 40, 1), (0, 39, 20)), [*others, *once, *once[:3]]))
    assert source.num_slices == 1
    np.testing.assert_array_equal(source.kspace(0)[..., 10], reference[..., 10])


def test_discarded_samples_and_readouts_longer_than_the_matrix(tmp_path: Path) -> None:
    """Nothing measured is cut: with its centre at 3, a readout of 8 samples needs an axis of 9."""
    kspace = random_kspace(1, 12, 6)
    path = tmp_path / "a.h5"
    path = write(path, xml((8, 6, 1), (0, 5, 3)), lines_of(kspace, center=5, discard_pre=2, discard_post=2))
    found = opened(path).kspace(0)
    assert found.shape == (1, 9, 6)
    np.testing.assert_array_equal(found[:, 1:], kspace[:, 2:10])
    assert not found[:, 0].any()


def test_without_limits_and_centre_the_matrix_is_centred(tmp_path: Path) -> None:
    kspace = random_kspace(1, 8, 6)
    path = write(tmp_path / "a.h5", xml((8, 6, 1)), lines_of(kspace, center=0))
    np.testing.assert_array_equal(opened(path).kspace(0), kspace)


@pytest.mark.parametrize("needed", [(0, 1, 1), (4, 4, 8), (3, 5, 8), (5, 3, 8), (2, 3, 5), (9, 1, 4)])
def test_padded_axes_are_just_long_enough(needed: tuple[int, int, int]) -> None:
    before, after, size = needed

    def fits(length: int) -> bool:
        return length >= size and length // 2 >= before and length - length // 2 >= after

    assert padded(before, after, size) == next(length for length in range(99) if fits(length))


def test_empty_slices_are_not_kept(tmp_path: Path) -> None:
    kspace = random_kspace(3, 1, 8, 6)
    kspace[1] = 0
    acquisitions = [found for number in range(3) for found in lines_of(kspace[number], slice=2 * number)]
    source = opened(write(tmp_path / "a.h5", xml((8, 6, 1), (0, 5, 3)), acquisitions))
    assert source.num_slices == 3, "the numbers 0, 2 and 4 are three slices"
    assert source.kept_slices() == [0, 2]
    assert source.position(1) == pytest.approx(6), "without positions in the headers the thickness counts"


def test_nothing_of_the_person_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", xml((8, 6, 1), (0, 5, 3)), lines_of(random_kspace(1, 8, 6)))
    source = opened(path)
    assert source.about == {
        "field_strength_T": pytest.approx(2.89),
        "sequence_type": "Flash",
        "repetition_time_ms": [500.0],
        "echo_time_ms": [12.0],
        "trajectory": "cartesian",
        "encoded_matrix": [8, 6, 1],
        "encoded_field_of_view_mm": [400.0, 200.0, 6.0],
        "recon_matrix": [16, 6, 1],
        "recon_field_of_view_mm": [200.0, 200.0, 6.0],
        "num_averages": 1,
        "measured_lines": [6, 1],
    }
    told = json.dumps([source.about, asdict(SourceRef("mrd", "a", "s", (str(path),)))]) + repr(source)
    assert not [secret for secret in SECRETS if secret in told]


def test_one_slice_is_read_at_a_time(tmp_path: Path) -> None:
    kspace = random_kspace(4, 128, 16)
    acquisitions = (found for number in range(40) for found in lines_of(kspace, slice=number))
    path = write(tmp_path / "a.h5", xml((128, 16, 1), (0, 15, 8)), acquisitions)
    opened(path).close()  # what is imported on first use is not the file's
    tracemalloc.start()
    assert len(opened(path).kept_slices()) == 40
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # the index and a block of headers come on top of the slice
    assert peak < 6 * kspace.nbytes + 2**20 < 40 * kspace.nbytes


def test_values_that_are_not_finite_are_named(tmp_path: Path) -> None:
    kspace = random_kspace(5, 1, 8, 6)
    kspace[3, 0, 0, 0] = np.nan
    flat = [found for number in range(5) for found in lines_of(kspace[number], slice=number)]
    with pytest.raises(InputError, match=r"flat\.h5: slice 3 has 1 of 48"):
        opened(write(tmp_path / "flat.h5", xml((8, 6, 1), (0, 5, 3)), flat)).kept_slices()
    thick = [found for number in range(5) for found in lines_of(kspace[number], kspace_encode_step_2=number)]
    with pytest.raises(InputError, match=r"thick\.h5: partition 3"):
        opened(write(tmp_path / "thick.h5", xml((8, 6, 5), (0, 5, 3), (0, 4, 2)), thick)).kspace(0)


def whole() -> list[Any]:
    return list(lines_of(random_kspace(1, 8, 6)))


@pytest.mark.parametrize(
    ("header", "acquisitions", "message"),
    [
        (xml((8, 6, 1), (0, 5, 3)), whole()[::2], "slice 0 is undersampled: 3 of 6 lines"),
        (xml((8, 6, 2), (0, 5, 3), (0, 1, 1)), whole(), "slice 0 is undersampled: 6 of 12 lines"),
        (xml((8, 12, 1)), whole(), "slice 0 is undersampled: 6 of 12 lines"),
        (xml((8, 6, 1), (0, 5, 3)), whole() + whole()[:2], "slice 0 has 2 lines twice"),
        (xml((8, 6, 1), (0, 3, 2)), whole(), "'kspace_encoding_step_1' runs from 0 to 5; the header's limits are 0 to"),
        (xml((8, 6, 1), (0, 5, 9)), whole(), "with the centre 9"),
        (xml((8, 6, 1), (0, 5, 3), trajectory="radial"), whole(), "trajectory is radial"),
        (xml((8, 6, 1), (0, 5, 3), trajectory="epi"), whole(), "trajectory is epi"),
        (
            xml((8, 6, 1), (0, 5, 3)),
            [*whole()[1:], line(random_kspace(1, 8), [ismrmrd.ACQ_IS_REVERSE])],
            "1 of 6 readouts are reversed",
        ),
        (xml((8, 6, 1), (0, 5, 3)), [*whole()[1:], line(random_kspace(1, 6))], "'samples' runs from 6 to 8"),
        (xml((8, 6, 1), (0, 5, 3)), [*whole()[1:], line(random_kspace(2, 8))], "'channels' runs from 1 to 2"),
        (xml((8, 6, 1), (0, 5, 3)), list(lines_of(random_kspace(1, 8, 6), center=9)), "centre sample 9 lies outside"),
        (
            xml((16, 6, 1)),
            list(lines_of(random_kspace(1, 8, 6), center=0, discard_pre=1)),
            "centre sample 0",
        ),
        ("<a/>", whole(), "XML header is not ISMRMRD"),
        (xml((0, 6, 1)), whole(), r"encodedSpace.matrixSize.x is 0"),
        (xml((8, 6, 1), ("Erika", 5, 3)), whole(), "whole numbers"),  # type: ignore[arg-type]
        (xml((8, 6, 1), num_encodings=0), whole(), "refer to encoding 0; the header has 0"),
    ],
)
def test_what_is_no_complete_cartesian_scan_is_refused(
    tmp_path: Path, header: str, acquisitions: Any, message: str
) -> None:
    path = write(tmp_path / "a.h5", header, acquisitions)
    with pytest.raises(InputError, match=message) as caught:
        opened(path)
    assert str(path) in str(caught.value)


def test_files_that_are_not_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "whole.h5", xml((8, 6, 1), (0, 5, 3)), whole())
    content = path.read_bytes()
    (tmp_path / "cut.h5").write_bytes(content[: len(content) // 2])
    for read in (hdf5.kind, mrd.list_parts, opened):
        with pytest.raises(InputError, match=r"cut\.h5"):
            read(tmp_path / "cut.h5")


def test_the_group_may_have_any_name_but_there_is_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", xml((8, 6, 1), (0, 5, 3)), whole(), group="scan")
    assert opened(path).num_slices == 1
    write(path, xml((8, 6, 1), (0, 5, 3)), whole(), group="other")
    with pytest.raises(InputError, match=r"2 groups with acquisitions \(other, scan\)"):
        mrd.list_parts(path)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["images/data"] = np.ones(3)
        file["images/xml"] = [b"<a/>"]
        file.create_group("empty")
    with pytest.raises(InputError, match="holds no ISMRMRD acquisitions"):
        mrd.list_parts(tmp_path / "b.h5")
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["images"] = np.ones(3)
    with pytest.raises(InputError, match="0 groups"):
        mrd.list_parts(tmp_path / "c.h5")
