"""Follow a run from its folder while it trains, wherever its workers are."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from types import TracebackType

from cluster.run_folder import RunFolder
from storage.errors import InputError


class Follower:
    """Calls `show(row)` for every new history row, from a thread, while the `with` block runs."""

    def __init__(self, run: RunFolder, show: Callable[[Mapping[str, float]], None], seconds: float = 2.0) -> None:
        self._run, self._show, self._seconds = run, show, seconds
        self._last_step = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="larmor-follow", daemon=True)

    def __enter__(self) -> Follower:
        self._poll()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()
        self._poll()

    def _loop(self) -> None:
        while not self._end.wait(self._seconds):
            self._poll()

    def _poll(self) -> None:
        try:
            rows = self._run.history(after=self._last_step)
        except (InputError, OSError):
            return  # the store is away for the moment; the training itself retries and reports
        for row in rows:
            self._last_step = int(row["step"])
            self._show(row)
