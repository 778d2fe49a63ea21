"""Follow what a run writes to its folder while it trains, wherever its workers are."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Generic, TypeVar

from larmor.storage.objects.errors import InputError

R = TypeVar("R")
_SECONDS = 2.0  # between two looks


class Follower(Generic[R]):
    """Calls `show(record)` for every record that `fetch()` returns, from a thread, while the `with` block runs."""

    def __init__(self, fetch: Callable[[], Sequence[R]], show: Callable[[R], None]) -> None:
        self._fetch, self._show = fetch, show
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="larmor-follow", daemon=True)

    def __enter__(self) -> Follower[R]:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def _loop(self) -> None:
        while True:
            ending = self._end.wait(_SECONDS)
            try:
                records = self._fetch()
            except (InputError, OSError):
                records = ()  # the store is away for the moment; whoever trains retries, and reports it
            for record in records:
                self._show(record)
            if ending:
                return
