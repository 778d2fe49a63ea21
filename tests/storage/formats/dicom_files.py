"""Writes made-up DICOM series, one file for each slice or one enhanced file, whose every number is known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, RLELossless, generate_uid

SHAPE = (13, 17, 11)  # columns, rows, slices
DIRECTIONS = {  # along a row and along a column, LPS
    "axial": ((1, 0, 0), (0, 1, 0)),
    "coronal": ((1, 0, 0), (0, 0, -1)),
    "sagittal": ((0, 1, 0), (0, 0, -1)),
    "axial, feet first": ((-1, 0, 0), (0, 1, 0)),
}
PLANTED = ("Doe^Jane", "JD-4711", "19700203", "20240817", "St. Elsewhere", "Dr^Who", "ACC-99")


@dataclass(frozen=True)
class Scan:
    """A volume as it stands in a series: stored numbers (column, row, slice), place and meaning."""

    stored: np.ndarray
    directions: np.ndarray
    spacing: tuple[float, float, float] = (0.9, 1.4, 2.5)  # between columns, rows, slices
    slopes: np.ndarray | None = None
    intercept: float = -3.0
    patient: str = "JD-4711"
    number: int = 1
    uid: str = "1.2.3.4"
    study: str = "1.2.3"
    syntax: str = ExplicitVRLittleEndian

    @property
    def slope(self) -> np.ndarray:
        return np.full(self.stored.shape[2], 0.75) if self.slopes is None else self.slopes

    @property
    def values(self) -> np.ndarray:
        return self.stored * self.slope + self.intercept

    @property
    def affine(self) -> np.ndarray:
        """(column, row, slice) → LPS mm."""
        row, column = self.directions
        affine = np.eye(4)
        affine[:3, :3] = np.stack([row, column, np.cross(row, column)], axis=1) * self.spacing
        affine[:3, 3] = (-31.5, 17.25, 5)
        return affine


def make_scan(plane: str = "axial", degrees: float = 0, dtype: str = "int16", **changes: Any) -> Scan:
    limits = (-900, 3000) if dtype == "int16" else (0, 60_000)
    stored = np.random.default_rng(1).integers(*limits, SHAPE).astype(dtype)
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    tilt = turn[[2, 0, 1]][:, [2, 0, 1]]
    return Scan(stored, np.array(DIRECTIONS[plane], float) @ (turn @ tilt).T, **changes)


def texts(values: Any) -> list[str]:
    return [f"{value:.12g}" for value in np.ravel(values)]


def base(scan: Scan, sop_class: str) -> Dataset:
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = UID(scan.syntax)
    header.SOPClassUID, header.SOPInstanceUID = sop_class, generate_uid()
    header.SeriesInstanceUID, header.StudyInstanceUID = scan.uid, scan.study
    header.SeriesNumber, header.PatientID, header.Modality = scan.number, scan.patient, "MR"
    header.PatientName, header.PatientBirthDate, header.StudyDate = PLANTED[0], PLANTED[2], PLANTED[3]
    header.InstitutionName, header.ReferringPhysicianName, header.AccessionNumber = PLANTED[4:]
    header.MagneticFieldStrength, header.Manufacturer, header.SequenceName = "3", "ACME", "*tfl3d1"
    header.Rows, header.Columns = scan.stored.shape[1], scan.stored.shape[0]
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit = 16, 16, 15
    header.PixelRepresentation = int(scan.stored.dtype.kind == "i")
    return header


def pixels(scan: Scan, *places: int) -> bytes:
    return b"".join(np.ascontiguousarray(scan.stored[..., place].T).tobytes() for place in places)


def write_series(folder: Path, scan: Scan, seed: int = 0, prefix: str = "") -> list[Path]:
    """One file for each slice, its names in random order; returns them in order of their place."""
    folder.mkdir(parents=True, exist_ok=True)
    names = np.random.default_rng(seed).permutation(scan.stored.shape[2])
    paths = []
    for place, name in enumerate(names):
        header = base(scan, MRImageStorage)
        header.InstanceNumber = int(name) + 1
        header.ImagePositionPatient = texts(scan.affine[:3] @ [0, 0, place, 1])
        header.ImageOrientationPatient = texts(scan.directions)
        header.PixelSpacing = texts([scan.spacing[1], scan.spacing[0]])
        header.RepetitionTime, header.EchoTime, header.InversionTime, header.FlipAngle = "2300", "2.9", "900", "9"
        header.RescaleSlope, header.RescaleIntercept = texts([scan.slope[place], scan.intercept])
        header.PixelData = pixels(scan, place)
        header["PixelData"].VR = "OW"
        if scan.syntax == RLELossless:
            header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            header.compress(RLELossless)
        paths.append(folder / f"{prefix}{name:03}.dcm")
        header.save_as(paths[-1], enforce_file_format=True)
    return paths


def group(**values: Any) -> list[Dataset]:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return [item]


def write_enhanced(path: Path, scan: Scan, shared_orientation: bool = True) -> Path:
    """One file, its frames in random order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(2).permutation(scan.stored.shape[2])
    header = base(scan, EnhancedMRImageStorage)
    orientation = group(ImageOrientationPatient=texts(scan.directions))
    shared = Dataset()
    shared.PixelMeasuresSequence = group(PixelSpacing=texts([scan.spacing[1], scan.spacing[0]]))
    shared.MRTimingAndRelatedParametersSequence = group(RepetitionTime=2300.0, FlipAngle=9.0)
    if shared_orientation:
        shared.PlaneOrientationSequence = orientation
    header.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for place in order:
        frame = Dataset()
        frame.PlanePositionSequence = group(ImagePositionPatient=texts(scan.affine[:3] @ [0, 0, place, 1]))
        slope, intercept = texts([scan.slope[place], scan.intercept])
        frame.PixelValueTransformationSequence = group(RescaleSlope=slope, RescaleIntercept=intercept)
        if not shared_orientation:
            frame.PlaneOrientationSequence = orientation
        frames.append(frame)
    header.PerFrameFunctionalGroupsSequence = frames
    header.NumberOfFrames = len(order)
    header.PixelData = pixels(scan, *order)
    header["PixelData"].VR = "OW"
    header.save_as(path, enforce_file_format=True)
    return path
