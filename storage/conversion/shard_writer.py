"""The second pass of a conversion: shards, in any order, by several threads, each at most once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import groupby

import numpy as np

from larmor.storage.conversion.examine import PassOptions, read_slice
from larmor.storage.conversion.journal import Journal
from larmor.storage.conversion.open_sources import OpenSources, Read
from larmor.storage.dataset import writing
from larmor.storage.dataset.dataset import GUIDE, SPLITS, shard_path
from larmor.storage.dataset.expected_objects import expected_objects, foreign_prefixes, shard_bytes
from larmor.storage.dataset.layout import Bucket, ShardPlan, SplitLayout
from larmor.storage.dataset.writing import StoredShard
from larmor.storage.formats.recognise import open_files
from larmor.storage.formats.sensitivity import estimate_sensitivity_maps
from larmor.storage.formats.source import SourceRef
from larmor.storage.formats.staging import FileFacts, file_facts, staged
from larmor.storage.objects.errors import InputError


def require_sigpy() -> None:
    """Raises `InputError` if sensitivity maps cannot be estimated here."""
    try:
        import sigpy.mri.app  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"sensitivity maps need SigPy ({error}); install it with pip install 'larmor-mri[maps]'"
        ) from error


@dataclass(frozen=True)
class Beside:
    """What is stored beside the k-space: maps of its coils, and a second contrast."""

    sensitivity_maps: bool = False
    guides: bool = False

    def kinds_of(self, bucket: Bucket) -> tuple[str, ...]:
        """The arrays that a bucket gets; a single coil's map would say nothing."""
        guide = (GUIDE,) if self.guides else ()
        maps = ("sensitivity_maps",) if self.sensitivity_maps and bucket.shape[0] > 1 else ()
        return ("kspace", *maps, *guide)


def clear_place(journal: Journal, layouts: Mapping[str, SplitLayout], beside: Beside, overwrite: bool) -> None:
    """Unpublish the old data set, if there is one, and delete all of it that will not be written over.

    What will be is left alone, so that a second process that does the same conversion loses nothing.

    Raises `InputError` if a data set was published meanwhile (unless `overwrite`).
    """
    if journal.is_cleared:
        return
    store = journal.store
    writing.refuse_occupied(store, overwrite)
    store.delete("zarr.json")  # first: readers see no data set rather than a mixture of two
    expected: set[str] = set()
    for split, layout in layouts.items():
        arrays = [
            (kind, bucket.number, bucket.num_shards) for bucket in layout.buckets for kind in beside.kinds_of(bucket)
        ]
        expected |= expected_objects(split, arrays)
    found = {path: size for path, size in store.list().items() if path.split("/")[0] in SPLITS}
    for prefix in foreign_prefixes(found, expected):
        store.delete(prefix)
    journal.mark_cleared()


class ShardWriter:
    """Writes shards from the sources `refs`, whose files must still be as `facts` says, first of the sources, then of
    their guides. Shared by threads.

    Memory: for each thread one shard three times (its slices, and twice while they are encoded) and one source.
    """

    def __init__(
        self, refs: Sequence[SourceRef], facts: Sequence[FileFacts], journal: Journal, options: PassOptions
    ) -> None:
        guides = [ref.guide for ref in refs if ref.guide is not None]
        self._refs, self._facts, self._journal, self._options = [*refs, *guides], facts, journal, options
        self._beside = Beside(options.sensitivity_maps, bool(guides))
        self._numbers = {ref.name: number for number, ref in enumerate(refs)}
        self._sources = OpenSources(self._open, options.num_threads)

    def close(self) -> None:
        """Close the sources; no thread may be writing."""
        self._sources.close()

    def write(self, layout: SplitLayout, plan: ShardPlan) -> dict[str, StoredShard]:
        """Store the shards of `plan` that are not there yet; each by its kind (see `Beside`).

        Raises `InputError` if a source has changed or another conversion has taken the place.
        """
        kinds = self._beside.kinds_of(plan.bucket)
        stored = {kind: known for kind in kinds if (known := self._recorded(layout, plan, kind))}
        if len(stored) < len(kinds):
            slices = self._read(layout, plan)
            for kind in kinds:
                if kind == "sensitivity_maps":
                    for row, kspace in enumerate(slices):  # in place: there is no room for both
                        slices[row] = estimate_sensitivity_maps(kspace)
                if kind == GUIDE and kind not in stored:
                    slices = self._read(layout, plan, len(self._numbers))
                if kind not in stored:
                    self._journal.check()
                    stored[kind] = writing.write_shard(self._journal.store, layout.split, kind, plan, slices)
                    self._journal.write(_record_name(layout, plan, kind), asdict(stored[kind]))
        return {kind: stored[kind] for kind in kinds}

    def _recorded(self, layout: SplitLayout, plan: ShardPlan, kind: str) -> StoredShard | None:
        """A shard that an interrupted conversion has stored."""
        record = self._journal.read(_record_name(layout, plan, kind))
        size = shard_bytes(len(plan.rows), plan.bucket.chunk_bytes, plan.bucket.shard_slices)
        path = shard_path(layout.split, kind, plan.bucket.number, plan.number)
        if not record or self._stored.get(path) != size:
            return None
        return StoredShard(record["checksum"], tuple(record["crcs"]))

    @cached_property
    def _stored(self) -> dict[str, int]:
        """What was there at the start, with its sizes."""
        return self._journal.store.list()

    def _read(self, layout: SplitLayout, plan: ShardPlan, first: int = 0) -> np.ndarray:
        """(row, coil, height, width) complex64, of the sources from number `first` on."""
        slices = np.empty((len(plan.rows), *plan.bucket.shape), np.complex64)
        for volume, rows in groupby(enumerate(plan.rows), key=lambda item: item[1][0]):
            with self._sources.use(first + self._numbers[layout.volumes[volume].name]) as read:
                for row, (_, index) in rows:
                    slices[row] = read(index)
        return slices

    def _open(self, number: int, resources: ExitStack) -> Read:
        ref = self._refs[number]
        if file_facts(ref) != self._facts[number]:
            raise InputError(
                f"{ref.files[0]}: was changed or removed since the conversion began; convert again with --overwrite"
            )
        local = resources.enter_context(staged(ref))
        with local.naming():
            source = open_files(ref, local.files, self._options.source)
        resources.callback(source.close)

        def read(index: int) -> np.ndarray:
            with local.naming():
                return read_slice(ref, source, index)

        return read


def _record_name(layout: SplitLayout, plan: ShardPlan, kind: str) -> str:
    return f"shards/{layout.split}-{kind}-{plan.bucket.number}-{plan.number}"
