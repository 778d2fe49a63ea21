"""Sources are opened once as long as there is room, shared by threads, and all closed in the end."""

from __future__ import annotations

import random
import threading
import time
from contextlib import ExitStack

import numpy as np
import pytest

from larmor.storage.conversion.open_sources import OpenSources, Read
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.parallel import run_in_threads


class Recorder:
    """Counts what is open, and fails where a source is read by two threads at once."""

    def __init__(self) -> None:
        self.opened: list[int] = []
        self.open: list[int] = []
        self.most_open = 0
        self._lock = threading.Lock()

    def __call__(self, number: int, resources: ExitStack) -> Read:
        with self._lock:
            assert number not in self.open
            self.opened.append(number)
            self.open.append(number)
            self.most_open = max(self.most_open, len(self.open))
        resources.callback(self._close, number)
        time.sleep(random.uniform(0, 0.002))
        if number == 13:
            raise InputError("13 cannot be opened")
        reading = threading.Lock()

        def read(index: int) -> np.ndarray:
            assert reading.acquire(blocking=False), "two threads read at once"
            assert number in self.open
            time.sleep(random.uniform(0, 0.001))
            reading.release()
            return np.array([number, index])

        return read

    def _close(self, number: int) -> None:
        with self._lock:
            self.open.remove(number)


@pytest.mark.parametrize("num_threads", [1, 2, 8])
def test_threads_share_what_is_open(num_threads: int) -> None:
    recorder = Recorder()
    sources = OpenSources(recorder, num_threads)
    wanted = [shard // 5 for shard in range(60)]  # five shards of each source, in order

    def work(number: int) -> None:
        with sources.use(number) as read:
            assert read(4).tolist() == [number, 4]

    run_in_threads(work, wanted, num_threads)
    assert recorder.most_open <= num_threads
    assert len(recorder.opened) == 12, "each was opened once"
    sources.close()
    assert recorder.open == []


def test_the_one_used_longest_ago_makes_room() -> None:
    recorder = Recorder()
    sources = OpenSources(recorder, 2)
    for number in (1, 2, 1, 3, 1, 2):
        with sources.use(number) as read:
            read(0)
    assert recorder.opened == [1, 2, 3, 2]
    assert sorted(recorder.open) == [1, 2]
    sources.close()
    assert recorder.open == []


def test_what_cannot_be_opened_leaves_nothing_open() -> None:
    recorder = Recorder()
    sources = OpenSources(recorder, 2)
    for _ in range(2):
        with pytest.raises(InputError, match="13 cannot be opened"), sources.use(13):
            pass
    assert recorder.open == []
    assert recorder.opened == [13, 13], "it is tried again"
    with sources.use(1) as read:
        assert read(0).tolist() == [1, 0]
    sources.close()
