"""Writing, publishing, reading and describing a data set."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from larmor.storage.dataset import dataset, layout, writing
from larmor.storage.dataset.dataset import COLUMNS, SplitInfo, shard_path
from larmor.storage.dataset.describe import describe
from larmor.storage.dataset.layout import SplitLayout
from larmor.storage.dataset.writing import encode_shard
from larmor.storage.loading.reader import SliceReader
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore
from tests.helpers import (
    SHAPE,
    contents_of,
    flip_byte,
    random_kspace,
    stored_volume,
    write_dataset,
    write_layout,
    write_split,
)

KINDS = ("kspace", "sensitivity_maps")
METADATA = ("train/zarr.json", *(f"train/{name}/zarr.json" for name in ("kspace", *COLUMNS)))
CHUNKS = tuple(f"train/{name}/c/{'/'.join('0' * dimensions)}" for name, dimensions in COLUMNS.items())
MIXED = {"a": ("ann", (1, 16, 12), 6), "b": ("ann", (2, 8, 10), 3), "c": ("bob", (1, 16, 12), 5)}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four slices to a shard."""
    monkeypatch.setattr(layout, "SHARD_BYTES", 4 * 8 * int(np.prod(SHAPE)))


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path / "data")


def edit_record(store: ObjectStore, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what the root document says."""
    document = json.loads(store.read("zarr.json"))
    change(document["attributes"]["larmor"])
    store.write("zarr.json", json.dumps(document).encode())


def slices_of(store: ObjectStore, split: str) -> list[np.ndarray]:
    reader = SliceReader(store, dataset.read_split(store, split))
    try:
        return reader.read(range(reader.info.num_slices))
    finally:
        reader.close()


def write_mixed(store: ObjectStore) -> dict[str, list[np.ndarray]]:
    """Volumes of two shapes with sensitivity maps; for each kind the slices in stored order."""
    volumes = tuple(stored_volume(name, subject, shape, n) for name, (subject, shape, n) in MIXED.items())
    split = SplitLayout("train", volumes)
    checksums: dict[Any, Any] = {}
    values = {
        kind: [random_kspace(n, shape, 10 * seed + number) for number, (_, shape, n) in enumerate(MIXED.values())]
        for seed, kind in enumerate(KINDS)
    }
    for kind in KINDS:
        for plan in split.shards():
            rows = np.stack([values[kind][volume][index] for volume, index in plan.rows])
            crc = writing.write_shard(store, "train", kind, plan, rows)
            checksums.setdefault((kind, plan.bucket.number), []).append(crc)
    entry = writing.write_documents(store, split, {key: tuple(value) for key, value in checksums.items()})
    writing.publish(store, {"train": entry}, [])
    return {kind: [item for volume in values[kind] for item in volume] for kind in KINDS}


@pytest.mark.parametrize("num_slices", [1, 3, 4, 5, 11])
def test_a_split_comes_back_as_it_was_written(store: ObjectStore, num_slices: int) -> None:
    kspace = random_kspace(num_slices)
    write_dataset(store, {"train": kspace}, subjects=min(2, num_slices))
    info = dataset.read_split(store, "train")
    (bucket,) = info.buckets
    assert (info.name, bucket.shape, info.num_slices) == ("train", SHAPE, num_slices)
    assert (bucket.num_slices, bucket.shard_slices) == (num_slices, min(4, num_slices))
    assert bucket.num_shards == len(bucket.checksums["kspace"]) == -(-num_slices // 4)
    assert info.volumes == info.subjects == ("train0", "train1")[: min(2, num_slices)]
    assert np.array_equal(np.concatenate([info.slices_of(name) for name in info.volumes]), np.arange(num_slices))
    assert np.array_equal(info.index, np.arange(num_slices))
    assert np.array_equal(info.position, 1.5 * np.arange(num_slices, dtype=np.float32))
    assert np.array_equal(info.scale, np.stack([np.zeros(num_slices), 1 + np.arange(num_slices)], axis=1))
    assert set(bucket.checksums) == {"kspace"}
    assert np.array_equal(np.stack(slices_of(store, "train")), kspace)
    shards = [path for path in store.list("train") if path.startswith("train/kspace/c/")]
    assert len(shards) == -(-num_slices // 4)


def test_slices_of_several_shapes_and_their_maps_come_back(store: ObjectStore) -> None:
    expected = write_mixed(store)["kspace"]
    info = dataset.read_split(store, "train")
    assert [bucket.shape for bucket in info.buckets] == [(1, 16, 12), (2, 8, 10)]
    assert [bucket.num_slices for bucket in info.buckets] == [11, 3]
    assert info.largest_matrix == (16, 12)
    assert (info.volumes, info.subjects) == (("a", "b", "c"), ("ann", "bob"))
    assert {name: len(info.slices_of(name)) for name in info.volumes} == {"a": 6, "b": 3, "c": 5}
    assert [info.bucket_of(index).number for index in range(14)] == [0] * 6 + [1] * 3 + [0] * 5
    assert np.array_equal(info.subject, [0] * 9 + [1] * 5)
    assert [set(bucket.checksums) for bucket in info.buckets] == [{"kspace", "sensitivity_maps"}] * 2
    for found, wanted in zip(slices_of(store, "train"), expected, strict=True):
        assert np.array_equal(found, wanted)


def test_zarr_reads_the_same_bytes(store: ObjectStore) -> None:
    """A third party's reader needs nothing of ours: names, shapes and values, for every array and every column."""
    expected = write_mixed(store)
    group: Any = zarr.open_group(store.url, mode="r")["train"]
    assert sorted(group.array_keys()) == sorted(
        ["kspace", "kspace_1", "sensitivity_maps", "sensitivity_maps_1", *COLUMNS]
    )
    info = dataset.read_split(store, "train")
    for kind in KINDS:
        for bucket in info.buckets:
            array = group[f"{kind}_{bucket.number}" if bucket.number else kind]
            rows = np.flatnonzero(info.bucket == bucket.number)
            assert array[:].tobytes() == np.stack([expected[kind][row] for row in rows]).tobytes()
            names = tuple(f"{name}_{bucket.number}" for name in ("slice", "coil", "height", "width"))
            assert array.metadata.dimension_names == names, "lengths differ between the arrays, so must the names"
            assert np.array_equal(info.row[rows], np.arange(len(rows)))
    for name in COLUMNS:
        assert np.array_equal(group[name][:], getattr(info, name))


def test_a_shard_depends_on_its_slices_alone() -> None:
    """So that one written again, by another worker, is the same object."""
    kspace = random_kspace(3)
    assert encode_shard(kspace, 4) == encode_shard(kspace.copy(), 4)
    assert encode_shard(kspace, 4) != encode_shard(kspace[::-1], 4)


def test_only_the_root_document_publishes(store: ObjectStore) -> None:
    writing.refuse_occupied(store, overwrite=False)
    entry = write_split(store, "train", random_kspace(5))
    for read in (dataset.read_root, describe, lambda place: dataset.read_split(place, "train")):
        with pytest.raises(
            InputError, match=r"there is no data set here \(no zarr.json.*make one with `larmor convert`"
        ):
            read(store)
    writing.publish(store, {"train": entry}, [])
    assert len(slices_of(store, "train")) == 5


def test_the_first_of_two_publishers_wins(store: ObjectStore) -> None:
    entry = write_split(store, "train", random_kspace(5))
    writing.publish(store, {"train": entry}, [{"volume": "first"}])
    with pytest.raises(InputError, match="another conversion published a data set here first"):
        writing.publish(store, {"train": entry}, [{"volume": "second"}])
    writing.publish(store, {"train": entry}, [{"volume": "first"}])  # by one that was killed and goes on: the same
    assert dataset.read_root(store)["sources"] == [{"volume": "first"}]


def test_the_identity_is_that_of_the_content(tmp_path: Path) -> None:
    places = [ObjectStore(tmp_path / name) for name in "abc"]
    for place, seed in zip(places, (0, 0, 1), strict=True):
        write_dataset(place, {"train": random_kspace(5, seed=seed), "test": random_kspace(2)})
    first, same, other = (dataset.read_split(place, "train").identity for place in places)
    assert first == same != other
    assert dataset.read_split(places[0], "test").identity == first


class TestDamage:
    """Whatever a split's metadata hold, nothing but an `InputError` comes of it."""

    @pytest.fixture(autouse=True)
    def data(self, store: ObjectStore, small_shards: None) -> None:
        write_dataset(store, {"train": random_kspace(5)})

    @pytest.mark.parametrize(("version", "remedy"), [(4, "update Larmor"), (2, "convert again with --overwrite")])
    def test_other_formats_are_refused(self, store: ObjectStore, version: int, remedy: str) -> None:
        edit_record(store, lambda record: record.update(format=version))
        for read in (dataset.read_root, lambda place: dataset.read_split(place, "train")):
            with pytest.raises(InputError, match=f"has format {version}, this Larmor reads 3; {remedy}"):
                read(store)

    def test_an_unknown_split_is_refused_with_the_known_ones(self, store: ObjectStore) -> None:
        write_split(store, "test", random_kspace(2))
        edit_record(store, lambda record: record["splits"].update(test=record["splits"]["train"]))
        with pytest.raises(InputError, match="has no split 'validation'; it has test, train"):
            dataset.read_split(store, "validation")

    @pytest.mark.parametrize("path", [*METADATA, *CHUNKS])
    def test_a_missing_object_is_named(self, store: ObjectStore, path: str) -> None:
        store.delete(path)
        with pytest.raises(InputError, match=f"{path}: is missing; convert the data again"):
            dataset.read_split(store, "train")

    @pytest.mark.parametrize("path", CHUNKS)
    @pytest.mark.parametrize("place", [0, -1])
    def test_a_damaged_column_is_refused(self, store: ObjectStore, path: str, place: int) -> None:
        flip_byte(store, path, place)
        with pytest.raises(InputError, match=r"train: is damaged \(.*convert the data again"):
            dataset.read_split(store, "train")

    @pytest.mark.parametrize("path", CHUNKS)
    def test_a_column_cut_short_is_refused(self, store: ObjectStore, path: str) -> None:
        for left in (0, 3, len(store.read(path)) - 1):
            store.write(path, store.read(path)[:left])
            with pytest.raises(InputError, match="train: is damaged"):
                dataset.read_split(store, "train")

    @pytest.mark.parametrize(
        ("path", "content"),
        [(path, content) for path in METADATA for content in (b"", b"\xff\xfe", b"null", b"[]")]
        # a group says nothing that a reader needs
        + [(path, content) for path in METADATA[1:] for content in (b"{}", b'{"zarr_format": 3}')],
    )
    def test_damaged_metadata_are_refused(self, store: ObjectStore, path: str, content: bytes) -> None:
        store.write(path, content)
        with pytest.raises(InputError, match="train: is damaged"):
            dataset.read_split(store, "train")

    @pytest.mark.parametrize("path", METADATA)
    def test_metadata_cut_anywhere_are_refused(self, store: ObjectStore, path: str) -> None:
        whole = store.read(path)
        for left in range(0, len(whole.rstrip()), 151):
            store.write(path, whole[:left])
            with pytest.raises(InputError, match="train: is damaged"):
                dataset.read_split(store, "train")

    @pytest.mark.parametrize("content", [b"", b'{"zarr_format": 3, "attrib', b"\xff\xfe"])
    def test_a_root_document_that_is_not_json_is_refused(self, store: ObjectStore, content: bytes) -> None:
        store.write("zarr.json", content)
        with pytest.raises(InputError, match=r"zarr.json: is not JSON"):
            dataset.read_split(store, "train")

    @pytest.mark.parametrize("content", [b"null", b"[]", b"{}", b'{"attributes": null}', b'{"attributes": [1]}'])
    def test_another_root_document_is_refused(self, store: ObjectStore, content: bytes) -> None:
        store.write("zarr.json", content)
        with pytest.raises(InputError, match="not a data set of Larmor"):
            dataset.read_split(store, "train")

    @pytest.mark.parametrize(
        "change",
        [
            lambda record: record.pop("splits"),
            lambda record: record.update(splits=None),
            lambda record: record.pop("sources"),
            lambda record: record.update(format="two"),
            lambda record: record["splits"].update(train=None),
            lambda record: record["splits"]["train"].pop("num_slices"),
            lambda record: record["splits"]["train"].update(subjects=None),
            lambda record: record["splits"]["train"].update(volumes=["a", "b"]),
            lambda record: record["splits"]["train"].update(buckets={"shape": 1}),
            lambda record: record["splits"]["train"]["buckets"][0].pop("shape"),
            lambda record: record["splits"]["train"]["buckets"][0].update(checksums=None),
        ],
    )
    def test_a_root_document_that_lacks_something_is_refused(
        self, store: ObjectStore, change: Callable[[dict[str, Any]], object]
    ) -> None:
        edit_record(store, change)
        with pytest.raises(InputError, match=r"zarr.json: is damaged \(.*convert the data again"):
            dataset.read_split(store, "train")

    def test_columns_of_another_length_are_refused(self, store: ObjectStore) -> None:
        edit_record(store, lambda record: record["splits"]["train"].update(num_slices=6))
        with pytest.raises(InputError, match="columns have unequal lengths"):
            dataset.read_split(store, "train")

    def test_an_array_of_another_shape_is_refused(self, store: ObjectStore) -> None:
        for key, value in (("num_slices", 6), ("shard_slices", 3), ("shape", [1, 12, 16])):
            before = store.read("zarr.json")
            change = {key: value}
            edit_record(store, lambda record, c=change: record["splits"]["train"]["buckets"][0].update(c))  # type: ignore[misc]
            with pytest.raises(InputError, match="kspace: does not have the shape that the root document states"):
                dataset.read_split(store, "train")
            store.write("zarr.json", before)

    def test_other_codecs_are_refused(self, store: ObjectStore) -> None:
        group: Any = zarr.open_group(store.url, mode="a")
        shape = (5, *SHAPE)
        layouts = ({"chunks": (1, *SHAPE), "shards": shape}, {"chunks": (1, *SHAPE)}, {"chunks": (2, *SHAPE)})
        for changed in layouts:
            group["train"].create_array("kspace", shape=shape, dtype="complex64", overwrite=True, **changed)
            with pytest.raises(InputError, match=r"train/kspace: is not sharded by slice with codecs"):
                dataset.read_split(store, "train")


def test_a_data_set_is_replaced_only_on_demand(store: ObjectStore, tmp_path: Path) -> None:
    write_dataset(store, {"train": random_kspace(9), "test": random_kspace(9)})
    before = contents_of(tmp_path / "data")
    with pytest.raises(InputError, match="there is a data set here already; pass --overwrite"):
        writing.refuse_occupied(store, overwrite=False)
    writing.refuse_occupied(store, overwrite=True)
    assert contents_of(tmp_path / "data") == before, "to ask changes nothing"
    writing.remove(store)
    assert store.list() == {}


def test_one_that_is_published_between_two_looks_is_a_data_set(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dataset(store, {"train": random_kspace(9)})
    monkeypatch.setattr(store, "exists", lambda path: False)
    with pytest.raises(InputError, match="there is a data set here already; pass --overwrite"):
        writing.refuse_occupied(store, overwrite=False)
    writing.refuse_occupied(store, overwrite=True)


def test_what_an_interrupted_conversion_left_makes_room(store: ObjectStore) -> None:
    write_split(store, "train", random_kspace(9))
    write_split(store, "validation", random_kspace(2))
    store.write("conversion/plan.json", b"{}")
    writing.refuse_occupied(store, overwrite=False)
    writing.remove(store)
    assert store.list() == {"conversion/plan.json": 2}, "the journal stays"


def test_a_removal_unpublishes_first(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(store, {"train": random_kspace(9)})
    deleted: list[str] = []
    monkeypatch.setattr(store, "delete", deleted.append)
    writing.remove(store)
    assert deleted == ["zarr.json", *dataset.SPLITS, dataset.TRIALS]


@pytest.mark.parametrize("overwrite", [False, True])
def test_other_peoples_files_are_never_deleted(store: ObjectStore, overwrite: bool) -> None:
    store.write("train/kspace/c/0", b"1")
    store.write("thesis.tex", b"years of work")
    with pytest.raises(InputError, match=r"holds other files \(thesis.tex, …\); choose an empty place"):
        writing.refuse_occupied(store, overwrite)
    writing.remove(store)
    assert set(store.list()) == {"thesis.tex"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_another_zarr_group_is_refused(store: ObjectStore, overwrite: bool) -> None:
    group = zarr.create_group(store.url, zarr_format=3, attributes={"owner": "someone"})
    group.create_array("train", data=np.arange(5))
    before = store.list()
    with pytest.raises(InputError, match="is a Zarr group, but not a data set of Larmor"):
        writing.refuse_occupied(store, overwrite)
    assert store.list() == before


def test_the_description_names_every_split_volume_and_source(store: ObjectStore) -> None:
    splits = {split: write_split(store, split, random_kspace(5)) for split in ("train", "validation")}
    volumes = (stored_volume("a", "ann", (1, 16, 12), 3), stored_volume("b", "ann", (2, 8, 10), 4))
    kspace = [random_kspace(3), random_kspace(4, (2, 8, 10))]
    splits["test"] = write_layout(store, SplitLayout("test", volumes), kspace)
    source = {"volume": "head", "format": "nifti", "plane": "coronal", "voxel_size_mm": [1.0, 2.5, 1.0]}
    source |= {"files": [{"file": "head.nii.gz", "sha256": "ab" * 32}], "licence": "CC0"}
    writing.publish(store, splits, [source, {**source, "package": "pack", "version": "1.2", "volume": "other"}])
    lines = "\n".join(describe(store))
    for split in ("train", "validation"):
        assert f"{split}: kspace (5, 1, 16, 12)" in lines
        assert f"{split}0 (3), {split}1 (2)" in lines
    assert "test: kspace (3, 1, 16, 12)" in lines
    assert "test: kspace_1 (4, 2, 8, 10)" in lines
    assert "a (3), b (4)" in lines
    assert "shard = 4 slices" in lines
    assert "source head: head.nii.gz, nifti, coronal slices, 1 × 2.5 × 1 mm, licence: CC0" in lines
    assert "source other: head.nii.gz, nifti, coronal slices, pack 1.2" in lines


def test_paths_of_shards_are_those_of_zarr(store: ObjectStore) -> None:
    write_mixed(store)
    info: SplitInfo = dataset.read_split(store, "train")
    shards = {path for path in store.list("train") if path.split("/")[1].startswith(KINDS) and "/c/" in path}
    assert shards == {
        shard_path("train", kind, bucket.number, shard)
        for kind in KINDS
        for bucket in info.buckets
        for shard in range(bucket.num_shards)
    }
