"""Files that one process at a time locks, in folders that other accounts may write to as well."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from larmor.storage.objects.errors import InputError


@contextmanager
def locked(path: Path, wait: bool = False, create: bool = True) -> Iterator[None]:
    """Hold the lock of the file `path` while the block runs. Its content is never touched, and no link is followed:
    where the name can be guessed, somebody else may have planted one that leads to a file of ours.

    Raises `BlockingIOError` if another process has the lock and `wait` is False, `InputError` for a link, and `OSError`
    for what else a disk answers.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | (os.O_CREAT if create else 0)
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise InputError(
                f"{path}: is a link; remove it if you did not make it, or choose another folder"
            ) from error
        raise
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def is_own_folder(path: Path) -> bool:
    """Whether `path` is a folder, not a link to one, of the account that runs this process."""
    try:
        status = path.lstat()
    except OSError:
        return False
    return path.is_dir() and not path.is_symlink() and status.st_uid == os.getuid()
