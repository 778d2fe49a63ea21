"""The file that a reconstructed scan becomes: NIfTI, a DICOM series, fastMRI's HDF5 or NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np

from larmor.recon.models.scans import Slices
from larmor.storage.formats.dicom_writer import IMAGES, Meaning, write_series
from larmor.storage.formats.nifti_writer import write_on_grid
from larmor.storage.objects.errors import InputError

SUFFIXES = (".nii.gz", "", ".h5", ".npy")
"""Of results; a DICOM series is a folder."""
Format = Literal["auto", "nifti", "dicom", "h5", "npy"]


def check_format(name: str) -> Format:
    """`name`, if it is a format of results. Raises `InputError` for another word."""
    for known in get_args(Format):
        if name == known:
            return cast(Format, known)
    raise InputError(f"--format {name}: choose one of {', '.join(get_args(Format))}")


@dataclass(frozen=True)
class ResultOptions:
    """The format of results, `auto`: NIfTI for volumes of images, else NumPy; `anonymous` names nobody in DICOM;
    `pictured`: with a PNG and a page to look at.

    Raises `InputError` if the two do not fit.
    """

    format: Format = "auto"
    anonymous: bool = False
    pictured: bool = True

    def __post_init__(self) -> None:
        if self.anonymous and self.format != "dicom":
            raise InputError(
                f"--anonymous with --format {self.format}: DICOM alone names persons; choose --format dicom, or leave "
                "it out"
            )

    def check(self, name: str, slices: Slices) -> None:
        """Raises `InputError` if a scan has not what the format needs."""
        place = slices.volume.grid if slices.volume else None
        if self.format == "dicom" and not (place and place.frames):
            is_cut = slices.volume is None and slices.affine is not None
            reason = (
                "with --field-of-view model, or for a series in time, images do not lie on their source's grid"
                if is_cut
                else f"{name} is no DICOM series, of which patient, study and place could be taken"
            )
            raise InputError(f"--format dicom: {reason}; choose nifti, h5 or npy, or leave it out")
        if self.format == "nifti" and slices.volume is None and slices.affine is None:
            raise InputError(
                f"--format nifti: {name} does not say where its images lie in space; choose h5 or npy, or leave it out"
            )


def write_result(images: Path, slices: Slices, options: ResultOptions, meaning: Meaning = IMAGES) -> Path:
    """Turn the .npy file `images` (slice, height, width) into the result beside it; returns its file, or folder.
    `meaning` is what DICOM says of the pixels."""
    has_place = slices.volume is not None or slices.affine is not None
    wanted = ("nifti" if has_place else "npy") if options.format == "auto" else options.format
    data = np.load(images, mmap_mode="r")
    match wanted:
        case "nifti" if slices.volume is not None and slices.volume.grid is not None:
            path = images.with_suffix(".nii.gz")
            write_on_grid(slices.volume.on_grid(data), slices.volume.grid, path)
        case "nifti":
            assert slices.affine is not None, "checked before"
            path = images.with_suffix(".nii.gz")
            write_nifti(data, slices.affine, path, slices.seconds)
        case "dicom":
            assert slices.volume is not None, "checked before"
            assert slices.volume.grid is not None, "checked before"
            path = images.with_suffix("")
            write_series(slices.volume.on_grid(data), slices.volume.grid.frames, path, options.anonymous, meaning)
        case "h5":
            path = images.with_suffix(".h5")
            _write_h5(data, path)
        case _:
            return images if slices.volume is None else _write_npy(slices.volume.on_grid(data), images)
    return path


def _write_h5(data: np.ndarray, path: Path) -> None:
    """As fastMRI wants results: the dataset `reconstruction` (slice, height, width)."""
    import h5py

    with h5py.File(path, "w") as file:
        stored = file.create_dataset("reconstruction", data.shape, np.float32)
        for place, image in enumerate(data):
            stored[place] = image
        file.attrs["description"] = "Larmor reconstruction, research use only"


def _write_npy(data: np.ndarray, images: Path) -> Path:
    """In the order and shape of the source's array."""
    turned = images.with_suffix(".turned.npy")
    with turned.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": data.shape})
        for plane in data:
            file.write(np.ascontiguousarray(plane, "<f4").data)
    return turned.replace(images)


def write_nifti(images: np.ndarray, affine: np.ndarray, path: Path, seconds: float | None = None) -> None:
    """Images (slice, height, width) as a NIfTI volume (of coronal ones left→right, posterior→anterior,
    inferior→superior); with `seconds` between them, as frames of one slice, a 4-D NIfTI (width, height, 1, frame).

    Images that are mapped from a file are written plane by plane.
    """
    import nibabel

    volume = images[:, ::-1, ::-1].transpose(2, 0, 1)
    if seconds is not None:
        volume, affine = volume.transpose(0, 2, 1)[:, :, None], affine[:, [0, 2, 1, 3]]
    written: Any = nibabel.Nifti1Image(volume.astype(np.float32, copy=False), affine)
    if seconds is not None:
        written.header["pixdim"][4] = seconds
        written.header.set_xyzt_units("mm", "sec")
    nibabel.save(written, path)
