"""Memory is used again, but never while anything looks at it."""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from larmor.storage.loading.buffers import Recycler
from tests.helpers import property_test

SIZE = 3 * 2**20


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


VIEWS: dict[str, Callable[[np.ndarray], Any]] = {
    "the array": lambda array: array,
    "a slice": lambda array: array[1000:2000],
    "one element": lambda array: array[7:8],
    "a view of a view": lambda array: array[8:].view(np.complex64).reshape(1, -1)[0, ::2],
    "a memoryview": lambda array: array.data,
    "a slice of a memoryview": lambda array: memoryview(array.data)[5:9].cast("B"),
    "an array over a memoryview": lambda array: np.frombuffer(array.data[8:24], "<c8"),
    "a tensor": torch.from_numpy,
    "a slice of a tensor": lambda array: torch.from_numpy(array.view(np.complex64))[3:5].real,
}


@pytest.mark.parametrize("view", VIEWS)
def test_memory_is_used_again_after_the_last_view_and_not_before(view: str) -> None:
    recycler = Recycler(2 * SIZE)
    array = recycler.empty(SIZE)
    place = address(array)
    array[:] = 1
    kept = VIEWS[view](array)
    del array
    gc.collect()
    others = [recycler.empty(SIZE) for _ in range(4)]
    for other in others:
        other[:] = 2
    assert place not in {address(other) for other in others}
    content = kept.numpy() if isinstance(kept, torch.Tensor) else np.asarray(kept)
    assert not (np.ascontiguousarray(content).view(np.uint8) == 2).any()
    del kept, content, other, others
    gc.collect()
    assert recycler._idle_bytes > 0
    again = [recycler.empty(SIZE) for _ in range(3)]
    assert len({address(array) for array in again}) == 3


def test_what_was_given_back_last_is_used_first() -> None:
    recycler = Recycler(2 * SIZE)
    array = recycler.empty(SIZE)
    place = address(array)
    del array
    assert address(recycler.empty(SIZE)) == place


@pytest.mark.parametrize("num_bytes", [0, 1, 2**16 - 1, 2**16, 2**16 + 1, 2**20 - 1, 2**20, 5 * 2**20 + 3])
def test_an_array_has_the_size_that_was_asked_for(num_bytes: int) -> None:
    recycler = Recycler(10 * SIZE)
    for _ in range(3):
        array = recycler.empty(num_bytes)
        assert (array.shape, array.dtype) == ((num_bytes,), np.uint8)
        array[:] = 3
        del array


@property_test
@given(st.lists(st.tuples(st.integers(0, 3 * 2**20), st.booleans()), max_size=30), st.integers(0, 5 * 2**20))
def test_what_waits_keeps_its_bound(requests: list[tuple[int, bool]], max_idle: int) -> None:
    recycler = Recycler(max_idle)
    held = []
    for num_bytes, is_held in requests:
        array = recycler.empty(num_bytes)
        if is_held:
            held.append(array)
        del array
        waiting = [memory.nbytes for memories in recycler._idle.values() for memory in memories]
        assert sum(waiting) == recycler._idle_bytes <= max_idle
    places = sorted((address(array), array.nbytes) for array in held if array.nbytes)
    assert all(start + size <= later for (start, size), (later, _) in pairwise(places))


def test_threads_never_hold_the_same_memory() -> None:
    recycler, barrier = Recycler(8 * SIZE), threading.Barrier(8)

    def work(seed: int) -> bool:
        rng, held = random.Random(seed), []
        barrier.wait()
        for turn in range(300):
            array = recycler.empty(rng.choice((2**16, 2**17, 2**18)))
            array[:: 2**12] = value = (seed * 31 + turn) % 251
            held.append((array, value))
            if len(held) > 3:
                array, value = held.pop(rng.randrange(4))
                if not (array[:: 2**12] == value).all():
                    return False
            del array
        return all((array[:: 2**12] == value).all() for array, value in held)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_the_garbage_collector_may_give_memory_back_at_any_moment() -> None:
    """Also while the same thread is inside the recycler: it does not wait for itself then."""

    class Cycle:
        def __init__(self, array: np.ndarray) -> None:
            self.array, self.itself = array, self

    class Collecting(dict[int, list[np.ndarray]]):
        def get(self, *arguments: Any) -> Any:
            gc.collect()
            return super().get(*arguments)

        def setdefault(self, *arguments: Any) -> Any:
            gc.collect()
            return super().setdefault(*arguments)

    recycler, done = Recycler(2**30), threading.Event()
    recycler._idle = Collecting()

    def work() -> None:
        for turn in range(5):
            Cycle(recycler.empty(2**16 * (1 + turn % 3)))
            recycler.empty(2**16)
        done.set()

    gc.collect()
    gc.freeze()  # else every collection looks at all that other tests have left
    try:
        threading.Thread(target=work, daemon=True).start()
        assert done.wait(60)
        gc.collect()
    finally:
        gc.unfreeze()
    assert recycler._idle_bytes == sum(memory.nbytes for memories in recycler._idle.values() for memory in memories)


def test_an_array_outlives_its_recycler() -> None:
    recycler = Recycler(SIZE)
    array = recycler.empty(SIZE)
    array[:] = 7
    del recycler
    gc.collect()
    assert (array == 7).all()
