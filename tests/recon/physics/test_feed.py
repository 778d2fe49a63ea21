"""Batches reach the device unchanged and in order."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
import torch

from larmor.recon.physics.feed import DeviceBatch, feed, page_locked, to_device
from larmor.storage.loading.loader import Batch
from tests.helpers import random_kspace

CPU = torch.device("cpu")
SHAPES = [(1, 8, 6), (2, 5, 7), (1, 8, 6)]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is there")


def make_batch(number: int) -> Batch:
    """Slices of two shapes, different ones for each number."""
    slices = [random_kspace(1, shape, 10 * number + place)[0] for place, shape in enumerate(SHAPES)]
    maps = [random_kspace(1, shape, 10 * number + place + 5)[0] for place, shape in enumerate(SHAPES)]
    return Batch.gather(slices, np.array([(number, place) for place in range(len(SHAPES))]), maps=maps)


def assert_same(moved: DeviceBatch, batch: Batch, device: torch.device) -> None:
    assert np.array_equal(moved.samples, batch.samples)
    for found, group in zip(moved.groups, batch.groups, strict=True):
        assert np.array_equal(found.rows, group.rows)
        for tensor, array in ((found.kspace, group.kspace), (found.maps, group.maps)):
            assert tensor is not None
            assert array is not None
            assert tensor.device.type == device.type
            assert tensor.dtype == torch.complex64
            assert np.array_equal(tensor.cpu().numpy(), array)


def test_on_the_cpu_batches_pass_as_they_are() -> None:
    batches = [make_batch(number) for number in range(5)]
    fed = list(feed(iter(batches), CPU))
    assert len(fed) == 5
    for moved, batch in zip(fed, batches, strict=True):
        assert_same(moved, batch, CPU)
        for found, group in zip(moved.groups, batch.groups, strict=True):
            assert np.shares_memory(found.kspace.numpy(), group.kspace), "nothing is copied"


def test_on_the_cpu_nothing_is_taken_in_advance() -> None:
    taken = []

    def endless() -> Iterator[Batch]:
        number = 0
        while True:
            taken.append(number)
            yield make_batch(number)
            number += 1

    fed = feed(endless(), CPU)
    for number in range(3):
        assert next(fed).samples[0, 0] == number
        assert taken == list(range(number + 1))


def test_an_end_and_an_error_arrive() -> None:
    assert list(feed(iter([]), CPU)) == []

    def broken() -> Iterator[Batch]:
        yield make_batch(0)
        raise ValueError("broken")

    fed = feed(broken(), CPU)
    next(fed)
    with pytest.raises(ValueError, match="broken"):
        next(fed)


def test_ordinary_memory_serves_the_cpu() -> None:
    assert page_locked(CPU) is None


@needs_cuda
class TestCuda:
    DEVICE = torch.device("cuda")

    def test_batches_lie_in_page_locked_memory(self) -> None:
        allocate = page_locked(self.DEVICE)
        assert allocate is not None
        array = allocate((2, 1, 8, 6))
        assert (array.shape, array.dtype) == ((2, 1, 8, 6), np.complex64)
        assert torch.from_numpy(array).is_pinned()

    @pytest.mark.parametrize("num_batches", [0, 1, 2, 7])
    def test_batches_arrive_in_order(self, num_batches: int) -> None:
        batches = [make_batch(number) for number in range(num_batches)]
        fed = list(feed(iter(batches), self.DEVICE))
        assert len(fed) == num_batches
        for moved, batch in zip(fed, batches, strict=True):
            assert_same(moved, batch, self.DEVICE)

    def test_memory_is_used_again_only_after_the_copy(self) -> None:
        """Every batch is let go at once, so that the next one may get its page-locked memory."""
        allocate, shape = page_locked(self.DEVICE), (8, 4, 256, 256)
        assert allocate is not None

        def endless() -> Iterator[Batch]:
            number = 0
            while True:
                kspace = allocate(shape)
                kspace[:] = number
                yield Batch.of(kspace, np.full((8, 2), number))
                del kspace
                number += 1

        for number, moved in enumerate(islice(feed(endless(), self.DEVICE), 40)):
            kspace = moved.groups[0].kspace
            work = kspace.abs().square().sum()  # keeps the device busy while the next one is copied
            assert bool((kspace == number).all())
            assert work.isfinite()

    def test_a_batch_can_be_moved_alone(self) -> None:
        batch = make_batch(3)
        assert_same(to_device(batch, self.DEVICE), batch, self.DEVICE)
