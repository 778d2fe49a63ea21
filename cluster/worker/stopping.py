"""Asked to stop: by a signal, or by an order in the run's folder. The training saves a checkpoint and ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from larmor.storage.objects.object_store import ObjectStore

_ORDER = "stop.json"


class Stopped(SystemExit):
    """A training ended before its last step because it was asked to; the exit code is a shell's for the signal.

    No `Exception`: whoever records failures must not take it for one.
    """

    def __init__(self, message: str, number: int = signal.SIGTERM) -> None:
        super().__init__(128 + number)
        self.message = message

    def __str__(self) -> str:
        return self.message


class Interrupted(Stopped):
    """The same in the middle of something: threads still talk to Ray."""


class StopRequest:
    """Whether this process was asked to stop, and by what. Set in any thread, read by the training's.

    The first signal asks. A second signal has its original effect. In any case the process exits `grace_seconds` after
    the first.
    """

    def __init__(self, grace_seconds: float) -> None:
        self.reason: str | None = None
        self.number = int(signal.SIGTERM)
        self._grace_seconds = grace_seconds
        self._before: dict[int, Any] = {}
        self._timer: threading.Timer | None = None
        self._say: Callable[[str], None] = lambda text: None

    def ask(self, reason: str) -> None:
        """Ask from within: nothing forces the process to end."""
        self.reason = self.reason or reason

    def listen(self, *numbers: int, say: Callable[[str], None] | None = None) -> None:
        """Take these signals as requests from now on; `say` is told of the first. In the main thread only."""
        self._say = say or self._say
        for number in numbers:
            self._before[number] = signal.signal(number, self._receive)

    def close(self) -> None:
        """The training is over: signals are what they were before. Any thread may call; the main one restores them."""
        if self._timer is not None:
            self._timer.cancel()
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._before.items():
                signal.signal(number, handler)
        self._grace_seconds = 0.0

    @contextlib.contextmanager
    def listening(self, *numbers: int, say: Callable[[str], None] | None = None) -> Iterator[StopRequest]:
        """`listen` while the block runs; does nothing outside the main thread, where Python allows no handlers."""
        if threading.current_thread() is threading.main_thread():
            self.listen(*numbers, say=say)
        try:
            yield self
        finally:
            self.close()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.reason is not None or not self._grace_seconds:
            self._as_before(number, frame)
            return
        self.number = number
        self.reason = f"{signal.Signals(number).name} to process {os.getpid()} on {socket.gethostname()}"
        self._timer = threading.Timer(self._grace_seconds, os._exit, [128 + number])
        self._timer.daemon = True
        self._timer.start()
        self._say(
            f"{signal.Signals(number).name}: the training saves a checkpoint and stops, within "
            f"{self._grace_seconds:.0f} s; send it again to stop at once"
        )

    def _as_before(self, number: int, frame: FrameType | None) -> None:
        handler = self._before.get(number)
        if callable(handler):
            handler(number, frame)
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


@contextlib.contextmanager
def ending_at(*numbers: int, message: str) -> Iterator[None]:
    """These signals raise `Interrupted(message)` while the block runs; nothing changes outside the main thread.

    Also where they meet a call of Ray, which makes a `SystemExit` of its own out of what a handler raises.
    """
    interrupted: Interrupted | None = None

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = Interrupted(f"{signal.Signals(number).name}: {message}", number)
        raise interrupted

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    except SystemExit as end:
        raise interrupted or end from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def order_stop(store: ObjectStore, reason: str) -> None:
    """Leave word in a run's folder that its training is to stop, wherever it runs."""
    store.write(_ORDER, json.dumps({"reason": reason}).encode())


def stop_order(store: ObjectStore) -> str | None:
    """The reason that `order_stop` gave, if it was called."""
    try:
        reason: str = json.loads(store.read(_ORDER))["reason"]
    except FileNotFoundError:
        return None
    return reason


def withdraw_stop_order(store: ObjectStore) -> None:
    store.delete(_ORDER)
