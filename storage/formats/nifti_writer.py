"""Results as NIfTI on the grid of their source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from larmor.storage.formats.grid import Grid

_FREE_TEXT = ("db_name", "aux_file", "intent_name", "data_type")  # where names of persons have been found
_SCANNER = 1  # NIFTI_XFORM_SCANNER_ANAT


def write_on_grid(data: np.ndarray, grid: Grid, path: Path, what: str = "reconstruction") -> None:
    """An array in the order and shape of `grid` as float32: with the sform, qform and units of a NIfTI source.

    Of the source's free text nothing is kept; the description says `what` it is. Arrays that are mapped from a file are
    written plane by plane.
    """
    import nibabel

    if grid.header is None:
        image: Any = nibabel.Nifti1Image(data, grid.affine)
        image.set_sform(grid.affine, _SCANNER)
        # a qform cannot hold a shear; then the sform alone says where the voxels lie
        image.set_qform(grid.affine, _SCANNER if _is_rigid(grid.affine) else 0)
        image.header.set_xyzt_units("mm")
    else:
        header = grid.header.copy()
        kind: Any = nibabel.Nifti2Image if isinstance(header, nibabel.Nifti2Header) else nibabel.Nifti1Image
        header.set_data_shape(data.shape)
        header["cal_min"] = header["cal_max"] = 0
        for name in _FREE_TEXT:
            if name in header.keys():  # noqa: SIM118  a structure of NumPy: `in` looks at values
                header[name] = b""
        image = kind(data, None, header)
    image.header["descrip"] = f"Larmor {what}, research use only".encode()
    image.set_data_dtype(np.float32)
    nibabel.save(image, path)


def _is_rigid(affine: np.ndarray) -> bool:
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return np.allclose(axes.T @ axes, np.eye(3), atol=1e-4)
