"""A run's checkpoints as its ranks save and restore them together."""

from __future__ import annotations

import logging
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from larmor.cluster.runs.checkpoint import WEIGHTS, Checkpoint, DamagedCheckpoint, Files, checkpoint_folder
from larmor.cluster.runs.initial import FOLDER, RECORD, read_initial
from larmor.cluster.runs.lease import LeaseLost
from larmor.cluster.runs.run_folder import RunFolder
from larmor.cluster.worker.exchange import exchange, share_out
from larmor.cluster.worker.ranks import Ranks
from larmor.cluster.worker.scratch import Scratch
from larmor.cluster.worker.upload import Retention, Upload
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.store_errors import StoreAway, again_if_damaged

_PATIENCE_AT_ERROR = 30.0  # seconds for the other ranks' files, once a training has failed
_LOG = logging.getLogger(__name__)


class Checkpoints:
    """Saves checkpoints of a run beside its training, one at a time, and restores the newest whole one.

    All ranks call `save`, `flush` and `restore` in the same order. `blocked_seconds` is for how long saving has kept
    the training waiting, `upload_seconds` how long the uploads took beside it. Local copies lie in `scratch`; ranks
    exchange files through `device`. `published` is called on rank 0 after each, in the thread of the upload.
    """

    def __init__(
        self,
        run: RunFolder,
        ranks: Ranks,
        scratch: Scratch,
        device: torch.device,
        retention: Retention,
        published: Callable[[], None] = lambda: None,
    ) -> None:
        self.blocked_seconds = 0.0
        self.upload_seconds = 0.0
        self._run, self._ranks, self._scratch = run, ranks, scratch
        self._device, self._retention, self._tell_published = device, retention, published
        self._upload: Upload | None = None

    def save(
        self,
        step: int,
        metrics: Mapping[str, float],
        write: Callable[[Path], None],
        before_publishing: Callable[[], None] = lambda: None,
    ) -> None:
        """Let `write` fill a local folder with this rank's files, and upload it while the training continues.

        Blocks while the files are written, and before that while the last ones are uploaded. `before_publishing` is
        called on rank 0 in the thread of the upload. Raises what the last upload raised, on all ranks alike.
        """
        self.flush()
        began = time.perf_counter()
        folder = checkpoint_folder(step, self._ranks.gather(uuid.uuid4().hex[:8])[0])
        local = self._scratch.folder()
        try:
            write(local)
        except BaseException:
            shutil.rmtree(local, ignore_errors=True)
            raise
        checkpoint = Checkpoint(folder, step, metrics, {})
        rank, world_size = self._ranks.rank, self._ranks.world_size
        self._upload = Upload(
            self._run, local, checkpoint, rank, world_size, self._retention, before_publishing, self._tell_published
        )
        self.blocked_seconds += time.perf_counter() - began

    def flush(self) -> None:
        """Wait until the saved checkpoint is published. Every rank calls; raises its error on all of them."""
        if (upload := self._upload) is None:
            return
        began, self._upload = time.perf_counter(), None
        try:
            self._ranks.agree(upload.wait_sent())
            self._ranks.agree(upload.wait())
        finally:
            upload.abandon()
            self.upload_seconds += upload.seconds
            self.blocked_seconds += time.perf_counter() - began

    def close(self, error: BaseException | None) -> None:
        """The training has ended, with `error` or well: `flush`.

        After an error the other ranks may be gone: save what can be saved without them, and hide nothing.
        """
        if error is None:
            self.flush()
        elif self._upload is not None and isinstance(error, StoreAway | LeaseLost):
            self._upload.abandon()
        elif self._upload is not None:
            self._upload.wait_sent()
            if failure := self._upload.wait(seconds=_PATIENCE_AT_ERROR):
                _LOG.warning("%s", failure)

    def restore(self, read: Callable[[Path], None]) -> bool:
        """Let `read` load the newest checkpoint whose files are all as they were written; False if there is none.

        Damaged checkpoints after it are taken back. Raises `InputError`, on all ranks, if there are checkpoints but
        none of them is whole.
        """
        skipped: list[Checkpoint] = []
        problems: list[str] = []
        for checkpoint in reversed(self._ranks.on_rank_0(self._published)):
            local = self._scratch.folder()
            try:
                problem = checkpoint.problem or self._fetch(checkpoint, local)
                found = [item for item in self._ranks.gather(problem) if item]
                if not found:
                    read(local)
                    self._ranks.on_rank_0(lambda: self._record(skipped, problems, checkpoint))  # noqa: B023
                    return True
            finally:
                shutil.rmtree(local, ignore_errors=True)
            skipped.append(checkpoint)
            problems.append(found[0])
        if skipped:
            reasons = "; ".join(f"{item.folder}: {text}" for item, text in zip(skipped, problems, strict=True))
            raise InputError(
                f"{self._run.url}: none of its {len(skipped)} checkpoints can be used ({reasons}); restore the files "
                "from a copy, or pass --overwrite to start again"
            )
        return False

    def initial(self, read: Callable[[Path], None]) -> None:
        """Let `read` load the weights that the run starts from (cluster/runs/initial.py), in one folder.

        Raises `InputError`, on all ranks, if they are not there, or not as they were written.
        """
        files = self._ranks.on_rank_0(self._initial_files)
        local = self._scratch.folder()
        try:
            problem = self._fetch(Checkpoint(FOLDER, 0, {}, files), local)
            if found := [item for item in self._ranks.gather(problem) if item]:
                raise InputError(f"{found[0]}; restore the file from a copy, or pass --overwrite to start again")
            read(local)
        finally:
            shutil.rmtree(local, ignore_errors=True)

    def _initial_files(self) -> Files:
        if (found := read_initial(self._run.store)) is None:
            raise InputError(f"{self._run.url}: lacks its initial weights ({RECORD}); start it with `larmor train`")
        return found.files

    def _published(self) -> list[Checkpoint]:
        self._run.check_lease()
        return self._run.published()

    def _fetch(self, checkpoint: Checkpoint, local: Path) -> str:
        """All files, a share of them from the store, the others from the other ranks; what is wrong with them."""
        ranks = self._ranks
        sizes = {name: entry.size for name, entry in checkpoint.files.items()}
        owners = share_out(sizes, ranks.world_size)
        problem = self._download(checkpoint, local, [name for name, owner in owners.items() if owner == ranks.rank])
        if ranks.world_size == 1 or any(ranks.gather(problem)):
            return problem
        exchange(local, sizes, owners, self._device)
        return self._download(checkpoint, local, list(sizes))  # compares each with its checksum

    def _download(self, checkpoint: Checkpoint, local: Path, names: Sequence[str]) -> str:
        """Get the files that are not there as the manifest says; what is wrong with them."""
        try:
            again_if_damaged(lambda: self._run.download(checkpoint, local, names))
        except DamagedCheckpoint as error:
            return error.problem
        return ""

    def _record(self, skipped: Sequence[Checkpoint], problems: Sequence[str], used: Checkpoint) -> None:
        """The training comes by the steps of `skipped` again, and saves them again."""
        for checkpoint, problem in zip(skipped, problems, strict=True):
            text = f"{checkpoint.folder} was skipped: {problem}; the training resumed from step {used.step}"
            _LOG.warning("%s: %s", self._run.url, text)
            self._run.write_warning(checkpoint.folder, text)
            self._run.take_back(checkpoint, problem, self._is_model(checkpoint))

    def _is_model(self, checkpoint: Checkpoint) -> bool:
        """Whether its weights are as they were written, whatever is wrong with the files beside them."""
        if checkpoint.weights_problem or WEIGHTS not in checkpoint.files:
            return False
        local = self._scratch.folder()
        try:
            again_if_damaged(lambda: self._run.download(checkpoint, local, [WEIGHTS]))
        except DamagedCheckpoint:
            return False
        finally:
            shutil.rmtree(local, ignore_errors=True)
        return True
