"""Writing, publishing and describing a data set."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zarr

from storage import dataset
from storage.dataset import SliceRecord, SplitWriter
from storage.errors import InputError
from storage.object_store import ObjectStore
from storage.shards import SliceReader
from tests.helpers import SHAPE, contents_of, random_kspace, write_dataset, write_split


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four slices to a shard."""
    monkeypatch.setattr(dataset, "SHARD_BYTES", 4 * 8 * int(np.prod(SHAPE)))


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path / "data")


def edit_record(store: ObjectStore, **changes: object) -> None:
    document = json.loads(store.read("zarr.json"))
    document["attributes"]["larmor"] |= changes
    store.write("zarr.json", json.dumps(document).encode())


def kspace_of(store: ObjectStore, split: str) -> np.ndarray:
    reader = SliceReader(store, split)
    try:
        return np.stack(reader.read(range(reader.info.num_slices)))
    finally:
        reader.close()


@pytest.mark.parametrize("num_slices", [1, 3, 4, 5, 11])
def test_a_split_comes_back_as_it_was_written(store: ObjectStore, num_slices: int) -> None:
    kspace = random_kspace(num_slices)
    write_dataset(store, {"train": kspace}, subjects=min(2, num_slices))
    info = dataset.read_split(store, "train")
    assert (info.name, info.shape, info.num_slices) == ("train", (num_slices, *SHAPE), num_slices)
    assert info.shard_slices == min(4, num_slices)
    assert info.subjects == ("train0", "train1")[: min(2, num_slices)]
    assert np.array_equal(np.concatenate([info.slices_of(name) for name in info.subjects]), np.arange(num_slices))
    assert np.array_equal(info.index, np.arange(num_slices))
    assert np.array_equal(info.position, 1.5 * np.arange(num_slices, dtype=np.float32))
    assert np.array_equal(info.scale, np.stack([np.zeros(num_slices), 1 + np.arange(num_slices)], axis=1))
    assert np.array_equal(kspace_of(store, "train"), kspace)
    shards = [path for path in store.list("train") if path.startswith("train/kspace/c/")]
    assert len(shards) == -(-num_slices // 4)


def test_capacity_is_only_a_bound(store: ObjectStore) -> None:
    kspace = random_kspace(6)
    writer = SplitWriter(store, "test", SHAPE, capacity=100)
    for index, values in enumerate(kspace):
        writer.append(SliceRecord(values, "one", index, 0.0, (0.0, 1.0)))
    dataset.publish(store, {"test": writer.close()}, [])
    assert zarr.open_group(store.url, mode="r")["test/kspace"].shape == (6, *SHAPE)
    assert np.array_equal(kspace_of(store, "test"), kspace)


def test_slices_of_one_subject_may_come_in_parts(store: ObjectStore) -> None:
    writer = SplitWriter(store, "train", SHAPE, capacity=5)
    for index, (values, subject) in enumerate(zip(random_kspace(5), "abacb", strict=True)):
        writer.append(SliceRecord(values, subject, index, 0.0, (0.0, 1.0)))
    dataset.publish(store, {"train": writer.close()}, [])
    info = dataset.read_split(store, "train")
    assert {name: info.slices_of(name).tolist() for name in info.subjects} == {"a": [0, 2], "b": [1, 4], "c": [3]}


def test_only_the_root_document_publishes(store: ObjectStore) -> None:
    dataset.begin(store, overwrite=False)
    entry = write_split(store, "train", random_kspace(5))
    for read in (dataset.read_root, dataset.describe, lambda place: SliceReader(place, "train")):
        with pytest.raises(InputError, match=r"no data set is there \(no zarr.json.*make one with `larmor convert`"):
            read(store)
    dataset.publish(store, {"train": entry}, [])
    assert kspace_of(store, "train").shape == (5, *SHAPE)


def test_the_first_of_two_publishers_wins(store: ObjectStore) -> None:
    entry = write_split(store, "train", random_kspace(5))
    dataset.publish(store, {"train": entry}, [{"subject": "first"}])
    with pytest.raises(InputError, match="another conversion published a data set here first"):
        dataset.publish(store, {"train": entry}, [{"subject": "second"}])
    assert dataset.read_root(store)["sources"] == [{"subject": "first"}]


def test_a_newer_format_is_refused(store: ObjectStore) -> None:
    write_dataset(store, {"train": random_kspace(2)})
    edit_record(store, format=dataset.FORMAT_VERSION + 1)
    with pytest.raises(InputError, match=r"has format 2, this Larmor reads up to 1; update Larmor"):
        dataset.read_split(store, "train")


def test_an_unknown_split_is_refused_with_the_known_ones(store: ObjectStore) -> None:
    write_dataset(store, {"train": random_kspace(2), "test": random_kspace(2)})
    with pytest.raises(InputError, match="has no split 'validation'; it has test, train"):
        dataset.read_split(store, "validation")


def test_a_damaged_root_document_is_refused(store: ObjectStore) -> None:
    store.write("zarr.json", b'{"zarr_format": 3, "attrib')
    with pytest.raises(InputError, match=r"zarr.json: is not JSON"):
        dataset.read_root(store)


def test_a_data_set_is_replaced_only_on_demand(store: ObjectStore, tmp_path: Path) -> None:
    write_dataset(store, {"train": random_kspace(9), "test": random_kspace(9)})
    before = contents_of(tmp_path / "data")
    with pytest.raises(InputError, match="a data set is there already; pass --overwrite"):
        dataset.begin(store, overwrite=False)
    assert contents_of(tmp_path / "data") == before
    dataset.begin(store, overwrite=True)
    assert store.list() == {}


def test_what_an_interrupted_conversion_left_makes_room(store: ObjectStore) -> None:
    write_split(store, "train", random_kspace(9))
    write_split(store, "validation", random_kspace(2))
    dataset.begin(store, overwrite=False)
    assert store.list() == {}


@pytest.mark.parametrize("overwrite", [False, True])
def test_other_peoples_files_are_never_deleted(store: ObjectStore, overwrite: bool) -> None:
    store.write("train/kspace/c/0", b"1")
    store.write("thesis.tex", b"years of work")
    with pytest.raises(InputError, match=r"holds other files \(thesis.tex, …\); choose an empty place"):
        dataset.begin(store, overwrite)
    assert set(store.list()) == {"train/kspace/c/0", "thesis.tex"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_another_zarr_group_is_never_deleted(store: ObjectStore, overwrite: bool) -> None:
    group = zarr.create_group(store.url, zarr_format=3, attributes={"owner": "someone"})
    group.create_array("train", data=np.arange(5))
    before = store.list()
    with pytest.raises(InputError, match="is a Zarr group, but not a data set of Larmor"):
        dataset.begin(store, overwrite)
    assert store.list() == before


def test_other_codecs_are_refused(store: ObjectStore) -> None:
    write_dataset(store, {"train": random_kspace(8)})
    group = zarr.open_group(store.url, mode="a")
    shape = (8, *SHAPE)
    layouts = ({"chunks": (1, *SHAPE), "shards": shape}, {"chunks": (1, *SHAPE)}, {"chunks": (2, *SHAPE)})
    for layout in layouts:
        group["train"].create_array("kspace", shape=shape, dtype="complex64", overwrite=True, **layout)
        with pytest.raises(InputError, match=r"train/kspace: is not sharded by slice with codecs"):
            dataset.read_split(store, "train")


def test_the_description_names_every_split_subject_and_source(store: ObjectStore) -> None:
    splits = {split: write_split(store, split, random_kspace(5)) for split in dataset.SPLITS}
    source = {"subject": "head", "file": "head.nii.gz", "voxel_size_mm": [1.0, 2.5, 1.0]}
    source |= {"package": "pack", "version": "1.2", "licence": "CC0", "sha256": "ab" * 32}
    dataset.publish(store, splits, [source], plane="coronal")
    lines = "\n".join(dataset.describe(store))
    for split in dataset.SPLITS:
        assert f"{split}: kspace (5, 1, 16, 12)" in lines
        assert f"{split}0 (3), {split}1 (2)" in lines
    assert "shard = 4 slices" in lines
    assert "source head: head.nii.gz, pack 1.2, 1 × 2.5 × 1 mm, licence: CC0" in lines
