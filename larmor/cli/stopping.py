"""How a command ends that runs until somebody stops it."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def until_stopped() -> Iterator[None]:
    """Ctrl-C ends the block, and so does SIGTERM, which containers and systemd send: what comes after it still runs."""
    from larmor.cli.console import console

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        console.print("closed", markup=False)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)  # None: not of Python
