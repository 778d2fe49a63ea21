"""Scans to a sharded data set: slices of k-space, split by subject, in two passes with a journal.

The first pass reads every source and says what is worth storing (`examine.py`); the second writes the
shards, in any order and by any number of threads, since the layout is a pure function of what the first one
found. A conversion that is killed can be resumed, and ends with the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from larmor.storage.conversion.examine import Examined, PassOptions, examine_sources
from larmor.storage.conversion.journal import Journal, open_journal
from larmor.storage.conversion.shard_writer import Beside, ShardWriter, clear_place, require_sigpy
from larmor.storage.conversion.splits import assign_splits, splits_of_folders, wanted_splits
from larmor.storage.dataset import dataset, layout, writing
from larmor.storage.dataset.layout import SplitLayout, StoredVolume
from larmor.storage.dataset.writing import StoredShard
from larmor.storage.formats.guides import with_guides
from larmor.storage.formats.provenance import larmor_version
from larmor.storage.formats.source import Plane, SourceOptions, SourceRef
from larmor.storage.formats.staging import FileFacts, file_facts
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore
from larmor.storage.objects.parallel import default_threads, run_in_threads
from larmor.storage.objects.progress import Progress, silent
from larmor.storage.objects.store_errors import StoreAway
from larmor.storage.objects.text_table import aligned

ArrayKey = tuple[str, int]


@dataclass(frozen=True)
class ConvertOptions:
    """`matrix` (height, width), `min_foreground` and `plane` say how images are cut into slices (see `SourceOptions`).

    `held_out` names the subjects of `validation` and `test` (see `assign_splits`); if it names none, folders of splits
    count (see `splits_of_folders`). With `sensitivity_maps`,
    coil sensitivity maps are stored beside k-space of several coils. Each thread may hold three shards and a source
    (twice the k-space of one scan) in memory.
    """

    matrix: tuple[int, int] = (256, 256)
    min_foreground: float = 0.15
    held_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    overwrite: bool = False
    skip_invalid: bool = False
    sensitivity_maps: bool = False
    num_threads: int = field(default_factory=default_threads)
    plane: Plane = "coronal"


@dataclass(frozen=True)
class VolumeReport:
    """What became of one source: `kept` of `total` slices, or why it was `left_out`.

    `plane` and `notes` are those of `Source`; `resumed` if an interrupted conversion had read it before.
    """

    volume: str
    subject: str
    split: str
    kept: int
    total: int
    left_out: str = ""
    plane: str = ""
    resumed: bool = False
    notes: tuple[str, ...] = ()


def describe_reports(reports: Iterable[VolumeReport], min_foreground: float) -> list[str]:
    """One line about each volume, in the order of splits and names."""
    ordered = sorted(reports, key=lambda report: (report.split, report.volume))
    return aligned([(report.split, report.volume, _outcome(report, min_foreground)) for report in ordered])


def _outcome(report: VolumeReport, min_foreground: float) -> str:
    if report.left_out:
        return f"left out: {report.left_out}"
    others = "no signal" if report.plane == "acquired" else f"< {min_foreground:.0%} foreground"
    return f"{report.kept} of {report.total} slices (others: {others})"


def convert(
    sources: Sequence[SourceRef],
    url: str,
    options: ConvertOptions,
    progress: Progress = silent,
    guides: Sequence[SourceRef] = (),
) -> list[VolumeReport]:
    """Read `sources`, write the data set at `url`, publish it, and say what was kept.

    Every source is checked before anything but the journal is written, and before an old data set is removed.
    With `guides` the scan of each source in another contrast is stored beside it (see `with_guides`).
    If the process is killed, the same call resumes it. `progress` gets (description, done, total), always in the
    calling thread.

    Raises `InputError` for bad sources (unless `skip_invalid`), a split that does not work out, a data set
    that is there already (unless `overwrite`), and another conversion that is under way at `url`.
    """
    if options.num_threads < 1:
        raise InputError(f"{options.num_threads} threads requested; use at least 1")
    if options.sensitivity_maps:
        require_sigpy()
    store = ObjectStore(url)
    store.check_access()
    refs = tuple(sorted(sources, key=lambda ref: ref.name))
    if guides:
        refs = tuple(with_guides(refs, guides))
    held_out = options.held_out if any(options.held_out.values()) else splits_of_folders(refs)
    split_of = assign_splits([ref.subject for ref in refs], held_out)
    _check_subjects(refs, split_of)
    facts = tuple(file_facts(ref) for ref in (*refs, *(ref.guide for ref in refs if ref.guide)))
    journal = open_journal(store, _plan(refs, facts, split_of, options), options.overwrite)
    conversion = _Conversion(refs, facts, split_of, journal, options, progress)
    try:
        found = conversion.examine()
        layouts = conversion.layouts(found)
        clear_place(journal, layouts, Beside(options.sensitivity_maps, bool(guides)), options.overwrite)
    except StoreAway:
        raise  # when the store is back, the same command resumes
    except InputError:
        journal.discard()
        raise
    shards = conversion.write_shards(layouts)
    conversion.publish(found, layouts, shards)
    journal.remove()
    return [_report(ref, split_of[ref.subject], one) for ref, one in zip(refs, found, strict=True)]


def _report(ref: SourceRef, split: str, found: Examined) -> VolumeReport:
    plane = str(found.provenance.get("plane", ""))
    kept, total = len(found.indices), found.num_slices
    notes = tuple(found.provenance.get("notes", ()))
    return VolumeReport(ref.name, ref.subject, split, kept, total, found.left_out, plane, found.resumed, notes)


def _check_subjects(refs: Sequence[SourceRef], split_of: Mapping[str, str]) -> None:
    missing = [split for split in wanted_splits(split_of) if split not in {split_of[ref.subject] for ref in refs}]
    if missing:
        raise InputError(f"no subject is left for the split '{min(missing)}'; add volumes or name other subjects")


def _plan(
    refs: Sequence[SourceRef], facts: Sequence[FileFacts], split_of: Mapping[str, str], options: ConvertOptions
) -> dict[str, Any]:
    """All that the bytes of the data set depend on."""
    sources: list[dict[str, Any]] = [
        {
            "name": ref.name,
            "subject": ref.subject,
            "split": split_of[ref.subject],
            "format": ref.format,
            "part": ref.part,
            "files": files,
        }
        for ref, files in zip(refs, facts, strict=False)
    ]
    for source, ref, files in zip(sources, refs, facts[len(refs) :], strict=False):
        assert ref.guide is not None
        source["guide"] = {"format": ref.guide.format, "part": ref.guide.part, "files": files}
    names = ("matrix", "min_foreground", "skip_invalid", "sensitivity_maps", "plane")
    return {
        "format": dataset.FORMAT_VERSION,
        "larmor": larmor_version(),
        "shard_bytes": layout.SHARD_BYTES,
        "options": {name: getattr(options, name) for name in names},
        "sources": sources,
    }


@dataclass(frozen=True)
class _Conversion:
    """One conversion: its sources, sorted by name, with the state of their files and their guides', and where it
    stands."""

    refs: tuple[SourceRef, ...]
    facts: tuple[FileFacts, ...]
    split_of: Mapping[str, str]
    journal: Journal
    options: ConvertOptions
    progress: Progress

    @property
    def _passes(self) -> PassOptions:
        source = SourceOptions(self.options.matrix, self.options.min_foreground, plane=self.options.plane)
        return PassOptions(source, self.options.skip_invalid, self.options.sensitivity_maps, self.options.num_threads)

    def examine(self) -> list[Examined]:
        """The first pass. Raises `InputError` for bad sources, and if a split would have nothing in it."""
        total = len(self.refs)
        found = examine_sources(
            self.refs, self.journal, self._passes, lambda done: self.progress("checking", done, total)
        )
        pairs = list(zip(self.refs, found, strict=True))
        _check_subjects([ref for ref, one in pairs if not one.left_out], self.split_of)
        kept = {self.split_of[ref.subject] for ref, one in pairs if one.indices}
        for split in wanted_splits(self.split_of):
            if split not in kept:
                raise InputError(
                    f"no slice has {self.options.min_foreground:.0%} foreground in some split; lower --min-foreground "
                    f"(all slices of '{split}' would be left out)"
                )
        return found

    def layouts(self, found: Sequence[Examined]) -> dict[str, SplitLayout]:
        """Where everything goes; volumes without slices go nowhere."""
        volumes: dict[str, list[StoredVolume]] = {split: [] for split in wanted_splits(self.split_of)}
        for ref, one in zip(self.refs, found, strict=True):
            if one.indices:
                volumes[self.split_of[ref.subject]].append(one.volume(ref))
        return {split: SplitLayout(split, tuple(inside)) for split, inside in volumes.items()}

    def write_shards(self, layouts: Mapping[str, SplitLayout]) -> dict[str, dict[ArrayKey, list[StoredShard]]]:
        """The second pass; the shards of each split, by (kind, bucket number)."""
        tasks = [(one, plan) for one in layouts.values() for plan in one.shards()]
        writer = ShardWriter(self.refs, self.facts, self.journal, self._passes)
        try:
            written = run_in_threads(
                lambda task: writer.write(*task),
                tasks,
                self.options.num_threads,
                lambda done: self.progress("converting", done, len(tasks)),
            )
        finally:
            writer.close()
        # shards come in the order of the volumes, and those of one array in the order of their numbers
        shards: dict[str, dict[ArrayKey, list[StoredShard]]] = {split: {} for split in layouts}
        for (one, plan), found in zip(tasks, written, strict=True):
            for kind, shard in found.items():
                shards[one.split].setdefault((kind, plan.bucket.number), []).append(shard)
        return shards

    def publish(
        self,
        found: Sequence[Examined],
        layouts: Mapping[str, SplitLayout],
        shards: Mapping[str, Mapping[ArrayKey, list[StoredShard]]],
    ) -> None:
        """Write the documents of the splits, and last the root document."""
        store = self.journal.store
        splits = {
            split: writing.write_documents(store, one, {key: tuple(values) for key, values in shards[split].items()})
            for split, one in layouts.items()
        }
        self.journal.check()
        sources = [one.provenance for one in found if one.indices]
        about = {"matrix": list(self.options.matrix), "min_foreground": self.options.min_foreground}
        writing.publish(store, splits, sources, **about)
