"""Results as a derived DICOM series, in the place of the series that they were made of.

Source: DICOM PS3.3, C.7.6.1 (ImageType, SourceImageSequence, DerivationDescription), C.8.13 (enhanced MR); PS3.15 E
(what identifies a person).
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from larmor.storage.formats.dicom_frames import Frame
from larmor.storage.formats.dicom_header import read_header

_LARGEST = 2**16 - 1
_LONGEST_DESCRIPTION = 64  # characters of a long string (LO)
_PURPOSE = "Larmor, research use only"
# of other pixels than those that are written
_STALE = (
    *("PixelData", "FloatPixelData", "SmallestImagePixelValue", "LargestImagePixelValue", "PixelPaddingValue"),
    *("PixelPaddingRangeLimit", "WindowCenterWidthExplanation", "VOILUTSequence", "ModalityLUTSequence"),
    *("ReferencedImageSequence", "IconImageSequence", "MACParametersSequence", "DigitalSignaturesSequence"),
    *(
        "ExtendedOffsetTable",
        "ExtendedOffsetTableLengths",
        "OriginalAttributesSequence",
        "RealWorldValueMappingSequence",
    ),
)
_KEPT = (  # without a person: what the pixels are, where they lie, and how they were measured
    *("SOPClassUID", "Modality", "ImageType", "SeriesNumber", "InstanceNumber", "AcquisitionNumber"),
    *("BodyPartExamined", "PatientPosition", "Laterality", "Manufacturer", "MagneticFieldStrength"),
    *("ScanningSequence", "SequenceVariant", "ScanOptions", "MRAcquisitionType", "SequenceName", "PulseSequenceName"),
    *("RepetitionTime", "EchoTime", "EffectiveEchoTime", "InversionTime", "FlipAngle", "EchoTrainLength"),
    *("EchoNumbers", "NumberOfAverages", "PixelBandwidth", "ImagingFrequency", "ImagedNucleus"),
    *("InPlanePhaseEncodingDirection", "AcquisitionMatrix", "PercentSampling", "PercentPhaseFieldOfView"),
    *("SliceThickness", "SpacingBetweenSlices", "SliceLocation", "ImagePositionPatient", "ImageOrientationPatient"),
    *("PixelSpacing", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "PixelPresentation"),
    *("VolumetricProperties", "VolumeBasedCalculationTechnique", "ComplexImageComponent", "AcquisitionContrast"),
)
_KEPT_GROUPS = ("PixelMeasuresSequence", "PlaneOrientationSequence", "PlanePositionSequence")


@dataclass(frozen=True)
class Meaning:
    """What the pixels of a series are: how it is `derived`, a `title` for its description, and the `offset` that is
    added to the number of the source's series."""

    derived: str = "Reconstructed from undersampled k-space by a neural network; research use only"
    title: str = ""
    offset: int = 1000


IMAGES = Meaning()
DEVIATIONS = Meaning(
    "Standard deviation of several neural networks at each pixel, no image; research use only",
    "standard deviation",
    1001,
)


def write_series(
    volume: np.ndarray, frames: Sequence[Frame], folder: Path, anonymous: bool = False, meaning: Meaning = IMAGES
) -> None:
    """A volume (column, row, slice), whose slices are those of `frames`, as a series in `folder`: a file for each of
    the source's. Values are kept to 1/65535 of the volume's range.

    Study, patient, equipment and geometry are the source's; series and images get new UIDs, which are unlike for every
    result. Private elements and overlays are left out. `anonymous` keeps a fixed list of attributes that name nobody,
    and makes the UIDs of study and frame of reference new too; faces stay in the pixels.
    """
    from pydicom.uid import generate_uid

    folder.mkdir()
    low, high = float(volume.min()), float(volume.max())
    rescale = (_decimal((high - low) / _LARGEST or 1.0), _decimal(low))
    moment = datetime.datetime.now()
    series: dict[str, str] = {"SeriesInstanceUID": generate_uid(prefix=None)}
    if anonymous:
        series |= {name: generate_uid(prefix=None) for name in ("StudyInstanceUID", "FrameOfReferenceUID")}
    for number, path in enumerate(dict.fromkeys(frame.path for frame in frames), start=1):
        places = sorted((frame.index, place) for place, frame in enumerate(frames) if frame.path == path)
        pixels = np.stack([volume[..., place].T for _, place in places])
        header = _derived(read_header(path), series, rescale, moment, anonymous, meaning)
        header.InstanceNumber = number
        header.PixelData = _stored(pixels, *rescale).tobytes()
        header["PixelData"].VR = "OW"
        header.save_as(folder / f"{number:05d}.dcm", enforce_file_format=True)


def _decimal(value: float) -> str:
    """As a decimal string (DS), of 16 characters at most."""
    return f"{value:.9g}"


def _stored(pixels: np.ndarray, slope: str, intercept: str) -> np.ndarray:
    values = (pixels.astype(np.float64) - float(intercept)) / float(slope)
    return np.round(values).clip(0, _LARGEST).astype("<u2")


def _derived(
    source: Any,
    series: dict[str, str],
    rescale: tuple[str, str],
    moment: datetime.datetime,
    anonymous: bool,
    meaning: Meaning,
) -> Any:
    """The header of a result, without pixels."""
    from pydicom.dataset import Dataset
    from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

    header = _without_person(source) if anonymous else _without_pixels(source)
    if not anonymous:
        reference = Dataset()
        reference.ReferencedSOPClassUID = source.get("SOPClassUID", "")
        reference.ReferencedSOPInstanceUID = source.get("SOPInstanceUID", "")
        header.SourceImageSequence = [reference]
    header.SOPInstanceUID = generate_uid(prefix=None)
    for name, value in series.items():
        setattr(header, name, value)
    header.SeriesNumber = int(source.get("SeriesNumber") or 0) + meaning.offset
    described = "" if anonymous else str(source.get("SeriesDescription") or "")
    purpose = f"{meaning.title}, {_PURPOSE}" if meaning.title else _PURPOSE
    room = _LONGEST_DESCRIPTION - len(purpose) - 3
    header.SeriesDescription = f"{described[:room]} ({purpose})".strip() if described else purpose
    header.DerivationDescription = meaning.derived
    header.ImageType = _derived_type(source.get("ImageType"))
    for name in ("InstanceCreation", "Content", "Series"):
        setattr(header, f"{name}Date", moment.strftime("%Y%m%d"))
        setattr(header, f"{name}Time", moment.strftime("%H%M%S"))
    _describe_pixels(header, *rescale)
    likely = EnhancedMRImageStorage if _is_enhanced(source) else MRImageStorage
    header.SOPClassUID = source.get("SOPClassUID") or likely
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    return header


def _without_pixels(source: Any) -> Any:
    from pydicom.dataset import Dataset, FileMetaDataset

    header = Dataset()
    header.file_meta = FileMetaDataset()
    for element in source:
        is_overlay = 0x6000 <= element.tag.group <= 0x60FF or 0x5000 <= element.tag.group <= 0x50FF
        if not (element.tag.is_private or is_overlay or element.keyword in _STALE):
            header[element.tag] = element
    header.remove_private_tags()
    return header


def _without_person(source: Any) -> Any:
    from pydicom.dataset import Dataset, FileMetaDataset

    header = Dataset()
    header.file_meta = FileMetaDataset()
    for name in _KEPT:
        if name in source:
            header[name] = source[name]
    header.PatientName, header.PatientID = "ANONYMOUS", ""
    empty = ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber")
    for name in (*empty, "ReferringPhysicianName", "PositionReferenceIndicator"):
        setattr(header, name, "")
    header.PatientIdentityRemoved = "YES"
    header.DeidentificationMethod = "Larmor: a fixed list of attributes kept; pixels unchanged"
    for group in (
        *header.get("SharedFunctionalGroupsSequence", []),
        *header.get("PerFrameFunctionalGroupsSequence", []),
    ):
        for element in list(group):
            if element.keyword not in _KEPT_GROUPS:
                del group[element.tag]
    return header


def _is_enhanced(header: Any) -> bool:
    """Whether places and meanings stand in groups for each frame; plain images may state a NumberOfFrames of 1."""
    return bool(header.get("PerFrameFunctionalGroupsSequence") or header.get("SharedFunctionalGroupsSequence"))


def _derived_type(kinds: Any) -> list[str]:
    return ["DERIVED", "SECONDARY", *(str(kind) for kind in list(kinds or [])[2:])]


def _describe_pixels(header: Any, slope: str, intercept: str) -> None:
    """Unsigned 16 bits, and what they mean: for the file, in an enhanced one for all of its frames."""
    from pydicom.dataset import Dataset

    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 0
    header.SamplesPerPixel, header.LossyImageCompression = 1, header.get("LossyImageCompression", "00")
    values = Dataset()
    values.RescaleIntercept, values.RescaleSlope, values.RescaleType = intercept, slope, "US"
    width = _LARGEST * float(slope)
    window = {"WindowCenter": _decimal(float(intercept) + width / 2), "WindowWidth": _decimal(max(width, 1e-6))}
    if not _is_enhanced(header):
        header.update(values)
        for name, value in window.items():
            setattr(header, name, value)
        return
    for group in header.get("PerFrameFunctionalGroupsSequence", []):
        for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence", "RealWorldValueMappingSequence"):
            if name in group:
                del group[name]
        for item in group.get("MRImageFrameTypeSequence", []):
            item.FrameType = _derived_type(item.get("FrameType"))
    if not header.get("SharedFunctionalGroupsSequence"):
        header.SharedFunctionalGroupsSequence = [Dataset()]
    shared = header.SharedFunctionalGroupsSequence[0]
    shared.PixelValueTransformationSequence = [values]
    shown = Dataset()
    shown.WindowCenter, shown.WindowWidth = window["WindowCenter"], window["WindowWidth"]
    shared.FrameVOILUTSequence = [shown]
    for item in shared.get("MRImageFrameTypeSequence", []):
        item.FrameType = _derived_type(item.get("FrameType"))
