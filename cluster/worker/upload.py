"""The upload of a checkpoint while the training continues."""

from __future__ import annotations

import dataclasses
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from larmor.cluster.runs.checkpoint import Checkpoint
from larmor.cluster.runs.lease import LeaseLost
from larmor.cluster.runs.run_folder import RunFolder
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.store_errors import StoreAway

_LONGEST_PAUSE = 1.0  # seconds


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay: the `newest` last ones and the `best` by `metric`."""

    newest: int
    best: int
    metric: str
    higher_is_better: bool


class Upload:
    """One rank's files of a checkpoint, hashed and put by a thread of their own; rank 0's thread publishes the whole.

    There are no collectives in here, process groups are not thread-safe: ranks meet in the store. Each ends with its
    part of the manifest, and rank 0 waits for all of them.
    """

    def __init__(
        self,
        run: RunFolder,
        local: Path,
        checkpoint: Checkpoint,
        rank: int,
        world_size: int,
        retention: Retention,
        before_publishing: Callable[[], None] = lambda: None,
        published: Callable[[], None] = lambda: None,
    ) -> None:
        """Takes over the folder `local`, and removes it. The two functions are called in the thread, on rank 0."""
        self.error: Exception | None = None
        self.seconds = 0.0
        self._run, self._local, self._checkpoint = run, local, checkpoint
        self._rank, self._world_size, self._retention = rank, world_size, retention
        self._before_publishing, self._published = before_publishing, published
        self._sent, self._abandoned = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="larmor-upload", daemon=True)
        self._thread.start()

    def wait_sent(self) -> Exception | None:
        """Wait until this rank's files are in the store; the error if they are not."""
        self._sent.wait()
        return self.error

    def wait(self, seconds: float | None = None) -> Exception | None:
        """Wait until the checkpoint is published, on rank 0; the error if it could not be.

        Call it once all ranks' files are sent, or with a limit: after so many `seconds` it is given up.
        """
        self._thread.join(seconds)
        self._abandoned.set()
        self._thread.join()
        return self.error

    def abandon(self) -> None:
        """Do not publish. Returns at once."""
        self._abandoned.set()

    def _work(self) -> None:
        began = time.perf_counter()
        try:
            self._send()
            self._sent.set()
            if self._rank == 0:
                self._publish()
        except LeaseLost as error:
            self.error = error
        except InputError as error:
            kind = StoreAway if isinstance(error, StoreAway) else InputError
            self.error = kind(f"the checkpoint of step {self._checkpoint.step} could not be stored: {error}")
        except Exception as error:
            self.error = error
        finally:
            self.seconds = time.perf_counter() - began
            self._sent.set()

    def _send(self) -> None:
        folder = self._checkpoint.folder
        try:
            self._run.write_part(folder, self._rank, self._run.upload_part(self._local, folder))
        finally:
            shutil.rmtree(self._local, ignore_errors=True)

    def _publish(self) -> None:
        pause = 0.02
        while (files := self._run.read_parts(self._checkpoint.folder, self._world_size)) is None:
            if self._abandoned.wait(pause):
                raise InputError("the other workers ended before their files were stored")
            pause = min(2 * pause, _LONGEST_PAUSE)
        self._before_publishing()
        self._run.publish(dataclasses.replace(self._checkpoint, files=files))
        self._published()
        keep = self._retention
        self._run.prune(keep.newest, keep.best, keep.metric, keep.higher_is_better)
