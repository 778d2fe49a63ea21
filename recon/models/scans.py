"""What there is to reconstruct: scans in files of every format, or the volumes of a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from larmor.recon.inference.inference import Physics
from larmor.recon.models.measured import calibrated_maps
from larmor.recon.physics.coils import Change, coils_of_scan
from larmor.recon.physics.feed import DeviceBatch
from larmor.recon.physics.masks import make_mask
from larmor.recon.recipe.mask_config import MaskConfig
from larmor.recon.recipe.signal import check_modality, no_phase
from larmor.storage.formats.arrays import MagnitudeImages
from larmor.storage.formats.guides import check_grid, with_guides
from larmor.storage.formats.measured import MeasuredKspace
from larmor.storage.formats.nifti_series import SeriesSource
from larmor.storage.formats.recognise import find_sources, open_source
from larmor.storage.formats.sensitivity import estimate_sensitivity_maps
from larmor.storage.formats.source import Plane, Source, SourceOptions, SourceRef
from larmor.storage.formats.suffixes import stem_of
from larmor.storage.formats.volumes import VolumeSource
from larmor.storage.loading.config import DataConfig, open_reader
from larmor.storage.loading.loader import Batch
from larmor.storage.loading.reader import SliceReader
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.local_names import leads_out
from larmor.storage.objects.object_store import ObjectStore
from larmor.storage.objects.urls import is_remote

_MATRIX = 256  # into which volumes are cut for training; images of a larger model get larger slices


@dataclass(frozen=True)
class Slices:
    """An open scan. `read` gives some of its slices, numbered from 0, as a batch whose samples are (0, number in the
    scan), which masks depend on.

    `measured`: the k-space is as it was measured, zero where nothing was; else it is whole and is undersampled.
    `coils` is what a batch on the device goes through (see `coils_of_split`).
    `affine` (4, 4) is that of all slices as a volume (see `slice_affine`), if they are of one; of the frames of a
    series, that of their one slice, with `seconds` between them; `volume` is the source whose slices show its whole
    field of view, and that places them on its grid. `size` is that to which images are cut or padded; None: whole.
    `notes` are those of `Source`; `offset` is the intensity that the source's images have beyond these.
    """

    num_slices: int
    read: Callable[[Sequence[int]], Batch]
    measured: bool
    coils: Change
    affine: np.ndarray | None = None
    notes: Sequence[str] = ()
    offset: float = 0.0
    seconds: float | None = None
    size: tuple[int, int] | None = None
    volume: VolumeSource | None = None

    def size_of(self, batch: DeviceBatch, trained: tuple[int, int]) -> tuple[int, int]:
        """(height, width) at which a batch of these slices is reconstructed, by a model `trained` at a size.

        Whole slices are padded to at least that size: there the model knows the mask, which is drawn for a size.
        """
        height, width = batch.size
        if self.size is not None or self.measured:
            return self.size or (height, width)
        return max(height, trained[0]), max(width, trained[1])


@dataclass(frozen=True)
class Scan:
    """A scan by its name; nothing of it is read before `open`, which raises `InputError` that names its file."""

    name: str
    open: Callable[[], AbstractContextManager[Slices]]


@contextmanager
def open_scans(
    source: str,
    physics: Physics,
    split: str | None = None,
    undersample: bool = False,
    mask: str | None = None,
    say: Callable[[str], object] = lambda line: None,
    plane: Plane = "coronal",
    whole: bool = False,
    guide: str | None = None,
) -> Iterator[Sequence[Scan]]:
    """The scans that `source` names: a file, folder, pattern or URL (see `find_sources`), or a data set's split.

    Images, and the slices of a data set (`split`: test, if it is not given), are whole. The k-space of other files
    is taken as measured, where the .npy file `mask` says (see `MaskConfig`), else where the scan says, else where
    it holds more than a residue; with `undersample` it is to be whole too. `plane` is that of slices cut from
    images. `whole` shows the whole field of view; else images are cut or padded to the size that the model was trained
    on. `guide` names the scans of the same persons in another contrast, for a model that sees one (see `with_guides`);
    a data set holds its own. `say` is told what is passed over.

    Raises `InputError` if there is nothing of the kind, and for guides that are missing or not wanted.
    """
    _check_guide(source, physics, guide)
    if mask is not None and (undersample or is_dataset(source)):
        other = "--undersample says that all was measured" if undersample else f"{source} is a data set, which is whole"
        raise InputError(f"--mask {mask} says what of k-space was measured, but {other}; leave one of them out")
    if physics.signal.mode == "pet" and not is_dataset(source):
        raise InputError(
            f"{source}: a model with signal.mode=pet reconstructs simulated scans of a data set; make one with `larmor "
            "pet simulate` and `larmor convert`, and name it"
        )
    if not is_dataset(source):
        if split is not None:
            raise InputError(f"--split {split}: {source} is not a data set, which alone has splits; leave it out")
        refs = [_named_for_its_file(ref, source) for ref in find_sources([source], say, plane=plane)]
        _check_names(source, [ref.name for ref in refs], "give the arrays in it other names")
        if guide is not None:
            refs = with_guides(refs, find_sources([guide], plane=plane))
        yield [Scan(ref.name, partial(_open_file, ref, physics, undersample, mask, plane, whole)) for ref in refs]
        return
    config = DataConfig(url=source, memory_cache_bytes=0, disk_cache_bytes=0)
    with closing(open_reader(config, split or "test", constant=True, **physics.signal.beside)) as reader:
        check_modality(reader.info.modality, physics.signal)
        _check_names(source, reader.info.volumes, "convert it again")
        yield [Scan(name, partial(_open_volume, reader, name, physics, whole)) for name in reader.info.volumes]


def _check_guide(source: str, physics: Physics, guide: str | None) -> None:
    """Raises `InputError` for a guide where none is wanted, and where one is wanted and missing."""
    if guide is not None and not physics.signal.guide:
        raise InputError(f"--guide {guide}: the model sees no second contrast (signal.guide=false); leave it out")
    if guide is not None and is_dataset(source):
        raise InputError(f"--guide {guide}: {source} is a data set, which holds its own guides; leave it out")
    if guide is None and physics.signal.guide and not is_dataset(source):
        raise InputError(
            f"{source}: the model sees a second contrast beside each scan (signal.guide); name it with `larmor "
            "reconstruct --guide`, or use a data set that was converted with --guide"
        )


def _named_for_its_file(ref: SourceRef, source: str) -> SourceRef:
    """A DICOM file that is given by itself: a series is named for its folder, so that the results of two files of one
    folder would take each other's place."""
    is_alone = ref.format == "dicom" and ref.files == (source,)
    return replace(ref, name=stem_of(source)) if is_alone else ref


def check_field_of_view(name: str) -> bool:
    """Whether it is the whole one. Raises `InputError` for another word than `whole` and `model`."""
    if name not in ("whole", "model"):
        raise InputError(f"--field-of-view {name}: choose one of whole, model")
    return name == "whole"


def _check_names(source: str, names: Iterable[str], remedy: str) -> None:
    """Raises `InputError` if a scan cannot lend its name to the files that are made of it."""
    for name in names:
        if "/" in name or leads_out(name):
            raise InputError(f"{source}: has a volume '{name}', which cannot be the name of a file; {remedy}")


def is_dataset(source: str) -> bool:
    """Whether a path or URL is that of a data set."""
    if is_remote(source):
        return ObjectStore(source).exists("zarr.json")
    return (Path(source) / "zarr.json").is_file()


@contextmanager
def _open_volume(reader: SliceReader, name: str, physics: Physics, whole: bool) -> Iterator[Slices]:
    if physics.signal.keeps_coils and name in reader.info.image_volumes:
        raise no_phase(name)
    indices = reader.info.slices_of(name)
    coils = coils_of_scan(lambda places: reader.read(indices[list(places)].tolist()), len(indices), physics.signal)

    def read(places: Sequence[int]) -> Batch:
        chosen = indices[list(places)]
        batch = Batch.read(reader, np.stack([np.zeros_like(chosen), chosen], axis=1))
        # by the number in the scan, so that the images are those of the scan's own file
        return Batch(batch.groups, np.array([(0, reader.info.index[index]) for index in chosen]))

    offset, size = reader.info.offsets.get(name, 0.0), None if whole else physics.crop
    yield Slices(len(indices), read, measured=False, coils=coils, offset=offset, size=size)


@contextmanager
def _open_file(
    ref: SourceRef, physics: Physics, undersample: bool, mask: str | None, plane: Plane, whole: bool
) -> Iterator[Slices]:
    matrix = (max(_MATRIX, physics.crop[0]), max(_MATRIX, physics.crop[1]))
    options = SourceOptions(
        matrix, min_foreground=0.0, undersampled=not undersample, plane=plane, whole=whole, single=True
    )
    with ExitStack() as opened:
        source, guide = opened.enter_context(open_source(ref, options)), None
        if ref.guide is not None:
            guide = opened.enter_context(open_source(ref.guide, replace(options, undersampled=False)))
            check_grid(ref, source, guide)
        yield slices_of(source, ref.name, physics, undersample, mask, whole, guide)


def slices_of(
    source: Source,
    name: str,
    physics: Physics,
    undersample: bool = False,
    mask: str | None = None,
    whole: bool = True,
    guide: Source | None = None,
) -> Slices:
    """An open source as `open_scans` gives it, which says what the options mean; `guide` lies on its grid.

    Raises `InputError` for whole images where k-space of all coils is needed, or with a `mask`.
    """
    file = source if isinstance(source, MeasuredKspace) and not isinstance(source, MagnitudeImages) else None
    full = undersample or file is None
    if full and mask is not None:
        raise InputError(f"{name}: holds whole images; --mask says what of measured k-space there is, leave it out")
    if file is None and physics.signal.keeps_coils:
        raise no_phase(name)
    measured = None if mask is None else make_mask(MaskConfig(kind="file", file=mask), source.slice_shape[1:])

    read_kspace = partial(_read_kspace, source, file, full, measured)

    def read(places: Sequence[int]) -> Batch:
        kspace = read_kspace(places)
        maps = None
        if physics.signal.needs_maps and kspace.shape[1] > 1:
            estimate = estimate_sensitivity_maps if full else calibrated_maps
            maps = np.stack([estimate(item) if item.any() else np.zeros_like(item) for item in kspace])
        beside = None if guide is None else np.stack([guide.kspace(place) for place in places])
        return Batch.of(kspace, np.array([(0, place) for place in places]), maps, beside)

    coils = coils_of_scan(lambda places: list(read_kspace(places)), source.num_slices, physics.signal)
    size, affine, volume = None if whole else physics.crop, None, None
    if isinstance(source, VolumeSource):
        affine = source.affine(size or source.slice_shape[1:])
        volume = source if whole and source.grid else None
    seconds = source.position(1) if isinstance(source, SeriesSource) else None
    return Slices(source.num_slices, read, not full, coils, affine, source.notes, source.offset, seconds, size, volume)


def _read_kspace(
    source: Source, file: MeasuredKspace | None, whole: bool, measured: np.ndarray | None, places: Sequence[int]
) -> np.ndarray:
    """(slice, coil, height, width): whole slices, or the points that were measured, of a scan of k-space (`file`)."""
    kspace = np.stack([source.kspace(place) for place in places])
    for place, item in zip(places, kspace, strict=True):
        if not file or not item.any():
            continue
        if whole:
            file.check_lines(place, item)
        else:
            item *= file.measured(place, item) if measured is None else measured
    return kspace
