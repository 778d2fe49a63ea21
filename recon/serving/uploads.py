"""A volume that was sent whole, and its answer: what `larmor reconstruct` writes of the same file."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from larmor.recon.models.model import Model
from larmor.recon.models.reconstruct import ScanReport, reconstruct_scans
from larmor.recon.models.results import ResultOptions, check_format
from larmor.recon.models.scans import check_field_of_view, open_scans
from larmor.storage.objects.errors import InputError

SUFFIXES = (".npy", ".nii", ".nii.gz", ".h5", ".mrd")
LARGEST_VOXELS = 2**28
"""Of a NIfTI volume; a compressed one may be far larger than what was sent."""
_KINDS = {".npy": "application/octet-stream", ".gz": "application/gzip", ".h5": "application/x-hdf5"}
_NAME = "volume"  # of its file here; a name from outside is no path


@dataclass(frozen=True)
class Upload:
    """The bytes of a file whose kind the `suffix` says; the others are those of `larmor reconstruct`."""

    content: bytes
    suffix: str
    format: str = "auto"
    field_of_view: str = "whole"
    undersample: bool = False


@dataclass(frozen=True)
class Answer:
    """An HTTP `status` and body; `name` is that of the file in it, empty where it is a sentence."""

    status: int
    content: bytes
    kind: str = "text/plain; charset=utf-8"
    name: str = ""
    num_slices: int = 0


def refusal(status: HTTPStatus, sentence: str) -> Answer:
    """What is wrong with a request."""
    return Answer(int(status), f"{sentence}\n".encode())


def answer(model: Model, upload: Upload, batch_size: int) -> Answer:
    """The reconstruction of a volume as a file, or why there is none (400, 415)."""
    if upload.suffix not in SUFFIXES:
        return refusal(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"'{upload.suffix}' cannot be read; send one of {', '.join(SUFFIXES)}"
        )
    with tempfile.TemporaryDirectory(prefix="larmor-upload-") as scratch:
        path = Path(scratch, _NAME + upload.suffix)
        path.write_bytes(upload.content)
        try:
            report = _reconstructed(model, upload, path, batch_size)
        except InputError as error:
            return refusal(HTTPStatus.BAD_REQUEST, str(error).replace(f"{scratch}/", ""))
        result = report.files[0]
        return Answer(int(HTTPStatus.OK), result.read_bytes(), _KINDS[result.suffix], result.name, report.num_slices)


def _reconstructed(model: Model, upload: Upload, path: Path, batch_size: int) -> ScanReport:
    if upload.format == "dicom":
        raise InputError("format dicom: the answer is one file; choose nifti, h5 or npy")
    options = ResultOptions(check_format(upload.format), pictured=False)
    whole = check_field_of_view(upload.field_of_view)
    _check_voxels(path)
    with open_scans(str(path), model.physics, undersample=upload.undersample, whole=whole) as scans:
        if len(scans) != 1:
            raise InputError(f"the file holds {len(scans)} scans; send one")
        (report,) = reconstruct_scans(model, scans, path.parent / "results", batch_size, options=options)
    if report.problem:
        raise InputError(report.problem)
    return report


def _check_voxels(path: Path) -> None:
    if ".nii" not in path.suffixes:
        return
    import math

    import nibabel

    try:
        count = math.prod(nibabel.load(path).shape)  # type: ignore[attr-defined]
    except Exception:  # the reader says what is wrong with it
        return
    if count > LARGEST_VOXELS:
        raise InputError(f"the volume has {count} voxels; at most {LARGEST_VOXELS} are taken")
