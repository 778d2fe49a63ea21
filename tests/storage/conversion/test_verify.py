"""Whatever is wrong with a data set is found, and named."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import crc32c
import numpy as np
import pytest
import zarr

from larmor.storage.conversion.convert import ConvertOptions, convert
from larmor.storage.conversion.verify import VerifyReport, verify
from larmor.storage.dataset import dataset, layout
from larmor.storage.formats.recognise import find_sources
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore
from tests.helpers import flip_byte, random_kspace, write_heads

CHUNK = 8 * 2 * 20 * 24 + 4
SHARD = "train/kspace_1/c/1/0/0/0"  # slices 3 and 4 of "eve", which come after those of "bob"
MAPS = "train/sensitivity_maps_1/c/1/0/0/0"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of two shapes and several shards, with sensitivity maps."""
    folder = tmp_path_factory.mktemp("verify")
    write_heads(folder / "in", ["ann", "bob", "dan"])
    np.save(folder / "in" / "eve.npy", random_kspace(5, (2, 20, 24)))
    options = ConvertOptions((36, 32), held_out={"test": ["ann"], "validation": ["dan"]}, sensitivity_maps=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "SHARD_BYTES", 3 * 8 * 2 * 20 * 24)
        convert(find_sources([str(folder / "in")]), str(folder / "data"), options)
    return folder / "data"


@pytest.fixture
def store(original: Path, tmp_path: Path) -> ObjectStore:
    """A copy of it to damage."""
    copy = ObjectStore(tmp_path / "data")
    copy.upload(original, "")
    return copy


def problems(store: ObjectStore) -> list[str]:
    report = verify(store.url, num_threads=2)
    assert all(line.startswith(f"{store.url}/") for line in report.problems)
    return [line.removeprefix(f"{store.url}/") for line in report.problems]


def test_a_good_data_set_is_read_whole(store: ObjectStore) -> None:
    calls: list[tuple[str, int, int | None]] = []
    report = verify(store.url, lambda *call: calls.append(call), num_threads=3)
    assert report.problems == ()
    sizes = {path: size for path, size in store.list().items() if "kspace" in path or "sensitivity" in path}
    shards = {path: size for path, size in sizes.items() if "/c/" in path}
    info = {split: dataset.read_split(store, split) for split in dataset.SPLITS}
    assert report.num_slices == sum(one.num_slices for one in info.values()) == 35
    assert (report.num_shards, report.num_bytes) == (len(shards), sum(shards.values()))
    assert "all is well" in report.summary()
    assert [done for _, done, _ in calls] == list(range(len(shards) + 1))


def test_there_must_be_a_data_set(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no data set here"):
        verify(str(tmp_path / "none"))
    store = ObjectStore(tmp_path / "data")
    store.write("zarr.json", b'{"zarr_format"')
    with pytest.raises(InputError, match=r"zarr.json: is not JSON"):
        verify(store.url)


def edit_root(store: ObjectStore, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(store.read("zarr.json"))
    change(document["attributes"]["larmor"])
    store.write("zarr.json", json.dumps(document).encode())


def restate(store: ObjectStore, path: str) -> None:
    """Let the root document state the checksum of what lies at `path` now."""
    split, name, _, shard, *_ = path.split("/")
    kind, _, bucket = name.rpartition("_") if name[-1].isdigit() else (name, "", "0")
    checksum = dataset.shard_checksum(store.read(path))
    edit_root(
        store,
        lambda root: root["splits"][split]["buckets"][int(bucket)]["checksums"][kind].__setitem__(int(shard), checksum),
    )


def edit_slice(store: ObjectStore, path: str, row: int, change: Callable[[np.ndarray], object]) -> None:
    """Change the values of a slice, with checksums that fit."""
    raw = bytearray(store.read(path))
    values = np.frombuffer(raw, "<c8", (CHUNK - 4) // 8, row * CHUNK)
    change(values)
    raw[(row + 1) * CHUNK - 4 : (row + 1) * CHUNK] = crc32c.crc32c(raw[row * CHUNK : (row + 1) * CHUNK - 4]).to_bytes(
        4, "little"
    )
    store.write(path, bytes(raw))
    restate(store, path)
    restate_crc(store, path, row, int.from_bytes(raw[(row + 1) * CHUNK - 4 : (row + 1) * CHUNK], "little"))


def restate_crc(store: ObjectStore, path: str, row: int, crc: int) -> None:
    """Let the column `crc` state that of a row of the shard at `path`, and the root document the columns' checksum."""
    split, name, _, shard, *_ = path.split("/")
    kind, _, bucket = name.rpartition("_") if name[-1].isdigit() else (name, "", "0")
    info = dataset.read_split(store, split)
    in_array = int(shard) * info.buckets[int(bucket)].shard_slices + row
    (number,) = np.flatnonzero((info.bucket == int(bucket)) & (info.row == in_array))
    info.crc[number, dataset.KINDS.index(kind)] = crc
    write_column(store, split, "crc", lambda column: column.__setitem__(slice(None), info.crc))
    checksum = dataset.columns_checksum({name: getattr(info, name) for name in dataset.COLUMNS})
    edit_root(store, lambda root: root["splits"][split].update(columns=checksum))


@pytest.mark.parametrize("path", [SHARD, MAPS])
def test_a_damaged_byte_is_found_with_its_slice(store: ObjectStore, path: str) -> None:
    flip_byte(store, path, CHUNK + 100)
    checksum, damaged = problems(store)
    assert checksum.startswith(f"{path}: its SHA-256 is ")
    assert damaged == f"{path}: slice 14 (row 1) is damaged (its CRC-32C does not match); convert the data again"


def test_a_damaged_byte_is_found_even_if_the_root_document_agrees(store: ObjectStore) -> None:
    flip_byte(store, SHARD, 5)
    restate(store, SHARD)
    assert problems(store) == [
        f"{SHARD}: slice 13 (row 0) is damaged (its CRC-32C does not match); convert the data again"
    ]


@pytest.mark.parametrize("damage", ["index", "cut", "empty"])
def test_a_damaged_index_is_found(store: ObjectStore, damage: str) -> None:
    if damage == "index":
        flip_byte(store, SHARD, -10)
    else:
        store.write(SHARD, store.read(SHARD)[: 500 if damage == "cut" else 0])
    checksum, index = problems(store)
    assert checksum.startswith(f"{SHARD}: its SHA-256 is ")
    assert index.startswith(f"{SHARD}: its index is damaged")


def test_a_shard_of_another_place_is_found(store: ObjectStore) -> None:
    """Two whole shards in each other's place: what their slices look like tells."""
    one, other = "train/kspace/c/0/0/0/0", "train/kspace/c/1/0/0/0"
    contents = store.read(one), store.read(other)
    store.write(one, contents[1])
    store.write(other, contents[0])
    found = problems(store)
    for path, number in {one: 0, other: 2}.items():
        assert any(line.startswith(f"{path}: slice {number} (row 0) has an image from") for line in found)


def test_values_that_are_not_finite_are_found(store: ObjectStore) -> None:
    edit_slice(store, SHARD, 0, lambda values: values.__setitem__(7, np.nan))
    edit_slice(store, MAPS, 1, lambda values: values.__setitem__(7, np.inf))
    assert problems(store) == [
        f"{SHARD}: slice 13 (row 0) has values that are not finite; convert the data again",
        f"{MAPS}: slice 14 (row 1) has values that are not finite; convert the data again",
    ]


@pytest.mark.parametrize(("factor", "is_wrong"), [(1.001, True), (1.00001, False)])
def test_a_scale_that_does_not_fit_its_slice_is_found(store: ObjectStore, factor: float, is_wrong: bool) -> None:
    edit_slice(store, SHARD, 1, lambda values: values.__imul__(factor))
    found = problems(store)
    assert len(found) == is_wrong
    assert all(line.startswith(f"{SHARD}: slice 14 (row 1) has an image from") for line in found)


def test_missing_and_foreign_objects_are_named(store: ObjectStore) -> None:
    gone = [SHARD, MAPS, "test/kspace/zarr.json", "validation/scale/c/0/0"]
    for path in gone:
        store.delete(path)
    for path in ("train/kspace/c/99/0/0/0", "train/thesis/chapter.tex", "notes.txt", "conversion/plan.json"):
        store.write(path, b"precious")
    found = problems(store)
    assert {line for line in found if "is missing" in line} == {
        f"{path}: is missing; convert the data again" for path in gone
    }
    foreign = {"train/kspace/c/99", "train/thesis", "notes.txt"}
    assert {line for line in found if "belong" in line} == {
        f"{path}: does not belong here; remove it" for path in foreign
    }
    assert len(found) == 7


def write_column(store: ObjectStore, split: str, name: str, change: Callable[[np.ndarray], object]) -> None:
    array: Any = zarr.open_group(store.url, mode="a")[f"{split}/{name}"]
    values = np.asarray(array[:])
    change(values)
    array[:] = values


@pytest.mark.parametrize(
    ("column", "values", "reason"),
    [
        ("volume", {3: 9}, "train: volume: slice 3 has 9, outside 0 … 1"),
        ("subject", {3: -1}, "train: subject: slice 3 has -1, outside 0 … 1"),
        ("bucket", {3: 2}, "train: bucket: slice 3 has 2, outside 0 … 1"),
        ("row", {3: 4}, "train: row: the rows of array 0 are not 0 … 9, each once"),
        ("bucket", {3: 1}, "train: row: the rows of array 0 are not 0 … 9, each once"),
        ("subject", {3: 1}, "train: subject: volume 'bob' has bob, eve, not 'bob'"),
        ("volume", {3: 1}, "train: subject: volume 'eve' has bob, eve, not 'eve'"),
        ("index", {3: 0}, "train: index: the slices of volume 'bob' are not in ascending order"),
        ("position", {3: np.nan}, "train: position: slice 3 is not finite"),
        ("scale", {3: np.inf}, "train: scale: slice 3 is not finite"),
    ],
)
def test_columns_that_contradict_each_other_are_found(
    store: ObjectStore, column: str, values: dict[int, float], reason: str
) -> None:
    write_column(store, "train", column, lambda array: [array.__setitem__(key, value) for key, value in values.items()])
    assert any(line.startswith(reason) for line in problems(store)), problems(store)


def test_a_damaged_column_is_found(store: ObjectStore) -> None:
    flip_byte(store, "test/position/c/0", 3)
    (found,) = problems(store)
    assert found.startswith("test: is damaged")


@pytest.mark.parametrize("key", ["volumes", "subjects"])
def test_nobody_may_be_in_two_splits(store: ObjectStore, key: str) -> None:
    def change(root: dict[str, Any]) -> None:
        for split in ("train", "test"):
            first = {"name": "bob", "subject": "ann" if split == "test" else "bob"} if key == "volumes" else "bob"
            root["splits"][split][key][0] = first

    edit_root(store, change)
    assert f"zarr.json: {key[:-1]} 'bob' is in train and in test; convert again" in problems(store)


@pytest.mark.parametrize("key", ["buckets", "subjects", "volumes"])
def test_a_root_document_without_its_parts_is_found(store: ObjectStore, key: str) -> None:
    edit_root(store, lambda root: root["splits"]["train"].pop(key))
    assert any(line.startswith("zarr.json: ") and "'train'" in line and "damaged" in line for line in problems(store))


@pytest.mark.parametrize("kind", ["kspace", "sensitivity_maps"])
def test_two_shards_that_were_swapped_are_found(store: ObjectStore, kind: str) -> None:
    first, second = (f"train/{kind}_1/c/{number}/0/0/0" for number in (0, 1))
    one, other = store.read(first), store.read(second)
    store.write(first, other)
    store.write(second, one)
    assert any("its SHA-256 is" in line for line in problems(store))


def test_in_a_store(original: Path, store_environment: dict[str, str]) -> None:
    store = ObjectStore(f"s3://larmor/{uuid.uuid4().hex}")
    store.upload(original, "")
    assert problems(store) == []
    flip_byte(store, SHARD, 5)
    store.delete("train/index/c/0")
    assert len(problems(store)) == 1, "the columns are needed to know the slices"
    assert isinstance(verify(store.url), VerifyReport)


def test_a_slice_that_is_another_is_found_though_it_looks_alike(store: ObjectStore) -> None:
    raw = store.read(SHARD)
    edit_slice(store, SHARD, 0, lambda values: values.__imul__(1.00001))
    assert problems(store) == []
    store.write(SHARD, raw)
    restate(store, SHARD)
    (found,) = problems(store)
    assert found.startswith(f"{SHARD}: slice 13 (row 0) is not the one that the column crc names")


def test_columns_that_are_not_those_of_the_root_document_are_found(store: ObjectStore) -> None:
    write_column(store, "train", "position", lambda values: values.__iadd__(1))
    (found,) = problems(store)
    assert found.startswith("train: columns: their SHA-256")
