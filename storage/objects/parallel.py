"""Work spread over threads, with an end: nothing runs on after an error."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_MOST_THREADS = 8  # by default: each may hold a shard and a scan in memory


def default_threads() -> int:
    """The processors that this process may use, at most eight."""
    try:
        available = len(os.sched_getaffinity(0))
    except AttributeError:  # not every system has it
        available = os.cpu_count() or 1
    return min(available, _MOST_THREADS)


def run_in_threads(
    work: Callable[[T], R], items: Sequence[T], num_threads: int, done: Callable[[int], None] = lambda count: None
) -> list[R]:
    """`work` of every item, in the order of `items`; `done` is told, in the calling thread, how many are finished.

    After the first exception nothing more is begun, what runs is waited for, and that exception is raised.
    """
    errors: list[BaseException] = []

    def guarded(item: T) -> R:
        if errors:
            raise CancelledError
        try:
            return work(item)
        except BaseException as error:
            errors.append(error)
            raise

    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="larmor-work")
    try:
        futures = [pool.submit(guarded, item) for item in items]
        done(0)
        for count, future in enumerate(as_completed(futures), start=1):
            if errors:
                break
            future.result()
            done(count)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    if errors:
        raise errors[0]
    return [future.result() for future in futures]
