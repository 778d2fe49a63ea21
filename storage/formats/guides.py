"""A second contrast of the same person beside each scan: which belongs to which, and whether it lies on its grid."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from larmor.storage.formats.dicom_header import read_head
from larmor.storage.formats.fastmri import subject_key
from larmor.storage.formats.source import Source, SourceRef
from larmor.storage.formats.subjects import bids_subject
from larmor.storage.formats.suffixes import identity, stem_of
from larmor.storage.formats.volumes import VolumeSource
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.urls import is_remote

_TOLERANCE = 0.1  # of a voxel, between the places of two grids
_RESAMPLE = "register it and resample it onto the scan's grid (nilearn's resample_to_img, FSL's flirt, ANTs)"


def with_guides(refs: Sequence[SourceRef], guides: Sequence[SourceRef]) -> list[SourceRef]:
    """Each scan with its guide: the one of the same subject or, where a subject has several scans, of the same name.

    A single scan and a single guide belong together, whatever they are called. Guides that no scan wants are left.
    Raises `InputError` for a scan without a guide, for one with several, for one that would guide itself, and where
    both say whom they show and it is not the same person.
    """
    if len(refs) == len(guides) == 1:
        return [_paired(refs[0], guides[0])]
    of_subject: dict[str, list[SourceRef]] = defaultdict(list)
    for guide in guides:
        of_subject[guide.subject].append(guide)
    num_scans: dict[str, int] = defaultdict(int)
    for ref in refs:
        num_scans[ref.subject] += 1
    return [_paired(ref, _chosen(ref, of_subject[ref.subject], num_scans[ref.subject])) for ref in refs]


def _chosen(ref: SourceRef, guides: Sequence[SourceRef], num_scans: int) -> SourceRef:
    named = [guide for guide in guides if guide.name == ref.name]
    found = guides if len(guides) == num_scans == 1 else named
    if len(found) == 1:
        return found[0]
    shown = f"{len(guides)} guides ({guides[0].name}, …)" if guides else "no guide"
    raise InputError(
        f"{ref.files[0]}: subject '{ref.subject}' has {shown} for {num_scans} scan(s), and none of them is called "
        f"{ref.name}; give one guide for each subject (--subject says who a path shows), or guides that are called as "
        "their scans, or leave the scan out"
    )


def _paired(ref: SourceRef, guide: SourceRef) -> SourceRef:
    if {identity(file) for file in ref.files} & {identity(file) for file in guide.files} and ref.part == guide.part:
        raise InputError(f"{ref.files[0]}: would be its own guide; give another contrast of the same person")
    (stated, own), (other_stated, other) = stated_person(ref), stated_person(guide)
    if stated == other_stated and own != other:
        raise InputError(
            f"{guide.files[0]}: cannot guide {ref.files[0]}, because their {stated} differ: they show two persons; "
            "give another contrast of the same person"
        )
    return replace(ref, guide=guide)


def stated_person(ref: SourceRef) -> tuple[str, str]:
    """Where a scan says whom it shows, and what it says there; empty where it says nothing. To compare in memory
    only: it must not be stored or printed."""
    file = ref.files[0]
    if ref.format == "dicom":
        header = read_head(file)
        return _stated("PatientIDs", None if header is None else header.get("PatientID"))
    if ref.format == "fastmri" and not is_remote(file):
        return _stated("attributes patient_id", subject_key(Path(file)))
    return _stated("BIDS names", bids_subject(stem_of(file)))


def _stated(where: str, who: object) -> tuple[str, str]:
    return (where, str(who)) if who else ("", "")


def check_grid(ref: SourceRef, source: Source, guide: Source) -> None:
    """Raises `InputError` unless the slices of `guide` lie where those of `source` do, as far as their files say."""
    assert ref.guide is not None
    name = ref.guide.files[0]
    for what, own, other in (
        ("slices", source.num_slices, guide.num_slices),
        ("coils, rows and columns", source.slice_shape, guide.slice_shape),
    ):
        if own != other:
            raise InputError(
                f"{name}: is the guide of {ref.files[0]}, but has {_shown(other)} {what}, not {_shown(own)}; "
                f"{_RESAMPLE}"
            )
    if isinstance(source, VolumeSource) and isinstance(guide, VolumeSource):
        _check_places(ref, source, guide)


def _check_places(ref: SourceRef, source: VolumeSource, guide: VolumeSource) -> None:
    """The same voxels of the file, and each at the same place."""
    assert ref.guide is not None
    shapes = [one.grid.shape if one.grid else () for one in (source, guide)]
    height, width = source.slice_shape[1:]
    corners = np.array(np.meshgrid([0, width - 1], [0, source.num_slices - 1], [0, height - 1], [1])).reshape(4, -1)
    places = [one.affine((height, width)) @ corners for one in (source, guide)]
    apart = float(np.linalg.norm(places[0] - places[1], axis=0).max())
    least = min(source.voxel_size or (1.0,))
    if shapes[0] != shapes[1] or apart > _TOLERANCE * least:
        raise InputError(
            f"{ref.guide.files[0]}: is the guide of {ref.files[0]}, but lies on another grid: "
            f"{_shown(shapes[1])} voxels, up to {apart:.3g} mm off {_shown(shapes[0])} of the scan; {_RESAMPLE}"
        )


def _shown(size: object) -> str:
    return "×".join(map(str, size)) if isinstance(size, tuple | list) else str(size)
