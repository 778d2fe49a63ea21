"""Many ranks on a large split that nobody stores: the loader's own plan of what each asks for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from larmor.storage.dataset import layout
from larmor.storage.dataset.dataset import SplitInfo
from larmor.storage.dataset.layout import CRC_BYTES, Bucket
from larmor.storage.loading.config import DataConfig, open_loader, open_reader, sample_order
from larmor.storage.loading.foresight import Foreseen, foresee
from larmor.storage.loading.loader import Share
from larmor.storage.loading.order import SampleOrder, num_lanes
from larmor.storage.objects.object_store import ObjectStore
from tests.helpers import SHAPE, property_test, random_kspace, write_dataset

WORLD_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
LANES = 128
MB = 10**6
MIB = 2**20
KSPACE = random_kspace(37)
CHUNK = 8 * int(np.prod(SHAPE)) + CRC_BYTES


def split_of(num_slices: int, shape: tuple[int, int, int] = (1, 256, 256)) -> SplitInfo:
    """An index alone: slices of one volume, as a conversion lays them out."""
    zeros = np.zeros(num_slices, np.int32)
    rows = np.arange(num_slices, dtype=np.int32)
    bucket = Bucket(0, shape, num_slices, max(1, layout.SHARD_BYTES // (8 * int(np.prod(shape)))), {"kspace": ()})
    scale, crc = np.ones((num_slices, 2), np.float32), np.zeros((num_slices, 2), np.uint32)
    names = ("v",), ("v",), "", ""
    return SplitInfo("train", (bucket,), *names, zeros, zeros, rows, zeros.astype(np.float32), scale, zeros, rows, crc)


SPLIT = split_of(100_000)
SMALL = split_of(3_000, (1, 64, 64))
SMALL_BLOCKS = 16 * SMALL.buckets[0].chunk_bytes


def plans(info: SplitInfo, world_size: int, batches: range, batch_size: int = LANES, **options: Any) -> list[Foreseen]:
    """Of every rank."""
    config = DataConfig(**{"lanes": LANES, **options})
    return [foresee(config, info, Share(rank, world_size, batch_size, 1), 7, batches) for rank in range(world_size)]


def together(found: Sequence[Foreseen], batch_size: int = LANES) -> np.ndarray:
    """(n, 2): the samples of all ranks in the order of the stream."""
    each = np.stack([plan.samples for plan in found], axis=1)
    assert each.shape[0] * len(found) % batch_size == 0
    return each.reshape(-1, 2)


@pytest.mark.parametrize("world_size", [64, 128])
@pytest.mark.parametrize("coils", [1, 4])
def test_many_ranks_read_whole_blocks(world_size: int, coils: int) -> None:
    """With the batch's own lanes 64 ranks ask for 0.6 MB at a time."""
    info = SPLIT if coils == 1 else split_of(20_000, (coils, 256, 256))
    share = Share(world_size // 2, world_size, LANES, 1)
    sizes = foresee(DataConfig(lanes=LANES), info, share, 0, range(info.num_slices // LANES)).request_bytes
    assert sizes.mean() >= 4 * MB
    assert sizes[sizes >= 4 * MB].sum() >= 0.95 * sizes.sum(), "but for blocks at the borders of lanes"
    if coils == 1:
        of_batch = foresee(DataConfig(), info, share, 0, range(400)).request_bytes
        assert of_batch.mean() < MB


def test_the_order_is_the_same_for_every_world_size() -> None:
    batches = range(20, 29)  # across the end of an epoch
    alone = together(plans(SMALL, 1, batches, block_bytes=SMALL_BLOCKS))
    assert set(alone[:, 0]) == {0, 1}
    for world_size in (2, 16, 128):
        assert np.array_equal(together(plans(SMALL, world_size, batches, block_bytes=SMALL_BLOCKS)), alone)


def test_all_ranks_have_every_slice_once_in_an_epoch() -> None:
    batches = range(3 * SMALL.num_slices // LANES)
    samples = together(plans(SMALL, 64, batches, block_bytes=SMALL_BLOCKS))
    for epoch in range(2):
        assert np.array_equal(np.sort(samples[samples[:, 0] == epoch, 1]), np.arange(SMALL.num_slices))


@property_test
@given(st.sampled_from(WORLD_SIZES), st.integers(0, 127), st.integers(0, 60), st.sampled_from((1, 3)))
def test_a_resume_at_any_step_with_any_ranks_is_the_same_order(
    world_size: int, rank: int, step: int, times: int
) -> None:
    """A rank of any world begins where the stream of a rank alone is at that step, whoever trained the steps before."""
    info, batch_size = split_of(1_000, (1, 64, 64)), times * LANES
    config = DataConfig(lanes=LANES, block_bytes=SMALL_BLOCKS)
    whole = foresee(config, info, Share(0, 1, batch_size, 1), 7, range(step, step + 3)).samples
    share = Share(rank % world_size, world_size, batch_size, 1)
    found = foresee(config, info, share, 7, range(step + 1, step + 3)).samples
    assert np.array_equal(found, whole[batch_size:][share.rank :: world_size])


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("lanes", [None, LANES])
def test_the_memory_of_a_rank_has_a_bound(world_size: int, lanes: int | None) -> None:
    """The open blocks of all lanes (see `SampleOrder`) are shared by the ranks; what is read ahead is each one's."""
    ahead, blocks = 64 * MIB, 2 * max(128 * MIB, (lanes or 0) * 8 * MIB)
    share = Share(world_size - 1, world_size, LANES, 1)
    found = foresee(DataConfig(lanes=lanes), SPLIT, share, 0, range(100))
    one_batch = LANES // world_size * SPLIT.buckets[0].chunk_bytes
    assert found.batch_bytes <= ahead + blocks / world_size + 3 * one_batch + 8 * MIB


def test_a_start_in_the_middle_asks_for_what_is_to_come_alone() -> None:
    """Nothing that was trained on before, and no more than is open or read ahead."""
    share = Share(5, LANES, LANES, 1)
    whole = foresee(DataConfig(lanes=LANES), SPLIT, share, 0, range(700))
    late = foresee(DataConfig(lanes=LANES), SPLIT, share, 0, range(400, 700))
    seen = set(whole.samples[:400, 1].tolist())
    wanted = [index for request in late.requests for index, _, _ in request.slices]
    assert len(wanted) == len(set(wanted))
    assert not seen & set(wanted)
    assert sum(late.request_bytes[: late.requests_of_batch[0]]) <= (64 + 3 * 8) * MIB


def test_it_is_what_a_loader_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The requests of slices that a loader sends to a store, in their order, and its samples."""
    monkeypatch.setattr(layout, "SHARD_BYTES", 9 * (CHUNK - CRC_BYTES))
    write_dataset(store := ObjectStore(tmp_path / "data"), {"train": KSPACE})
    sizes = {"memory_cache_bytes": 0, "block_bytes": 4 * CHUNK, "read_threads": 1, "read_ahead_bytes": 5 * CHUNK}
    config = DataConfig(url=store.url, crop=(8, 8), lanes=8, **sizes)
    sent: list[tuple[str, int, int]] = []
    receive = ObjectStore.read_into

    def noted(self: ObjectStore, path: str, start: int, parts: Sequence[memoryview]) -> int:
        sent.append((path, start, start + sum(map(len, parts))))
        return receive(self, path, start, parts)

    monkeypatch.setattr(ObjectStore, "read_into", noted)
    reader = open_reader(config, "train")
    try:
        for share in (Share(1, 2, 8, 2), Share(0, 1, 6, 1)):
            sent.clear()
            plan = foresee(config, reader.info, share, 3, range(2, 11))
            batches = list(open_loader(config, reader, share, 3).batches(2, 11))
            assert [(item.path, item.start, item.stop) for item in plan.requests] == sent
            assert sum(plan.requests_of_batch) == len(sent)
            assert np.array_equal(plan.samples, np.concatenate([batch.samples for batch in batches]))
    finally:
        reader.close()


def test_without_lanes_of_its_own_an_experiment_keeps_its_order() -> None:
    config = DataConfig(block_bytes=SMALL_BLOCKS)
    reader_like = type("Blocks", (), {"info": SMALL, "companions": (), "block_of": np.arange(3_000) // 16})()
    for batch_size in (1, 12, 16, 1024):
        lanes = num_lanes(batch_size, batch_size * 188 // 3_000)
        as_before = SampleOrder(reader_like.block_of, 5, 128 * MIB // SMALL_BLOCKS, lanes)
        found = sample_order(config, reader_like, reader_like.block_of, batch_size, 5)
        assert np.array_equal(found.epoch(1), as_before.epoch(1))
        other = sample_order(config.model_copy(update={"lanes": 128}), reader_like, reader_like.block_of, batch_size, 5)
        assert not np.array_equal(other.epoch(1), as_before.epoch(1))


@pytest.mark.parametrize("lanes", [0, -4, 5000, "many"])
def test_lanes_that_make_no_sense_are_refused(lanes: Any) -> None:
    with pytest.raises(ValidationError, match="lanes"):
        DataConfig(lanes=lanes)
