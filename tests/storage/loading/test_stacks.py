"""Stacks: every one once an epoch, whole, and in an order that does not depend on who reads it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from larmor.storage.dataset import writing
from larmor.storage.dataset.dataset import SplitInfo
from larmor.storage.dataset.layout import SplitLayout
from larmor.storage.loading.config import DataConfig, open_loader, open_reader
from larmor.storage.loading.loader import Batch, Share
from larmor.storage.loading.stacks import check_stack, in_stacks, members, stack_starts
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore
from tests.helpers import property_test, random_kspace, stored_volume, write_layout

LENGTHS = (7, 4, 9)
SHAPES = ((1, 16, 12), (2, 8, 8), (1, 16, 12))  # of each volume: stacks of unequal shapes in one batch
STACK = 3
lengths = st.lists(st.integers(1, 12), min_size=1, max_size=5)


def split_of(counts: list[int]) -> SplitInfo:
    """A split of volumes with so many slices; nothing is stored."""
    volume = np.repeat(np.arange(len(counts)), counts)
    column = np.zeros(len(volume), np.int64)
    names = tuple(f"v{number}" for number in range(len(counts)))
    columns: Any = dict.fromkeys(("subject", "index", "position", "scale", "bucket", "row", "crc"), column)
    return SplitInfo("train", (), names, names, "", "", volume=volume, **columns)


@property_test
@given(lengths, st.integers(1, 6))
def test_a_stack_is_of_one_volume_and_all_that_fit_are_there(counts: list[int], size: int) -> None:
    info = split_of(counts)
    if min(counts) < size:
        with pytest.raises(InputError, match=f"data.stack={size} is more than the {min(counts)} slices or frames of v"):
            stack_starts(info, size)
        return
    starts = stack_starts(info, size)
    assert len(starts) == sum(count - size + 1 for count in counts)
    for stack in starts[:, None] + np.arange(size):
        assert len(set(info.volume[stack])) == 1
    if size == 1:
        assert np.array_equal(starts, np.arange(info.num_slices))


@property_test
@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 3))
def test_stacks_cover_a_volume_and_the_last_one_reaches_back(count: int, size: int, every: int) -> None:
    if count < size:
        return
    slices = np.arange(100, 100 + count)
    stacks = in_stacks(slices, size)
    assert np.array_equal(np.unique(stacks), slices)
    assert len(stacks) == -(-count // size)
    assert stacks[-1, -1] == slices[-1]
    assert (np.diff(stacks, axis=1) == 1).all()
    assert np.array_equal(in_stacks(slices, size, every), stacks[::every])
    assert np.array_equal(in_stacks(slices, 1, every)[:, 0], slices[::every])


def test_members_follow_each_other() -> None:
    assert members(np.array([[2, 5], [3, 0]]), 3).tolist() == [[2, 5], [2, 6], [2, 7], [3, 0], [3, 1], [3, 2]]


def test_the_shortest_volume_is_named() -> None:
    with pytest.raises(InputError, match=r"data.stack=5 is more than the 4 slices or frames of v1 \(split 'train'\)"):
        check_stack(split_of([6, 4, 5]), 5)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataConfig, list[np.ndarray]]:
    """A data set of three series, and all of its slices in order."""
    folder = tmp_path_factory.mktemp("stacks")
    volumes = tuple(
        stored_volume(f"v{number}", f"v{number}", shape, count)
        for number, (shape, count) in enumerate(zip(SHAPES, LENGTHS, strict=True))
    )
    kspace = [
        random_kspace(count, shape, seed) for seed, (count, shape) in enumerate(zip(LENGTHS, SHAPES, strict=True))
    ]
    store = ObjectStore(folder)
    writing.publish(store, {"train": write_layout(store, SplitLayout("train", volumes), kspace)}, [])
    config = DataConfig(
        url=str(folder), stack=STACK, block_bytes=4000, shuffle_bytes=9000, memory_cache_bytes=0, disk_cache_bytes=0
    )
    return config, [item for volume in kspace for item in volume]


def read(config: DataConfig, share: Share, first: int, count: int) -> list[Batch]:
    reader = open_reader(config, "train")
    batches = open_loader(config, reader, share, seed=5).batches(first, end=first + count)
    found = list(batches)
    reader.close()
    return found


NUM_STACKS = sum(count - STACK + 1 for count in LENGTHS)


def test_each_epoch_has_every_stack_once(stored: tuple[DataConfig, list[np.ndarray]]) -> None:
    config, slices = stored
    batches = read(config, Share(0, 1, 2, 1), 0, NUM_STACKS)
    samples = np.concatenate([batch.samples for batch in batches]).reshape(-1, STACK, 2)
    assert (np.diff(samples[..., 1], axis=1) == 1).all()
    assert (np.diff(samples[..., 0], axis=1) == 0).all()
    starts = stack_starts(open_reader(config, "train").info, STACK)
    for epoch in (0, 1):
        seen = samples[samples[:, 0, 0] == epoch][:, 0, 1]
        assert np.array_equal(np.sort(seen), starts)
    assert not np.array_equal(samples[:NUM_STACKS, 0, 1], samples[NUM_STACKS:, 0, 1])
    for batch in batches:
        for (_, index), (array,) in zip(batch.samples, batch.places(), strict=True):
            assert np.array_equal(array, slices[index])


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("first", [0, 1, 2, 5])
def test_the_order_depends_on_no_world_size_and_resumes_anywhere(
    stored: tuple[DataConfig, list[np.ndarray]], world_size: int, parts: int, first: int
) -> None:
    config, slices = stored
    size, count = 12, 2
    whole = np.concatenate([batch.samples for batch in read(config, Share(0, 1, size, 1), 0, first + count)])
    expected = whole.reshape(-1, size, STACK, 2)[first:]
    for rank in range(world_size):
        batches = read(config, Share(rank, world_size, size, parts), first, count)
        found = np.concatenate([batch.samples for batch in batches]).reshape(count, -1, STACK, 2)
        assert np.array_equal(found, expected[:, rank::world_size])
        for batch in batches:
            for (_, index), (array,) in zip(batch.samples, batch.places(), strict=True):
                assert np.array_equal(array, slices[index])


def test_a_stack_of_one_is_a_slice(stored: tuple[DataConfig, list[np.ndarray]]) -> None:
    """The default reads what it read before there were stacks: pieces of blocks, every slice once."""
    config, _ = stored
    single = config.model_copy(update={"stack": 1})
    samples = np.concatenate([batch.samples for batch in read(single, Share(0, 1, 4, 1), 0, sum(LENGTHS) // 4)])
    assert np.array_equal(np.sort(samples[:, 1]), np.arange(sum(LENGTHS)))
