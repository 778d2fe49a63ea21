"""What every format gives: the slices of one scan as k-space, read one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, cast, get_args

import numpy as np

from larmor.storage.objects.errors import InputError

Fact = str | int | float | None | Sequence["Fact"]
Facts = dict[str, Fact]
Plane = Literal["coronal", "native"]
"""What a scan says of itself, by name, for the provenance in JSON; nothing that identifies a person."""


def check_plane(name: str) -> Plane:
    """`name`, if it is a plane. Raises `InputError` for another word."""
    for plane in get_args(Plane):
        if name == plane:
            return cast(Plane, plane)
    raise InputError(f"--plane {name}: choose one of {', '.join(get_args(Plane))}")


@dataclass(frozen=True)
class SourceRef:
    """One scan that a conversion was asked for: where it lies, before anything of it is read.

    `name` is unique among the scans of a conversion and becomes the volume's name; `subject` is the person
    it shows; `files` are local paths or `s3://` URLs, sorted; `part` chooses one of several scans in one file; `guide`
    is a scan of the same person in another contrast, on the same grid (`guides.py`).
    """

    format: str
    name: str
    subject: str
    files: tuple[str, ...]
    part: str = ""
    guide: SourceRef | None = None


@dataclass(frozen=True)
class SourceOptions:
    """How images are cut into slices: `matrix` (height, width), the least share of foreground pixels, and the plane:
    coronal, or the `native` one, in which the file's slices follow each other.

    `whole` takes the whole field of view instead of `matrix`; with `single`, one image alone is a scan, too.

    Measured k-space is kept as it is; neither applies to it. It is refused if lines are missing, unless
    `undersampled` says that no target is to be made of it.
    """

    matrix: tuple[int, int] = (256, 256)
    min_foreground: float = 0.15
    undersampled: bool = False
    plane: Plane = "coronal"
    whole: bool = False
    single: bool = False


class Source(Protocol):
    """The slices of one scan, from local files. Opened by a format's `open_source`; closed by who opened it.

    `slice_shape` is (coil, height, width), the same for all slices; `voxel_size` is in mm, (row, column,
    slice) of the stored slices, None where the file does not say; `plane` is "coronal" or "native" for images that
    are cut here and "acquired" for measured k-space; `about` holds further facts for the provenance
    (nothing that identifies a person). `notes` are sentences for the user: what was repaired in the file, or
    taken for what it does not say. `offset` is the intensity that was taken off every pixel of an image before its
    transform, and that has to be added to a reconstruction.
    """

    num_slices: int
    slice_shape: tuple[int, int, int]
    voxel_size: tuple[float, float, float] | None
    plane: str
    about: Facts
    notes: Sequence[str]

    @property
    def offset(self) -> float: ...

    def kept_slices(self) -> Sequence[int]:
        """The slices worth storing, ascending: enough foreground in an image, any signal in k-space."""
        ...

    def position(self, index: int) -> float:
        """Distance of a slice from the first face of the volume in mm, or of a frame from the first one in seconds
        (index where the spacing is unknown)."""
        ...

    def kspace(self, index: int) -> np.ndarray:
        """(coil, height, width) complex64, centred: zero frequency at [n // 2]; orthonormal FFT of the image.

        Raises `InputError` that names the file if the slice cannot be read or is not finite.
        """
        ...

    def close(self) -> None:
        """Release files and memory."""
        ...


class OpenSource(Protocol):
    """The function `open_source` of a format's module."""

    def __call__(self, ref: SourceRef, files: Sequence[Path], options: SourceOptions) -> Source:
        """Open `ref`, whose content lies in the local `files`.

        Raises `InputError` that names the file, what is wrong and the remedy.
        """
        ...
