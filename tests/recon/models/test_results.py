"""Results lie in the place of their source, as readers see it that have nothing to do with Larmor."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from pathlib import Path
from typing import Any, cast

import h5py
import nibabel
import numpy as np
import pytest
import SimpleITK
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import MRImageStorage
from scipy import ndimage

from larmor.recon.models.model import Model
from larmor.recon.models.reconstruct import reconstruct_scans
from larmor.recon.models.results import Format, ResultOptions, check_format
from larmor.recon.models.scans import check_field_of_view, open_scans
from larmor.storage.formats.volumes import image_to_kspace
from larmor.storage.objects.errors import InputError
from tests.helpers import ellipsoid, write_volume
from tests.recon.models.test_reconstruct import images, make_model
from tests.storage.formats.dicom_files import PLANTED, Scan, make_scan, write_enhanced, write_series

SHAPE = (21, 14, 17)
ORIENTATIONS = ("RAS", "LPS", "AIL", "SPR", "PIR", "ILA")


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than all else here."""
    monkeypatch.setattr("larmor.recon.models.pictures.contact_sheet", lambda *arguments: arguments[-1].touch())


def run(model: Model, source: Path, folder: Path, plane: Any = "coronal", **options: Any) -> Path:
    """The result of the only scan. Raises `InputError` if it is bad."""
    with open_scans(str(source), model.physics, plane=plane, whole=True) as scans:
        (report,) = reconstruct_scans(model, scans, folder, 4, options=ResultOptions(**options))
    if report.problem:
        raise InputError(report.problem)
    return report.files[0]


def affine_of(axes: str, sizes: tuple[float, float, float], degrees: float = 0) -> np.ndarray:
    """Array axes that run towards `axes`, turned about an oblique axis."""
    codes = nibabel.orientations.axcodes2ornt(tuple(axes))
    affine = np.eye(4)
    for place, (axis, flip) in enumerate(codes.astype(int)):
        affine[:3, place] = 0
        affine[axis, place] = flip * sizes[place]
    angle, (x, y, z) = np.deg2rad(degrees), np.array([1, 2, 2]) / 3
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    affine[:3, :3] = (np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross) @ affine[:3, :3]
    affine[:3, 3] = (-31, 17, 5)
    return affine


def itk(path: Path) -> Any:
    """An image, or a DICOM series, as ITK reads it."""
    if path.is_dir():
        return SimpleITK.ReadImage(SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(path)))
    return SimpleITK.ReadImage(str(path), SimpleITK.sitkFloat32)


def correlation(one: Any, other: Any) -> float:
    """Of an ITK image with another one, which is looked up at the places in space of the first one's voxels."""
    looked_up = SimpleITK.Resample(
        SimpleITK.Cast(other, SimpleITK.sitkFloat32), one, SimpleITK.Transform(), SimpleITK.sitkLinear, -1e6
    )
    values, found = (SimpleITK.GetArrayFromImage(image).ravel() for image in (one, looked_up))
    inside = found > -1e5
    assert inside.mean() > 0.99
    return float(np.corrcoef(values[inside], found[inside])[0, 1])


class TestNifti:
    @pytest.mark.parametrize("degrees", [0, 19])
    @pytest.mark.parametrize("axes", ORIENTATIONS)
    def test_every_orientation_keeps_shape_affine_and_values(self, tmp_path: Path, axes: str, degrees: float) -> None:
        affine = affine_of(axes, (1.1, 1.1, 1.1), degrees)
        source = write_volume(tmp_path / "head.nii.gz", ellipsoid(SHAPE) - 40, affine)
        path = run(make_model(), source, tmp_path / "out")
        before, after = itk(source), itk(path)
        for name in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
            assert getattr(after, name)() == getattr(before, name)()
        found, wanted = (SimpleITK.GetArrayFromImage(image) for image in (after, before))
        assert np.abs(found - wanted).max() < 1e-2

    @pytest.mark.parametrize("plane", ["coronal", "native"])
    @pytest.mark.parametrize("sizes", [(0.9, 1.3, 2.5), (2.5, 0.9, 1.0), (1.0, 3.0, 1.05)])
    def test_voxels_that_are_not_square_come_back(
        self, tmp_path: Path, sizes: tuple[float, float, float], plane: str
    ) -> None:
        smooth = ndimage.gaussian_filter(ellipsoid(SHAPE), 1)
        source = write_volume(tmp_path / "head.nii", smooth, affine_of("LAS", sizes, 11))
        path = run(make_model(), source, tmp_path / "out", plane)
        found: Any = nibabel.load(path)
        assert found.shape == SHAPE
        assert np.abs(np.asarray(found.dataobj) - smooth).max() < 0.02 * smooth.max()

    def test_the_header_is_the_sources(self, tmp_path: Path) -> None:
        """qform and sform of their own, micrometres, a fourth axis, a name in the free text."""
        image: Any = nibabel.Nifti2Image(ellipsoid(SHAPE).astype(np.int16)[..., None], np.eye(4))
        image.set_qform(affine_of("LPS", (1000, 1000, 1000), 30), 1)
        image.set_sform(affine_of("LPS", (1000, 1000, 1000), 10), 3)
        image.header.set_xyzt_units("micron")
        image.header["descrip"], image.header["aux_file"] = b"Doe, Jane", b"jane"
        nibabel.save(image, tmp_path / "head.nii.gz")
        path = run(make_model(), tmp_path / "head.nii.gz", tmp_path / "out")
        source, found = (cast(Any, nibabel.load(file)) for file in (tmp_path / "head.nii.gz", path))
        one, other = source.header, found.header
        assert type(one) is type(other)
        assert found.shape == (*SHAPE, 1)
        for name in (
            "qform_code",
            "sform_code",
            "quatern_b",
            "qoffset_x",
            "srow_x",
            "srow_y",
            "srow_z",
            "pixdim",
            "xyzt_units",
        ):
            np.testing.assert_array_equal(one[name], other[name], name)
        assert other.get_data_dtype() == np.float32
        assert b"ane" not in other.binaryblock

    def test_a_single_slice_and_a_single_image(self, tmp_path: Path) -> None:
        for shape in ((24, 30, 1), (24, 1, 30), (24, 30)):
            data = ellipsoid((24, 30, 9))[..., 4].reshape(shape)
            source = write_volume(tmp_path / f"{len(shape)}{shape[1]}.nii", data, affine_of("LAS", (1, 1, 4)))
            found: Any = nibabel.load(run(make_model(), source, tmp_path / "out"))
            assert found.shape == shape
            assert np.abs(np.asarray(found.dataobj) - data).max() < 1e-2

    def test_a_model_of_one_size_sees_the_whole_field_of_view(self, tmp_path: Path) -> None:
        """Undersampled at the slice's own size: wider than the training, and flatter."""
        data = ellipsoid((70, 5, 23))
        source = write_volume(tmp_path / "head.nii", data)
        found: Any = nibabel.load(run(make_model(ratio=0.5, trained=True), source, tmp_path / "out"))
        values = np.asarray(found.dataobj)
        assert values.shape == data.shape
        assert np.corrcoef(values.ravel(), data.ravel())[0, 1] > 0.8


class TestDicom:
    @pytest.mark.parametrize("enhanced", [False, True])
    @pytest.mark.parametrize(
        ("plane", "degrees"), [("axial", 0), ("coronal", 0), ("sagittal", 17), ("axial, feet first", 25)]
    )
    def test_a_series_comes_back_in_its_place(self, tmp_path: Path, plane: str, degrees: float, enhanced: bool) -> None:
        scan = smooth_scan(plane, degrees)
        source = write_enhanced(tmp_path / "in" / "all.dcm", scan) if enhanced else tmp_path / "in"
        if not enhanced:
            write_series(source, scan)
        folder = run(make_model(), source, tmp_path / "out", "native", format="dicom")
        files = sorted(folder.iterdir())
        assert len(files) == (1 if enhanced else scan.stored.shape[2])
        if not enhanced:  # GDCM's reader of series knows no enhanced files
            assert correlation(itk(source), itk(folder)) > 0.999
        back: Any = nibabel.load(run(make_model(), folder, tmp_path / "again", "native"))
        there: Any = nibabel.load(run(make_model(), source, tmp_path / "direct", "native"))
        np.testing.assert_allclose(back.affine, there.affine, atol=1e-4)
        one, other = (np.asarray(image.dataobj) for image in (back, there))
        assert np.abs(one - other).max() < 1e-3 * np.ptp(other)

    def test_coronal_slices_of_an_axial_series_go_back(self, tmp_path: Path) -> None:
        write_series(tmp_path / "in", smooth_scan("axial", 12))
        folder = run(make_model(), tmp_path / "in", tmp_path / "out", format="dicom")
        assert correlation(itk(tmp_path / "in"), itk(folder)) > 0.99

    def test_the_series_is_derived_and_says_what_it_is_for(self, tmp_path: Path) -> None:
        paths = write_series(tmp_path / "in", smooth_scan("axial", 0))
        first, second = (run(make_model(), tmp_path / "in", tmp_path / name, format="dicom") for name in ("a", "b"))
        sources = {header.SOPInstanceUID: header for header in map(dcmread, paths)}
        series = set()
        for path in (*first.iterdir(), *second.iterdir()):
            found = dcmread(path)
            (reference,) = found.SourceImageSequence
            source = sources[reference.ReferencedSOPInstanceUID]
            assert found.ImageType[:2] == ["DERIVED", "SECONDARY"]
            assert "research use only" in found.SeriesDescription
            assert len(found.SeriesDescription) <= 64
            for name in (
                "PatientName",
                "PatientID",
                "StudyInstanceUID",
                "ImagePositionPatient",
                "PixelSpacing",
                "EchoTime",
            ):
                assert found[name].value == source[name].value
            series.add(found.SeriesInstanceUID)
            assert found.SOPInstanceUID not in sources
        assert len(series) == 2
        assert not series & {source.SeriesInstanceUID for source in sources.values()}

    def test_the_deviation_of_an_ensemble_is_a_series_of_its_own(self, tmp_path: Path) -> None:
        write_series(tmp_path / "in", smooth_scan("axial", 0))
        model, other = make_model(trained=True), dataclasses.replace(make_model(), folder=Path("other"))
        with open_scans(str(tmp_path / "in"), model.physics, plane="native", whole=True) as scans:
            options = ResultOptions("dicom")
            (report,) = reconstruct_scans(model, scans, tmp_path / "out", 4, options=options, others=[other])
        images, deviations = report.files[0], report.files[-1]
        assert (images.name, deviations.name) == ("in-reconstruction", "in-uncertainty")
        image, deviation = (dcmread(min(folder.iterdir())) for folder in (images, deviations))
        assert "standard deviation" in deviation.SeriesDescription
        assert len(deviation.SeriesDescription) <= 64
        assert "no image" in deviation.DerivationDescription
        assert deviation.SeriesInstanceUID != image.SeriesInstanceUID
        assert deviation.SeriesNumber == image.SeriesNumber + 1
        assert deviation.ImagePositionPatient == image.ImagePositionPatient
        values = SimpleITK.GetArrayFromImage(itk(deviations))
        assert 0 <= values.min() < values.max() < SimpleITK.GetArrayFromImage(itk(images)).max()

    @pytest.mark.parametrize("enhanced", [False, True])
    def test_anonymous_names_nobody(self, tmp_path: Path, enhanced: bool) -> None:
        scan = smooth_scan("axial", 0)
        write_enhanced(tmp_path / "in" / "all.dcm", scan) if enhanced else write_series(tmp_path / "in", scan)
        folder = run(make_model(), tmp_path / "in", tmp_path / "out", "native", format="dicom", anonymous=True)
        for path in folder.iterdir():
            content = path.read_bytes()
            assert not [text for text in (*PLANTED, scan.study) if text.encode() in content.replace(b"\0", b"")]
            assert dcmread(path).PatientIdentityRemoved == "YES"

    def test_a_single_image(self, tmp_path: Path) -> None:
        path = write_series(tmp_path / "in", smooth_scan("sagittal", 5))[3]
        folder = run(make_model(), path, tmp_path / "out", format="dicom")
        (found,) = (dcmread(file) for file in folder.iterdir())
        source = dcmread(path)
        assert found.ImagePositionPatient == source.ImagePositionPatient
        wanted = source.pixel_array * float(source.RescaleSlope) + float(source.RescaleIntercept)
        values = found.pixel_array * float(found.RescaleSlope) + float(found.RescaleIntercept)
        assert np.abs(values - wanted).max() < 1e-3 * np.ptp(wanted)

    def test_a_single_image_is_named_for_its_file(self, tmp_path: Path) -> None:
        """Else the second image of a folder would replace the first one's result."""
        paths = write_series(tmp_path / "in", smooth_scan("axial", 0))
        names = {run(make_model(), path, tmp_path / "out", "native").name for path in paths[:2]}
        assert names == {f"{path.stem}-reconstruction.nii.gz" for path in paths[:2]}

    def test_plain_images_that_state_frames_and_no_class_keep_their_values(self, tmp_path: Path) -> None:
        """A value's slope belongs into the image itself there, whatever the number of frames."""
        paths = write_series(tmp_path / "in", smooth_scan("axial", 0))
        before = SimpleITK.GetArrayFromImage(itk(tmp_path / "in"))
        for path in paths:
            header = dcmread(path)
            header.NumberOfFrames = 1
            del header.SOPClassUID
            header.save_as(path)
        folder = run(make_model(), tmp_path / "in", tmp_path / "out", "native", format="dicom")
        after = SimpleITK.GetArrayFromImage(itk(folder))
        assert dcmread(min(folder.iterdir())).SOPClassUID == MRImageStorage
        assert np.abs(after - before).max() < 1e-3 * np.ptp(before)

    @pytest.mark.skipif(not shutil.which("dcm2niix"), reason="needs dcm2niix, such as Debian's package")
    @pytest.mark.parametrize("enhanced", [False, True])
    def test_dcm2niix_puts_it_in_the_sources_place(self, tmp_path: Path, enhanced: bool) -> None:
        scan = smooth_scan("axial", 25)
        write_enhanced(tmp_path / "in" / "all.dcm", scan) if enhanced else write_series(tmp_path / "in", scan)
        folder = run(make_model(), tmp_path / "in", tmp_path / "out", "native", format="dicom")
        images: list[Any] = []
        for name, place in (("source", tmp_path / "in"), ("result", folder)):
            (tmp_path / name).mkdir()
            command = ["dcm2niix", "-z", "n", "-b", "n", "-o", str(tmp_path / name), str(place)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            (path,) = (tmp_path / name).glob("*.nii")
            images.append(nibabel.load(path))
        source, result = images
        np.testing.assert_allclose(result.affine, source.affine, atol=1e-4)
        assert np.corrcoef(source.get_fdata().ravel(), result.get_fdata().ravel())[0, 1] > 0.999

    def test_a_second_call_replaces_the_first_ones_series(self, tmp_path: Path) -> None:
        write_series(tmp_path / "in", smooth_scan("axial", 0))
        names = [
            {path.name for path in run(make_model(), tmp_path / "in", tmp_path / "out", format="dicom").iterdir()}
            for _ in range(2)
        ]
        assert names[0] == names[1]
        assert {path.suffix for path in (tmp_path / "out").iterdir()} == {"", ".png", ".html"}


def smooth_scan(plane: str, degrees: float) -> Scan:
    scan = make_scan(plane, degrees)
    smooth = ndimage.gaussian_filter(ellipsoid(scan.stored.shape), 1)
    scan.stored[:] = np.round(3000 * smooth / smooth.max())
    return scan


class TestOtherFormats:
    def test_arrays_are_in_the_order_of_the_file(self, tmp_path: Path) -> None:
        data = ellipsoid(SHAPE)
        source = write_volume(tmp_path / "head.nii", data, affine_of("PIR", (1, 1, 1)))
        found = np.load(run(make_model(), source, tmp_path / "out", format="npy"))
        assert np.abs(found - data).max() < 1e-2
        with h5py.File(run(make_model(), source, tmp_path / "out", format="h5")) as file:
            stored = file["reconstruction"]
            assert stored.dtype == np.float32
            assert sorted(stored.shape) == sorted(SHAPE)

    def test_kspace_keeps_its_whole_matrix(self, tmp_path: Path) -> None:
        truth = images(3, 40, 36)
        np.save(tmp_path / "scan.npy", image_to_kspace(truth))
        found = np.load(run(make_model(), tmp_path / "scan.npy", tmp_path / "out"))
        np.testing.assert_allclose(found, truth, atol=1e-2)
        with pytest.raises(InputError, match="does not say where its images lie in space; choose h5 or npy"):
            run(make_model(), tmp_path / "scan.npy", tmp_path / "out2", format="nifti")
        assert not (tmp_path / "out2").exists()


class TestBadInput:
    @pytest.mark.parametrize(
        ("changes", "problem"),
        [
            ({"Modality": "CT"}, "is of modality CT; MR is expected"),
            ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "is in colour"),
            ({"ImageOrientationPatient": None}, "has no ImageOrientationPatient, so its place is not known"),
            ({"PixelSpacing": None}, "has no PixelSpacing"),
        ],
    )
    def test_what_is_no_mr_image_in_space_is_refused(
        self, tmp_path: Path, changes: dict[str, Any], problem: str
    ) -> None:
        path = write_series(tmp_path / "in", smooth_scan("axial", 0))[2]
        header: Dataset = dcmread(path)
        for name, value in changes.items():
            if value is None:
                del header[name]
            else:
                setattr(header, name, value)
        header.save_as(path)
        for format in ("dicom", "nifti"):
            with pytest.raises(InputError, match=problem):
                run(make_model(), path, tmp_path / "out", format=format)
            assert not (tmp_path / "out").exists()

    def test_a_colour_image_is_refused(self, tmp_path: Path) -> None:
        np.save(tmp_path / "photo.npy", images(64, 48, 3))
        with pytest.raises(InputError, match=r"photo\.npy: has shape \(64, 48, 3\).*colours"):
            run(make_model(), tmp_path / "photo.npy", tmp_path / "out")

    def test_dicom_is_made_of_dicom(self, tmp_path: Path) -> None:
        source = write_volume(tmp_path / "head.nii", ellipsoid(SHAPE))
        with pytest.raises(InputError, match=r"--format dicom: head is no DICOM series.*choose nifti"):
            run(make_model(), source, tmp_path / "out", format="dicom")
        assert not (tmp_path / "out").exists()

    def test_words_that_are_not_known(self) -> None:
        formats: tuple[Format, ...] = ("auto", "nifti", "h5", "npy")
        for word in formats:
            with pytest.raises(InputError, match=f"--anonymous with --format {word}"):
                ResultOptions(word, anonymous=True)
        with pytest.raises(InputError, match="--format jpeg: choose one of auto, nifti, dicom, h5, npy"):
            check_format("jpeg")
        with pytest.raises(InputError, match="--field-of-view half"):
            check_field_of_view("half")

    def test_a_mask_from_a_file_has_one_size(self, tmp_path: Path) -> None:
        np.save(tmp_path / "mask.npy", np.ones((32, 32), bool))
        model = make_model()
        recipe_mask = model.physics.mask.model_copy(update={"kind": "file", "file": str(tmp_path / "mask.npy")})
        model = dataclasses.replace(model, physics=dataclasses.replace(model.physics, mask=recipe_mask))
        source = write_volume(tmp_path / "head.nii", ellipsoid((40, 6, 24)))
        with pytest.raises(InputError, match=r"whole images are 32×40 .*--field-of-view model"):
            run(model, source, tmp_path / "out")
