"""A DICOM series gives what its NIfTI twin gives, whatever the order of its files, and tells nobody's name."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataelem import RawDataElement
from pydicom.encaps import encapsulate
from pydicom.pixels import pixel_array
from pydicom.tag import Tag
from pydicom.uid import (
    MPEG2MPML,
    UID,
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)

from larmor.storage.formats import dicom, nifti, volume_array
from larmor.storage.formats.dicom_series import find_series
from larmor.storage.formats.source import SourceOptions, SourceRef
from larmor.storage.formats.volumes import VolumeSource
from larmor.storage.objects.errors import InputError
from tests.helpers import write_volume
from tests.storage.formats.dicom_files import (
    DIRECTIONS,
    PLANTED,
    SHAPE,
    Scan,
    base,
    make_scan,
    write_enhanced,
    write_series,
)

OPTIONS = SourceOptions((24, 20), 0.0)


def find(paths: Iterable[Path]) -> list[SourceRef]:
    return find_series(map(str, paths))


def open_all(paths: list[Path], options: SourceOptions = OPTIONS) -> VolumeSource:
    (ref,) = find(paths)
    return dicom.open_source(ref, [Path(file) for file in ref.files], options)


def open_twin(folder: Path, scan: Scan, options: SourceOptions = OPTIONS) -> VolumeSource:
    affine = np.diag([-1, -1, 1, 1]) @ scan.affine
    path = write_volume(folder / "twin.nii", scan.values.astype(np.float32), affine)
    return nifti.open_source(SourceRef("nifti", "twin", "twin", (str(path),)), [path], options)


def assert_same(found: VolumeSource, wanted: VolumeSource) -> None:
    assert (found.num_slices, found.slice_shape, found.plane) == (wanted.num_slices, wanted.slice_shape, "coronal")
    assert found.voxel_size == pytest.approx(wanted.voxel_size, rel=1e-5)
    assert list(found.kept_slices()) == list(wanted.kept_slices())
    for index in wanted.kept_slices():
        one, other = found.kspace(index), wanted.kspace(index)
        assert one.dtype == np.complex64
        assert np.linalg.norm(one - other) <= 1e-6 * np.linalg.norm(other)
        assert found.position(index) == pytest.approx(wanted.position(index), rel=1e-5)


class TestTwin:
    @pytest.mark.parametrize("plane", DIRECTIONS)
    @pytest.mark.parametrize("degrees", [0, 14])
    @pytest.mark.parametrize("dtype", ["int16", "uint16"])
    def test_a_series(self, tmp_path: Path, plane: str, degrees: float, dtype: str) -> None:
        scan = make_scan(plane, degrees, dtype)
        assert_same(open_all(write_series(tmp_path / "t1", scan)), open_twin(tmp_path, scan))

    @pytest.mark.parametrize("plane", DIRECTIONS)
    @pytest.mark.parametrize("shared_orientation", [True, False])
    def test_an_enhanced_file(self, tmp_path: Path, plane: str, shared_orientation: bool) -> None:
        scan = make_scan(plane, 14)
        path = write_enhanced(tmp_path / "t1" / "image", scan, shared_orientation)
        assert_same(open_all([path]), open_twin(tmp_path, scan))

    @pytest.mark.parametrize("enhanced", [False, True])
    def test_each_image_has_its_own_scale(self, tmp_path: Path, enhanced: bool) -> None:
        scan = make_scan("sagittal", slopes=np.linspace(0.2, 3, SHAPE[2]))
        write = [write_enhanced(tmp_path / "t1" / "image", scan)] if enhanced else write_series(tmp_path / "t1", scan)
        assert_same(open_all(write), open_twin(tmp_path, scan))

    @pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless])
    def test_other_encodings(self, tmp_path: Path, syntax: str) -> None:
        scan = make_scan(syntax=syntax)
        assert_same(open_all(write_series(tmp_path / "t1", scan)), open_twin(tmp_path, scan))

    def test_larger_than_memory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        scan = make_scan("coronal", 9)
        wanted = open_twin(tmp_path, scan)
        monkeypatch.setattr(volume_array, "MAX_VOLUME_IN_MEMORY", 0)
        (tmp_path / "temporary").mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
        assert_same(open_all(write_series(tmp_path / "t1", scan)), wanted)
        assert list((tmp_path / "temporary").iterdir()) == []

    def test_only_slices_with_foreground_are_kept(self, tmp_path: Path) -> None:
        scan = make_scan("coronal", dtype="uint16")
        scan.stored[..., 6:] //= 100
        options = SourceOptions((SHAPE[1], SHAPE[0]), 0.2)
        found = open_all(write_series(tmp_path / "t1", scan), options)
        assert_same(found, open_twin(tmp_path, scan, options))
        assert 0 < len(found.kept_slices()) < found.num_slices

    def test_the_inverse_transform_gives_the_pixels_of_a_coronal_series(self, tmp_path: Path) -> None:
        """Against pydicom alone: a coronal image is stored upright, the subject's right at the left."""
        scan = make_scan("coronal", dtype="uint16", spacing=(1.25, 1.25, 3))
        paths = write_series(tmp_path / "t1", scan)
        source = open_all(paths, SourceOptions((SHAPE[1], SHAPE[0]), 0.0))
        images = [pixel_array(path) * float(dcmread(path).RescaleSlope) + scan.intercept for path in paths]
        floor = min(image.min() for image in images)
        # the normal of a coronal image (right → left, superior → inferior) points to the front
        heights = [float(dcmread(path).ImagePositionPatient[1]) for path in paths]
        ordered = [images[place] for place in np.argsort(heights)[::-1]]
        for index, image in enumerate(ordered):
            back = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(source.kspace(index)[0]), norm="ortho"))
            assert np.linalg.norm(back - (image - floor)) <= 1e-6 * np.linalg.norm(image - floor)

    def test_facts_of_the_scan_are_kept(self, tmp_path: Path) -> None:
        scan = make_scan("axial")
        about = open_all(write_series(tmp_path / "t1", scan)).about
        assert about.pop("voxel_size_mm") == [0.9, 1.4, 2.5]
        wanted = {"modality": "MR", "magnetic_field_strength_t": 3.0, "repetition_time_ms": 2300.0}
        names = {"manufacturer": "ACME", "sequence_name": "*tfl3d1"}
        classic = {"echo_time_ms": 2.9, "inversion_time_ms": 900.0, "flip_angle_deg": 9.0}
        assert about == {**wanted, **names, **classic}
        about = open_all([write_enhanced(tmp_path / "t2" / "image", scan)]).about
        assert about.pop("voxel_size_mm") == [0.9, 1.4, 2.5]
        assert about == {**wanted, **names, "flip_angle_deg": 9.0}

    def test_facts_that_make_no_sense_are_left_out(self, tmp_path: Path) -> None:
        paths = write_series(tmp_path / "t1", make_scan("axial"))
        for keyword, text in (("RepetitionTime", b"abc "), ("SliceThickness", b"2 mm"), ("EchoTime", b"1\\2 ")):
            everywhere(**{keyword: RawDataElement(Tag(keyword), "DS", 4, text, 0, False, True)})(paths)
        assert not {"repetition_time_ms", "echo_time_ms"} & open_all(paths).about.keys()


class TestFind:
    def test_other_files_are_passed_over(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("hello " * 100)
        (tmp_path / "empty").write_bytes(b"")
        write_volume(tmp_path / "head.nii", np.ones((2, 2, 2), np.float32))
        report = base(make_scan(), "1.2.840.10008.5.1.4.1.1.88.11")
        del report.Rows
        report.save_as(tmp_path / "report.dcm", enforce_file_format=True)
        assert find([*tmp_path.iterdir(), tmp_path, tmp_path / "missing"]) == []
        paths = write_series(tmp_path / "t1", make_scan())
        (ref,) = find([*tmp_path.iterdir(), *paths])
        assert ref == SourceRef("dicom", "t1", "t1", tuple(map(str, sorted(paths))))

    def test_two_series_in_a_folder(self, tmp_path: Path) -> None:
        one, two = make_scan(number=4), make_scan("sagittal", number=7, uid="1.2.3.5")
        paths = write_series(tmp_path / "ann", one), write_series(tmp_path / "ann", two, prefix="x")
        refs = find([*paths[1], *paths[0]])
        assert [(ref.name, ref.subject) for ref in refs] == [("ann-4", "ann-4"), ("ann-7", "ann-4")]
        for ref, scan in zip(refs, (one, two), strict=True):
            found = dicom.open_source(ref, [Path(file) for file in ref.files], OPTIONS)
            assert_same(found, open_twin(tmp_path, scan))

    def test_series_of_one_number_keep_apart(self, tmp_path: Path) -> None:
        for place in range(3):
            write_series(tmp_path / "ann", make_scan(uid=f"1.2.{place}", patient=""), prefix=f"{place}-")
        refs = find(list((tmp_path / "ann").iterdir()))
        assert [ref.name for ref in refs] == ["ann-1", "ann-1-2", "ann-1-3"]
        assert [len(ref.files) for ref in refs] == [SHAPE[2]] * 3

    def test_subjects_are_patients_by_the_name_of_their_first_volume(self, tmp_path: Path) -> None:
        for name, patient in {"b": "P2", "a": "P1", "d": "P1", "c": "", "e": "", "f": "P2 "}.items():
            uid = f"1.2.{ord(name)}"
            write_series(tmp_path / name, make_scan(patient=patient, uid=uid, study=f"{uid}.0"))
        refs = find(sorted(tmp_path.rglob("*.dcm")))
        assert {ref.name: ref.subject for ref in refs} == {"a": "a", "b": "b", "c": "c", "d": "a", "e": "e", "f": "b"}

    def test_folders_of_one_name_are_told_apart_by_those_above(self, tmp_path: Path) -> None:
        for place, name in enumerate(("ann/t1", "bob/t1", "bob/t2")):
            write_series(tmp_path / name, make_scan(uid=f"1.2.{place}", patient=name[:3]))
        refs = find(sorted(tmp_path.rglob("*.dcm")))
        assert {ref.name: ref.subject for ref in refs} == {"ann-t1": "ann-t1", "bob-t1": "bob-t1", "t2": "bob-t1"}

    def test_a_series_may_lie_in_several_folders(self, tmp_path: Path) -> None:
        paths = write_series(tmp_path / "ann" / "one", make_scan())
        (tmp_path / "ann" / "two").mkdir()
        moved = [path.rename(tmp_path / "ann" / "two" / path.name) for path in paths[:5]]
        (ref,) = find([*moved, *paths[5:]])
        assert (ref.name, len(ref.files)) == ("ann", SHAPE[2])

    @pytest.mark.parametrize("enhanced", [False, True])
    def test_nothing_of_a_person_comes_out(self, tmp_path: Path, enhanced: bool) -> None:
        scan = make_scan()
        paths = [write_enhanced(tmp_path / "t1" / "i", scan)] if enhanced else write_series(tmp_path / "t1", scan)
        content = b"".join(path.read_bytes() for path in paths)
        assert all(text.encode() in content for text in PLANTED), "they are there to be told"
        (ref,) = find(paths)
        source = dicom.open_source(ref, paths, OPTIONS)
        shown = json.dumps([ref.format, ref.name, ref.subject, ref.files, ref.part, source.about])
        for text in (*PLANTED, "Doe", "Jane", "4711", scan.uid):
            assert text not in shown.replace(str(tmp_path), "")


def changed(place: int, **values: Any) -> Callable[[list[Path]], None]:
    """Change one file of a series; None removes an element."""

    def change(paths: list[Path]) -> None:
        header = dcmread(paths[place])
        for keyword, value in values.items():
            if value is None:
                delattr(header, keyword)
            elif isinstance(value, RawDataElement):
                header[keyword] = value
            else:
                setattr(header, keyword, value)
        header.save_as(paths[place])

    return change


def everywhere(**values: Any) -> Callable[[list[Path]], None]:
    def change(paths: list[Path]) -> None:
        for place in range(len(paths)):
            changed(place, **values)(paths)

    return change


def compressed(syntax: str) -> Callable[[list[Path]], None]:
    def compress(paths: list[Path]) -> None:
        for path in paths:
            header = dcmread(path)
            header.file_meta.TransferSyntaxUID = UID(syntax)
            header.PixelData = encapsulate([b"unreadable"])
            header["PixelData"].is_undefined_length = True
            header.save_as(path)

    return compress


def cut(paths: list[Path]) -> None:
    paths[4].write_bytes(paths[4].read_bytes()[:-9])


def repeated(paths: list[Path]) -> None:
    header = dcmread(paths[4])
    header.SOPInstanceUID = f"{header.SOPInstanceUID[:50]}.1"  # another image, no copy
    header.save_as(paths[4].with_name("again.dcm"))


def only_one(paths: list[Path]) -> None:
    for path in paths[1:]:
        path.unlink()


def constant(paths: list[Path]) -> None:
    everywhere(PixelData=bytes(2 * SHAPE[0] * SHAPE[1]))(paths)


def shifted(paths: list[Path]) -> None:
    for place in range(len(paths)):
        changed(place, ImagePositionPatient=[0.5 * place, 0, 2.5 * place])(paths)


BAD_SERIES: dict[str, tuple[Callable[[list[Path]], object], str]] = {
    "missing slice": (lambda paths: paths[4].unlink(), "003.dcm.*lie 5.000 mm apart, others 2.500 mm.*missing"),
    "a slice twice": (repeated, r"lie at the same place \(15.000 mm\).*one echo"),
    "one image": (only_one, "only image of its series"),
    "no position": (changed(4, ImagePositionPatient=None), "004.dcm: has no ImagePositionPatient.*original"),
    "no orientation": (changed(4, ImageOrientationPatient=None), "004.dcm: has no ImageOrientationPatient"),
    "no spacing": (changed(4, PixelSpacing=None), "004.dcm: has no PixelSpacing"),
    "short position": (changed(4, ImagePositionPatient=[1, 2]), "004.dcm: ImagePositionPatient is .*3 finite"),
    "no direction": (changed(4, ImageOrientationPatient=[0] * 6), "004.dcm: ImageOrientationPatient .*unit vectors"),
    "spacing of 0": (changed(4, PixelSpacing=[0, 1]), "004.dcm: PixelSpacing is .* above 0"),
    "other spacing": (changed(4, PixelSpacing=[2, 1]), r"004.dcm: has pixels of \[2.0, 1.0\] mm, others"),
    "localizer": (changed(4, ImageOrientationPatient=[0, 1, 0, 0, 0, -1]), "004.dcm: is turned.*localizer"),
    "shifted slices": (shifted, r"not upright.*\[0.5, 0.0, 2.5\] mm"),
    "colour": (everywhere(SamplesPerPixel=3, PhotometricInterpretation="RGB"), "is in colour.*3 samples.*RGB"),
    "palette": (everywhere(PhotometricInterpretation="PALETTE COLOR"), "is in colour"),
    "CT": (everywhere(Modality="CT"), "modality CT; MR is expected"),
    "compressed": (
        compressed(JPEGLSLossless),
        "compressed as 'JPEG-LS Lossless Image.*pip install 'pylibjpeg",
    ),
    "a film": (compressed(MPEG2MPML), "compressed as 'MPEG2 Main Profile / Main Level'"),
    "damaged": (compressed(RLELossless), "000.dcm: its pixels cannot be read"),
    "cut short": (cut, "004.dcm: its pixels cannot be read.*export it again"),
    "no pixels": (changed(4, PixelData=None), "004.dcm: its pixels cannot be read"),
    "constant": (constant, "every voxel has the same value"),
    "no frames": (everywhere(NumberOfFrames=-3), "000.dcm: NumberOfFrames is -3; at least 1"),
}


@pytest.mark.parametrize("case", BAD_SERIES)
def test_bad_series_are_refused_with_the_reason(tmp_path: Path, case: str) -> None:
    damage, reason = BAD_SERIES[case]
    paths = write_series(tmp_path / "t1", replace(make_scan(slopes=np.ones(SHAPE[2])), spacing=(1, 1, 2.5)))
    for place, path in enumerate(paths):  # in order of place, so that messages can be told
        path.rename(path.with_name(f"{place:03}"))
    damage([path.rename(path.with_name(f"{path.name}.dcm")) for path in sorted((tmp_path / "t1").iterdir())])
    with pytest.raises(InputError, match=f"(?s){tmp_path / 't1'}.*{reason}"):
        open_all(sorted((tmp_path / "t1").iterdir()))


def test_frames_are_named_where_one_is_missing(tmp_path: Path) -> None:
    path = write_enhanced(tmp_path / "t1" / "image", make_scan())
    header = dcmread(path)
    del header.PerFrameFunctionalGroupsSequence[3].PlanePositionSequence
    header.save_as(path)
    with pytest.raises(InputError, match=r"image \(frame 4\): has no ImagePositionPatient"):
        open_all([path])


@pytest.mark.filterwarnings("ignore:Invalid value for VR IS:UserWarning")
def test_a_number_of_frames_that_is_none_is_said(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "t1", make_scan())
    changed(2, NumberOfFrames=RawDataElement(Tag("NumberOfFrames"), "IS", 2, b"1A", 0, False, True))(paths)
    with pytest.raises(InputError, match=f"{paths[2]}: cannot be read as DICOM"):
        find(paths)


def test_a_file_that_is_something_else_now(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "t1", make_scan())
    (ref,) = find(paths)
    paths[2].write_text("hello " * 100)
    with pytest.raises(InputError, match=f"{paths[2].name}: is not a DICOM file"):
        dicom.open_source(ref, paths, OPTIONS)
