"""From the `data` section of an experiment to readers and loaders."""

from __future__ import annotations

import dataclasses
import uuid
from itertools import islice
from pathlib import Path

import numpy as np
import platformdirs
import pytest
from pydantic import ValidationError

from larmor.storage.dataset import layout, writing
from larmor.storage.formats.volumes import image_to_kspace
from larmor.storage.loading.config import DataConfig, open_loader, open_reader
from larmor.storage.loading.loader import Share
from larmor.storage.loading.order import num_lanes
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore
from tests.helpers import (
    SHAPE,
    contents_of,
    random_kspace,
    stored_volume,
    write_dataset,
    write_images,
    write_layout,
)

NUM_SLICES = 22
KSPACE = random_kspace(NUM_SLICES)
CHUNK = 8 * int(np.prod(SHAPE)) + 4


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five slices to a shard; no cache folder of the user is touched."""
    monkeypatch.setattr(layout, "SHARD_BYTES", 5 * (CHUNK - 4))
    monkeypatch.delenv("LARMOR_HOME", raising=False)


@pytest.fixture
def local(tmp_path: Path) -> str:
    store = ObjectStore(tmp_path / "data")
    write_dataset(store, {"train": KSPACE})
    return store.url


@pytest.fixture
def remote(store_environment: dict[str, str]) -> str:
    store = ObjectStore(f"s3://larmor/{uuid.uuid4().hex}")
    write_dataset(store, {"train": KSPACE})
    return store.url


def read_all(config: DataConfig) -> tuple[int, int]:
    """Bytes that came from the store and from the disk cache when every slice is read once."""
    reader = open_reader(config, "train")
    try:
        assert np.array_equal(np.stack(reader.read(range(NUM_SLICES))), KSPACE)
        return reader.counts.bytes_read, reader.counts.bytes_cached
    finally:
        reader.close()


def test_a_reader_opens_from_the_configuration(local: str) -> None:
    assert read_all(DataConfig(url=local)) == (NUM_SLICES * CHUNK, 0)
    with pytest.raises(InputError, match="has no split 'test'"):
        open_reader(DataConfig(url=local), "test")


@pytest.mark.parametrize("client", ["s3fs", "http"])
def test_the_client_is_that_of_the_configuration(remote: str, tmp_path: Path, client: str) -> None:
    config = DataConfig.model_validate({"url": remote, "client": client, "disk_cache": str(tmp_path)})
    reader = open_reader(config, "train")
    assert reader._store.client == client
    reader.close()


def test_blocks_and_memory_are_those_of_the_configuration(local: str) -> None:
    for block_bytes, block_slices in ((1, 1), (2 * CHUNK, 2), (10**6, 5)):
        reader = open_reader(DataConfig(url=local, block_bytes=block_bytes), "train")
        assert np.bincount(reader.block_of).max() == block_slices
        reader.close()
    for memory_bytes, is_read_again in ((0, True), (10**6, False)):
        reader = open_reader(DataConfig(url=local, memory_cache_bytes=memory_bytes), "train")
        reader.read([3])
        before = reader.counts.bytes_read
        reader.read([3])
        assert (reader.counts.bytes_read > before) == is_read_again
        reader.close()


class TestDiskCache:
    def test_slices_of_s3_are_kept_in_the_named_folder(self, remote: str, tmp_path: Path) -> None:
        config = DataConfig(url=remote, disk_cache=str(tmp_path / "here"))
        assert read_all(config) == (NUM_SLICES * CHUNK, 0)
        assert read_all(config) == (0, NUM_SLICES * CHUNK)
        assert len(contents_of(tmp_path / "here")) == NUM_SLICES

    def test_a_tilde_is_the_home_folder(self, remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        read_all(DataConfig(url=remote, disk_cache="~/slices"))
        assert len(contents_of(tmp_path / "slices")) == NUM_SLICES

    def test_else_in_larmors_home(self, remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LARMOR_HOME", str(tmp_path / "home"))
        read_all(DataConfig(url=remote))
        assert len(contents_of(tmp_path / "home" / "slices")) == NUM_SLICES

    def test_else_in_the_users_cache(self, remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / "cache" / name)
        read_all(DataConfig(url=remote))
        assert len(contents_of(tmp_path / "cache" / "larmor" / "slices")) == NUM_SLICES

    def test_none_where_none_is_wanted_or_the_data_are_local(
        self, remote: str, local: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LARMOR_HOME", str(tmp_path / "home"))
        read_all(DataConfig(url=remote, disk_cache_bytes=0))
        read_all(DataConfig(url=local))
        assert not (tmp_path / "home").exists()

    def test_it_keeps_its_bound(self, remote: str, tmp_path: Path) -> None:
        read_all(DataConfig(url=remote, disk_cache=str(tmp_path / "c"), disk_cache_bytes=7 * CHUNK, read_threads=1))
        assert sum(map(len, contents_of(tmp_path / "c").values())) == 7 * CHUNK

    @pytest.mark.parametrize("place", ["file", "file/below"])
    def test_a_folder_that_cannot_be_used_is_refused(self, remote: str, tmp_path: Path, place: str) -> None:
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(InputError, match=rf"{place}: cannot be used as disk cache .*data.disk_cache_bytes=0"):
            open_reader(DataConfig(url=remote, disk_cache=str(tmp_path / place)), "train")


class TestLoader:
    def samples(self, config: DataConfig, world_size: int, seed: int = 0, num_batches: int = 4) -> np.ndarray:
        """The first global batches (n, 2), put together from all ranks."""
        parts = np.empty((num_batches, 12, 2), np.int64)
        for rank in range(world_size):
            reader = open_reader(config, "train")
            batches = open_loader(config, reader, Share(rank, world_size, 12, 1), seed).batches(0)
            for number, batch in enumerate(islice(batches, num_batches)):
                parts[number, rank::world_size] = batch.samples
                for group in batch.groups:
                    assert np.array_equal(group.kspace, KSPACE[batch.samples[group.rows, 1]])
            batches.close()
            reader.close()
        return parts.reshape(-1, 2)

    def test_the_order_is_the_same_for_every_world_size(self, local: str) -> None:
        config = DataConfig(url=local, block_bytes=3 * CHUNK, shuffle_bytes=9 * CHUNK)
        one = self.samples(config, 1)
        assert np.array_equal(np.sort(one[:NUM_SLICES, 1]), np.arange(NUM_SLICES))
        for world_size in (2, 3, 4):
            assert np.array_equal(self.samples(config, world_size), one)
        assert not np.array_equal(self.samples(config, 1, seed=1), one)

    def test_the_order_depends_on_blocks_and_mixing_alone(self, local: str) -> None:
        config = DataConfig(url=local, block_bytes=2 * CHUNK, shuffle_bytes=8 * CHUNK)
        one = self.samples(config, 2)
        for change in ({"read_threads": 1}, {"memory_cache_bytes": 0}, {"read_ahead_bytes": 0}):
            assert np.array_equal(self.samples(config.model_copy(update=change), 2), one)
        assert not np.array_equal(self.samples(config.model_copy(update={"block_bytes": CHUNK}), 2), one)

    @pytest.mark.parametrize("shuffle_bytes", [1, CHUNK, 10**9])
    def test_any_amount_of_mixing_works(self, local: str, shuffle_bytes: int) -> None:
        config = DataConfig(url=local, block_bytes=3 * CHUNK, shuffle_bytes=shuffle_bytes)
        assert np.array_equal(np.sort(self.samples(config, 2)[:NUM_SLICES, 1]), np.arange(NUM_SLICES))

    def test_batches_lie_in_the_memory_that_is_given(self, local: str) -> None:
        config, made = DataConfig(url=local), []

        def allocate(shape: tuple[int, ...]) -> np.ndarray:
            made.append(np.empty(shape, np.complex64))
            return made[-1]

        reader = open_reader(config, "train")
        batches = open_loader(config, reader, Share(0, 1, 4, 1), 0, allocate).batches(0)
        kspace = next(batches).groups[0].kspace
        assert any(kspace is array for array in made)
        batches.close()
        reader.close()


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop": [4, 64]},
        {"read_threads": 0},
        {"read_threads": 65},
        {"block_bytes": 0},
        {"shuffle_bytes": 0},
        {"disk_cache_bytes": -1},
        {"client": "boto3"},
        {"shuffle_shards": 4},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        DataConfig.model_validate(wrong)


CONSTANT = (0, 2, 3, 9)


def some_constant(num_slices: int = 10) -> np.ndarray:
    """(slice, height, width): four of them constant, one of these not zero."""
    images = np.random.default_rng(0).uniform(1, 2, (num_slices, 12, 16)).astype(np.float32)
    images[list(CONSTANT)] = 0
    images[3] = 7.3
    return images


def test_slices_that_show_nothing_are_left_out_and_counted(tmp_path: Path) -> None:
    images = some_constant()
    write_images(ObjectStore(tmp_path / "data"), {"train": images})
    config = DataConfig(url=str(tmp_path / "data"))
    reader = open_reader(config, "train")
    shown = [place for place in range(10) if place not in CONSTANT]
    assert (reader.info.num_slices, reader.info.num_constant) == (6, 4)
    assert reader.info.index.tolist() == shown
    np.testing.assert_allclose(np.stack(reader.read(range(6)))[:, 0], image_to_kspace(images[shown]), atol=1e-5)
    reader.close()
    whole = open_reader(config, "train", constant=True)
    assert (whole.info.num_slices, whole.info.num_constant) == (10, 0)
    whole.close()


def test_volumes_and_subjects_that_show_nothing_are_left_out_too(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path / "data")
    empty, full = (stored_volume(name, name, (1, 12, 16), 3) for name in ("ann", "bob"))
    layout_ = layout.SplitLayout("train", (dataclasses.replace(empty, scales=((5.0, 5.0),) * 3), full))
    kspace = [image_to_kspace(np.full((3, 12, 16), 5.0))[:, None], random_kspace(3, (1, 12, 16))]
    writing.publish(store, {"train": write_layout(store, layout_, kspace)}, [])
    reader = open_reader(DataConfig(url=store.url), "train")
    assert (reader.info.volumes, reader.info.subjects, reader.info.num_constant) == (("bob",), ("bob",), 3)
    assert reader.info.slices_of("bob").tolist() == [0, 1, 2]
    np.testing.assert_array_equal(np.stack(reader.read([2, 0])), kspace[1][[2, 0]])
    reader.close()


def test_a_split_that_shows_nothing_is_refused(tmp_path: Path) -> None:
    write_images(ObjectStore(tmp_path / "data"), {"train": np.full((3, 12, 16), 5.0, np.float32)})
    with pytest.raises(InputError, match=r"train: all of its 3 slices are constant.*convert"):
        open_reader(DataConfig(url=str(tmp_path / "data")), "train")


def test_the_disk_cache_does_not_mix_slices_with_and_without_constant_ones(
    tmp_path: Path, store_environment: dict[str, str]
) -> None:
    store = ObjectStore(f"s3://larmor/{uuid.uuid4().hex}")
    images = some_constant()
    write_images(store, {"train": images})
    config = DataConfig(url=store.url, disk_cache=str(tmp_path / "cache"), memory_cache_bytes=0)
    for constant in (True, False, True, False):
        reader = open_reader(config, "train", constant=constant)
        for place, index in enumerate(reader.info.index):
            np.testing.assert_allclose(reader.read([place])[0][0], image_to_kspace(images[index]), atol=1e-5)
        reader.close()


class TestManyWorkers:
    """A batch of 16 slices for each of 64 workers, 16 slices to a block, as experiments of the paper's size have."""

    BLOCK, BATCH = 16, 1024

    @pytest.fixture
    def config(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
        monkeypatch.setattr(layout, "SHARD_BYTES", 2**26)
        store = ObjectStore(tmp_path / "many")
        write_dataset(store, {"train": random_kspace(8 * self.BATCH, (1, 4, 4))})
        return DataConfig(url=store.url, block_bytes=self.BLOCK * 132, shuffle_bytes=16 * self.BLOCK * 132)

    @pytest.mark.parametrize("world_size", [16, 32, 64])
    def test_each_worker_reads_whole_blocks(self, config: DataConfig, world_size: int) -> None:
        num_slices = num_requests = 0
        for rank in (0, world_size // 2 + 1, world_size - 1):
            reader = open_reader(config, "train")
            asked = reader.fetch
            sizes: list[int] = []
            reader.fetch = lambda into, asked=asked, sizes=sizes: (sizes.append(len(into)), asked(into))[1]  # type: ignore
            batches = open_loader(config, reader, Share(rank, world_size, self.BATCH, 1), 0).batches(0, end=8)
            assert sum(len(batch.samples) for batch in batches) == 8 * self.BATCH // world_size == sum(sizes)
            num_slices, num_requests = num_slices + sum(sizes), num_requests + len(sizes)
            reader.close()
        assert num_slices / num_requests > 0.8 * self.BLOCK

    def test_no_more_is_open_than_a_batch(self, config: DataConfig) -> None:
        reader = open_reader(config, "train")
        loader = open_loader(config, reader, Share(0, 1, self.BATCH, 1), 0)
        pieces = loader._order.pieces(0)
        first, last = (np.full(pieces.max() + 1, value) for value in (len(pieces), -1))
        np.minimum.at(first, pieces, np.arange(len(pieces)))
        np.maximum.at(last, pieces, np.arange(len(pieces)))
        begun = np.cumsum(np.bincount(first[last >= 0], minlength=len(pieces)))
        ended = np.cumsum(np.bincount(last[last >= 0], minlength=len(pieces)))
        assert (begun - ended).max() * self.BLOCK <= 2 * self.BATCH
        reader.close()


def test_a_batch_of_few_blocks_has_the_lanes_that_it_had() -> None:
    for batch_size in (1, 4, 12, 16, 20, 64):
        assert num_lanes(batch_size, 4) == num_lanes(batch_size) == np.gcd(batch_size, 16)
    found = [num_lanes(1024, blocks) for blocks in (0, 16, 63, 64, 127, 2000)]
    assert found == [16, 16, 32, 64, 64, 1024]
    assert num_lanes(96 * 16, 96) == 96, "as many as there are workers, where that can be"
