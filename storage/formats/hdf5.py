"""Which of the HDF5 formats a file is."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import h5py

from larmor.storage.objects.errors import InputError

SUFFIXES = (".h5", ".hdf5", ".mrd", ".ismrmrd")


def kind(path: Path) -> Literal["fastmri", "mrd"]:
    """The format of the HDF5 file at `path`, by its datasets: `kspace`, or a group with `xml` and `data`.

    Raises `InputError` for a file that is missing, not HDF5 or truncated, or holds something else.
    """
    with open_file(path) as file:
        if isinstance(file.get("kspace"), h5py.Dataset):
            return "fastmri"
        if mrd_groups(file):
            return "mrd"
        found = ", ".join(_describe(file)) or "nothing"
    raise InputError(
        f"{path}: is neither fastMRI (dataset 'kspace') nor ISMRMRD (datasets 'xml' and 'data' in a group); it holds "
        f"{found}. Write its k-space as a .npy array (slice, coil, height, width) to use it"
    )


def open_file(path: Path) -> h5py.File:
    """Open for reading. Raises `InputError` for a file that is missing, not HDF5 or truncated."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        if not h5py.is_hdf5(path):
            raise InputError(f"{path}: is not an HDF5 file, despite its suffix; export or fetch it again")
        return h5py.File(path, "r")
    except OSError as error:
        raise InputError(f"{path}: cannot be opened as HDF5 ({error}); truncated? fetch it again") from error


def mrd_groups(file: h5py.File) -> list[str]:
    """The groups that hold ISMRMRD acquisitions, sorted."""
    groups = [(name, item) for name, item in file.items() if isinstance(item, h5py.Group)]
    return [name for name, group in groups if "xml" in group and isinstance(group.get("data"), h5py.Dataset)]


def _describe(file: h5py.File) -> list[str]:
    """The first datasets with their shapes; names and sizes say what a file is, values are not looked at."""
    found: list[str] = []

    def visit(name: str, item: object) -> bool | None:
        if isinstance(item, h5py.Dataset):
            found.append(f"{name} {item.shape}")
        return True if len(found) >= 8 else None

    file.visititems(visit)
    return found
