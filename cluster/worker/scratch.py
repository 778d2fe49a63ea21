"""Temporary folders that do not outlive their process, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import tempfile
from pathlib import Path

from larmor.storage.objects.errors import InputError
from larmor.storage.objects.lock_file import is_own_folder, locked

_PREFIX = "larmor-checkpoint-"
_LOCK = ".lock"


class Scratch:
    """A folder below the system's temporary one (`TMPDIR`), for this process.

    A killed process cannot clean up: whoever makes the next one on this machine does it then. That a process is gone
    shows by its file lock, which also holds across containers that share the disk.
    """

    def __init__(self) -> None:
        _remove_abandoned()
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._lock = (self.path / f"{_LOCK}.new").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        (self.path / f"{_LOCK}.new").rename(self.path / _LOCK)  # only now others look at it

    def folder(self) -> Path:
        """An empty folder."""
        return Path(tempfile.mkdtemp(dir=self.path))

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def _remove_abandoned() -> None:
    """Only what this account has made: others may put anything into the system's folder, links to our files too."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        if not is_own_folder(folder):
            continue
        with contextlib.suppress(OSError, InputError), locked(folder / _LOCK, create=False):  # else it is in use
            shutil.rmtree(folder, ignore_errors=True)
