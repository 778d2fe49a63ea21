"""Data sets: convert scans, verify a data set, describe it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from larmor.commands.feedback import QUIET, Feedback
from larmor.storage.conversion import convert as conversion
from larmor.storage.conversion.convert import ConvertOptions, VolumeReport
from larmor.storage.conversion.splits import read_splits_file
from larmor.storage.conversion.verify import VerifyReport
from larmor.storage.conversion.verify import verify as verify_dataset
from larmor.storage.dataset.dataset import read_root
from larmor.storage.dataset.describe import describe
from larmor.storage.formats.recognise import find_sources
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore
from larmor.storage.objects.parallel import default_threads

if TYPE_CHECKING:  # converting needs no PyTorch
    from larmor.recon.recipe.mask_config import MaskConfig
    from larmor.recon.recipe.settings import AugmentConfig
    from larmor.recon.recipe.signal import SignalConfig
    from larmor.recon.training.slice_dataset import SliceDataset


def convert(
    sources: str | Path | Sequence[str | Path],
    to: str,
    options: ConvertOptions | None = None,
    *,
    subject: str | None = None,
    guide: str | Path | Sequence[str | Path] = (),
    feedback: Feedback = QUIET,
) -> list[VolumeReport]:
    """Convert scans to a data set of k-space slices, split by subject (`larmor convert`).

    `sources` are files, folders, patterns or `s3://` URLs in any format that Larmor reads; `to` is a folder or
    `s3://BUCKET/PREFIX`. `subject` says which subject a scan belongs to: a regular expression that is searched in its
    path, or the number of folders above the file. `guide` are scans of the same subjects in a second contrast, on the
    same grid. Returns a report for each source. Raises `InputError` for bad
    sources, for impossible splits and for a data set that already exists (unless `options.overwrite`).
    """
    chosen = options or ConvertOptions()
    found, guides = (
        find_sources(_named(given), feedback.say, subject, chosen.plane) if given else [] for given in (sources, guide)
    )
    return conversion.convert(found, to, chosen, feedback.progress, guides)


def _named(given: str | Path | Sequence[str | Path]) -> list[str]:
    return [str(source) for source in ([given] if isinstance(given, str | Path) else given)]


def is_converted(url: str) -> bool:
    """Whether there is a data set at `url`. Raises `InputError` for one that this Larmor cannot read."""
    store = ObjectStore(url)
    if not store.exists("zarr.json"):
        return False
    read_root(store)
    return True


def held_out_subjects(
    splits: Path | None = None, validation: Sequence[str] = (), test: Sequence[str] = ()
) -> Mapping[str, Sequence[str]]:
    """`ConvertOptions.held_out`: of a YAML file if there is one, or by the subjects' names."""
    return read_splits_file(splits) if splits else {"validation": validation, "test": test}


def verify(url: str, threads: int | None = None, *, feedback: Feedback = QUIET) -> VerifyReport:
    """Read a whole data set and check every checksum, value and column (`larmor verify`).

    `problems` of the result is empty if nothing is wrong. Raises `InputError` if there is no data set.
    """
    return verify_dataset(url, feedback.progress, threads or default_threads())


def inspect(url: str, to: Path | None = None) -> list[str]:
    """Describe a data set in lines: shapes, chunks, shards, subjects, provenance (`larmor inspect`).

    With `to` a contact sheet of its slices is also written to that file (PNG). Raises `InputError` if there is no data
    set.
    """
    store = ObjectStore(url)
    lines = describe(store)
    if to:
        from larmor.recon.evaluation.sheet import write_contact_sheet

        write_contact_sheet(store, to)
    return list(lines)


def open_dataset(
    url: str | Path,
    split: str,
    *,
    mask: MaskConfig | Mapping[str, Any] | None = None,
    crop: tuple[int, int] | None = None,
    signal: SignalConfig | Mapping[str, Any] | None = None,
    augment: AugmentConfig | Mapping[str, Any] | None = None,
    shuffle: bool = True,
    seed: int = 0,
    drop_last: bool = False,
    rank: int | None = None,
    world_size: int | None = None,
    device: str = "cpu",
    data: Mapping[str, Any] | None = None,
) -> SliceDataset:
    """Open a split for a training loop of one's own: an iterable PyTorch data set, read and prepared as `train` does.

    `mask`, `signal`, `augment` and `data` take the keys of the experiment's sections of these names; with `mask=None`
    the images are fully sampled. `crop` (height, width) in pixels; None: as large as the largest slices. `seed` is that
    of order and motion; with `shuffle=False` slices come as they are stored. Ranks are those of `torch.distributed`, or
    `rank` of `world_size`; `drop_last` gives all ranks as many. On `device="cuda"`
    the samples are made on the GPU, which needs `num_workers=0`.

    Raises `InputError` for a data set or a split that does not exist, for an unknown key or an impossible value, and
    for a data set that lacks what `signal` needs.
    """
    from larmor.cluster.experiments.experiment import build
    from larmor.recon.training.slice_dataset import FULLY_SAMPLED, Dealing, SampleConfig, SliceDataset

    reading = dict(data or {})
    if twice := sorted({"url", "crop"} & reading.keys()):
        raise InputError(f"data: {' and '.join(twice)} cannot be given there; use open_dataset(url, split, crop=…)")
    reading |= {"url": str(url)} | ({} if crop is None else {"crop": tuple(crop)})
    sections = {"mask": FULLY_SAMPLED if mask is None else mask, "signal": signal, "augment": augment}
    given = {name: section for name, section in sections.items() if section is not None}
    config = build({"data": reading, "seed": seed, **given}, SampleConfig, "open_dataset")
    return SliceDataset(config, split, Dealing(shuffle, drop_last, rank, world_size), device, whole=crop is None)
