"""Sensitivity maps come beside their k-space, in reader, loader and batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from larmor.storage.loading.config import DataConfig, open_loader, open_reader
from larmor.storage.loading.loader import Batch, Share
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore
from tests.helpers import coil_scan, random_kspace, write_coil_splits, write_dataset

SCANS = [coil_scan(4, 9, 24, 20), coil_scan(1, 5, 24, 20, seed=1), coil_scan(3, 7, 16, 12, seed=2)]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data") / "set"
    write_coil_splits(ObjectStore(str(folder)), {"train": SCANS, "validation": SCANS[1:2]})
    return str(folder)


def config(url: str, **settings: int) -> DataConfig:
    return DataConfig(url=url, block_bytes=40_000, **settings)


def test_every_slice_comes_with_its_own_maps(url: str) -> None:
    kspace = [item for scan, _ in SCANS for item in scan]
    maps = [item for _, scan in SCANS for item in scan]
    reader = open_reader(config(url), "train", with_maps=True)
    loader = open_loader(config(url), reader, Share(0, 1, 4, 2), seed=3)
    batches = loader.batches(0, end=12)
    seen = []
    for batch in batches:
        for group in batch.groups:
            assert group.maps is not None
            for row, stored, found in zip(group.rows, group.kspace, group.maps, strict=True):
                index = int(batch.samples[row, 1])
                seen.append(index)
                assert np.array_equal(stored, kspace[index])
                assert np.array_equal(found, maps[index])
    assert set(seen) == set(range(len(kspace)))
    assert loader.counts.bytes_read > sum(item.nbytes for item in kspace) + sum(
        maps[index].nbytes for index in range(9)
    )
    reader.close()


def test_the_order_and_the_kspace_are_those_without_maps_where_all_fits_into_the_pool(url: str) -> None:
    found = []
    for with_maps in (False, True):
        reader = open_reader(config(url), "train", with_maps=with_maps)
        batches = open_loader(config(url), reader, Share(0, 1, 4, 1), seed=3).batches(1, end=5)
        found.append(
            [(batch.samples.tolist(), [group.kspace.tobytes() for group in batch.groups]) for batch in batches]
        )
        reader.close()
    assert found[0] == found[1]


def test_a_batch_is_read_at_once(url: str) -> None:
    reader = open_reader(config(url, memory_cache_bytes=10**6), "train", with_maps=True)
    for _ in range(2):  # from the store, then from memory
        batch = Batch.read(reader, np.array([(0, 20), (0, 10), (0, 1)]))
        pairs = [(group.rows, group.maps) for group in batch.groups if group.maps is not None]
        found = {int(row): maps for rows, stored in pairs for row, maps in zip(rows, stored, strict=True)}
        for row, (scan, place) in enumerate(((2, 6), (1, 1), (0, 1))):
            assert np.array_equal(found[row], SCANS[scan][1][place])
    reader.close()


def test_one_coil_needs_no_maps(url: str) -> None:
    reader = open_reader(config(url), "validation", with_maps=True)
    assert reader.maps is None
    assert Batch.read(reader, np.array([(0, 0)])).groups[0].maps is None
    reader.close()


def test_coils_without_maps_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    write_dataset(ObjectStore(str(tmp_path)), {"train": random_kspace(6, (2, 16, 12))})
    open_reader(config(str(tmp_path)), "train").close()
    with pytest.raises(InputError, match=r"'train' has slices of 2 coils without sensitivity maps.*--sensitivity-maps"):
        open_reader(config(str(tmp_path)), "train", with_maps=True)
