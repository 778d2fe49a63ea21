"""Results come in order, errors end everything, and no thread is left."""

from __future__ import annotations

import threading
import time

import pytest

from larmor.storage.objects.parallel import default_threads, run_in_threads


@pytest.mark.parametrize("num_threads", [1, 3, 20])
def test_results_come_in_the_order_of_the_items(num_threads: int) -> None:
    calls: list[int] = []

    def work(item: int) -> int:
        time.sleep(0.001 * (item % 3))
        return item * item

    before = threading.active_count()
    assert run_in_threads(work, range(12), num_threads, calls.append) == [item * item for item in range(12)]
    assert calls == list(range(13))
    assert threading.active_count() == before
    assert run_in_threads(work, [], num_threads) == []


@pytest.mark.parametrize("num_threads", [1, 3])
def test_after_an_error_nothing_more_is_begun(num_threads: int) -> None:
    begun: list[int] = []

    def work(item: int) -> None:
        begun.append(item)
        if item == 2:
            raise KeyError(item)
        time.sleep(0.02)

    before = threading.active_count()
    with pytest.raises(KeyError, match="2"):
        run_in_threads(work, range(50), num_threads)
    assert len(begun) <= 2 + num_threads
    assert threading.active_count() == before


def test_an_error_of_the_listener_ends_the_work() -> None:
    begun: list[int] = []

    def listen(count: int) -> None:
        if count == 1:
            raise KeyboardInterrupt

    def work(item: int) -> None:
        begun.append(item)
        time.sleep(0.01)

    with pytest.raises(KeyboardInterrupt):
        run_in_threads(work, range(100), 2, listen)
    assert len(begun) < 10


def test_the_default_is_between_one_and_eight() -> None:
    assert 1 <= default_threads() <= 8
