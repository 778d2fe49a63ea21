"""Where slices are to be stored, from the volumes alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from larmor.storage.dataset import layout
from larmor.storage.dataset.layout import SplitLayout, StoredVolume, array_name
from tests.helpers import property_test

SHAPES = ((1, 8, 8), (1, 8, 10), (4, 8, 8), (2, 30, 40))
SLICE_BYTES = {shape: 8 * int(np.prod(shape)) for shape in SHAPES}


@pytest.fixture(scope="module", autouse=True)
def small_shards() -> Iterator[None]:
    """Five slices of the first shape to a shard, one of the last, which alone is larger than a shard should be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "SHARD_BYTES", 5 * SLICE_BYTES[SHAPES[0]] + 3)
        yield


@st.composite
def layouts(draw: st.DrawFn) -> SplitLayout:
    """Volumes of several shapes and subjects, of which some slices are left out."""
    volumes = []
    for number in range(draw(st.integers(1, 8))):
        indices = tuple(sorted(draw(st.sets(st.integers(0, 30), min_size=1, max_size=14))))
        positions = tuple(0.5 * index for index in indices)
        scales = tuple((float(number), 100.0 * number + index + 1) for index in indices)
        shape, subject = draw(st.sampled_from(SHAPES)), f"s{draw(st.integers(0, 3))}"
        volumes.append(StoredVolume(f"v{number}", subject, shape, indices, positions, scales))
    return SplitLayout("train", tuple(volumes))


@property_test
@given(layouts())
def test_a_bucket_for_each_shape_in_the_order_of_the_slices(split: SplitLayout) -> None:
    shapes = [split.volumes[volume].shape for volume, _ in split.slices]
    assert [bucket.shape for bucket in split.buckets] == list(dict.fromkeys(shapes))
    assert [bucket.number for bucket in split.buckets] == list(range(len(set(shapes))))
    for bucket in split.buckets:
        assert list(split.rows[bucket.shape]) == [
            number for number, shape in enumerate(shapes) if shape == bucket.shape
        ]


@property_test
@given(layouts())
def test_slices_follow_the_volumes(split: SplitLayout) -> None:
    assert list(split.slices) == [(n, index) for n, volume in enumerate(split.volumes) for index in volume.indices]
    assert split.subjects == tuple(dict.fromkeys(volume.subject for volume in split.volumes))


@property_test
@given(layouts())
def test_the_shards_hold_every_slice_once(split: SplitLayout) -> None:
    plans = list(split.shards())
    assert Counter(row for plan in plans for row in plan.rows) == Counter(split.slices)
    places = [(plan.bucket.number, plan.number) for plan in plans]
    assert sorted(places) == [(b.number, shard) for b in split.buckets for shard in range(b.num_shards)]
    assert [plan.rows[0] for plan in plans] == sorted(plan.rows[0] for plan in plans), "as the volumes come"
    for plan in plans:
        first = plan.number * plan.bucket.shard_slices
        assert list(plan.rows) == [
            split.slices[number] for number in split.rows[plan.bucket.shape][first : first + plan.bucket.shard_slices]
        ]
        assert {split.volumes[volume].shape for volume, _ in plan.rows} == {plan.bucket.shape}
        assert len(plan.rows) == plan.bucket.shard_slices or plan.number == plan.bucket.num_shards - 1


@property_test
@given(layouts())
def test_a_shard_is_as_large_as_the_bound_allows(split: SplitLayout) -> None:
    for bucket in split.buckets:
        size = SLICE_BYTES[bucket.shape]
        assert bucket.shard_slices * size <= layout.SHARD_BYTES or bucket.shard_slices == 1
        assert (bucket.shard_slices + 1) * size > layout.SHARD_BYTES or bucket.shard_slices == bucket.num_slices


@property_test
@given(layouts())
def test_the_columns_say_where_each_slice_is(split: SplitLayout) -> None:
    columns = split.columns()
    assert {len(values) for values in columns.values()} == {len(split.slices)}
    for number, (volume, index) in enumerate(split.slices):
        item = split.volumes[volume]
        bucket = split.buckets[columns["bucket"][number]]
        assert split.rows[bucket.shape][columns["row"][number]] == number
        assert bucket.shape == item.shape
        assert (columns["volume"][number], columns["index"][number]) == (volume, index)
        assert split.subjects[columns["subject"][number]] == item.subject
        place = item.indices.index(index)
        assert columns["position"][number] == np.float32(item.positions[place])
        assert tuple(columns["scale"][number]) == tuple(np.float32(value) for value in item.scales[place])


@property_test
@given(layouts())
def test_it_depends_on_the_volumes_alone(split: SplitLayout) -> None:
    again = SplitLayout(split.split, split.volumes)
    assert list(again.shards()) == list(split.shards())
    for name, values in split.columns().items():
        assert np.array_equal(again.columns()[name], values)


def test_the_first_shape_has_the_plain_name() -> None:
    assert [array_name("kspace", number) for number in range(3)] == ["kspace", "kspace_1", "kspace_2"]
    assert array_name("sensitivity_maps", 2) == "sensitivity_maps_2"


@property_test
@given(st.integers(1, 2**30))
def test_a_part_is_neither_smaller_than_s3_takes_nor_much_larger_than_it_must_be(chunk_bytes: int) -> None:
    num_slices = layout.part_slices(chunk_bytes)
    assert num_slices * chunk_bytes >= 5 * 2**20
    assert num_slices == 1 or num_slices * chunk_bytes < 10 * 2**20
