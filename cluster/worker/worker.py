"""A rank that writes to its run's folder; `cluster/on_ray/ray_train.py` adds Ray to it."""

from __future__ import annotations

import logging
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
import torch.distributed

from larmor.cluster.runs.attempts import Attempt
from larmor.cluster.runs.checkpoint import WEIGHTS, Checkpoint, DamagedCheckpoint, checkpoint_folder
from larmor.cluster.runs.lease import LeaseLost
from larmor.cluster.runs.reports import Reports
from larmor.cluster.runs.run_folder import RunFolder
from larmor.cluster.worker.agreement import Agreement
from larmor.cluster.worker.exchange import exchange, share_out
from larmor.cluster.worker.heartbeat import Place
from larmor.cluster.worker.scratch import Scratch
from larmor.cluster.worker.stopping import StopRequest
from larmor.cluster.worker.upload import Retention, Upload
from larmor.cluster.worker.watchdog import Watchdog
from larmor.recon.recipe.metric import HIGHER_IS_BETTER
from larmor.recon.recipe.recipe import TrainingConfig
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.store_errors import StoreAway, again_if_damaged

T = TypeVar("T")

_PATIENCE_AT_ERROR = 30.0  # seconds for the other ranks' files, once a training has failed
_LOG = logging.getLogger(__name__)


class LocalWorker:
    """One rank of a run (see `worker.Worker`), alone or in an initialised `torch.distributed` group.

    To be used in a `with` block: at its end every saved checkpoint is published, or an error is raised.

    `checkpoint_seconds` is for how long checkpoints have kept the training waiting, `upload_seconds` how long their
    uploads took beside it.
    """

    def __init__(
        self, run: RunFolder, config: TrainingConfig, device: torch.device, request: StopRequest | None = None
    ) -> None:
        grouped = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.rank = torch.distributed.get_rank() if grouped else 0
        self.world_size = torch.distributed.get_world_size() if grouped else 1
        self.device = device
        self.request = request or StopRequest(grace_seconds=0)
        self.place = Place()
        self.checkpoint_seconds = 0.0
        self.upload_seconds = 0.0
        self._run = run
        self._agreement = Agreement(self.world_size, num_questions=2)
        metric = config.best_metric
        self._retention = Retention(
            config.keep_checkpoints, config.keep_best, f"val/{metric}", HIGHER_IS_BETTER[metric]
        )
        self._scratch = Scratch()
        self._upload: Upload | None = None
        self._began = time.time()
        self._reports: Reports | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.flush()
            else:
                self._end_upload(error)
        finally:
            if self._reports:
                self._reports.close()
            self._scratch.remove()
            self._agreement.close()

    def progress(self, step: int, phase: str) -> None:
        self.place.at(step, phase)

    def should_stop(self) -> bool:
        return self.vote()[0]

    def vote(self, question: bool = False) -> list[bool]:
        """Whether any rank was asked to stop, and whether rank 0 has a `question` for all of them."""
        return self._agreement.vote(self.request.reason is not None, question and self.rank == 0)

    def watched(self, hang_seconds: float) -> Watchdog:
        """Watch this rank in a `with` block: orders to stop arrive, and a hang ends the process."""
        return Watchdog(self._run.store, self.rank, self.world_size, self.place, self.request, hang_seconds)

    def gather(self, value: Any) -> list[Any]:
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value)
        return values

    def begin(self, step: int) -> None:
        self._on_rank_0(lambda: self._begin_attempt(step))

    def report(self, step: int, metrics: Mapping[str, float], history: Sequence[Mapping[str, float]]) -> bool:
        self._on_rank_0(lambda: self._publish(step, metrics, history))
        return False

    def save(self, step: int, metrics: Mapping[str, float], write: Callable[[Path], None]) -> None:
        """Blocks while the files are written to a local folder, and before that while the last ones are uploaded.

        Raises what the last upload raised, on all ranks alike.
        """
        self.flush()
        began = time.perf_counter()
        folder = checkpoint_folder(step, self.gather(uuid.uuid4().hex[:8])[0])
        local = self._scratch.folder()
        try:
            write(local)
        except BaseException:
            shutil.rmtree(local, ignore_errors=True)
            raise
        checkpoint = Checkpoint(folder, step, metrics, {})
        reported = self._reports.up_to_now() if self._reports else lambda: None
        self._upload = Upload(self._run, local, checkpoint, self.rank, self.world_size, self._retention, reported)
        self.checkpoint_seconds += time.perf_counter() - began

    def flush(self) -> None:
        """Wait until the saved checkpoint is published. Every rank calls; raises its error on all of them."""
        if (upload := self._upload) is None:
            return
        began, self._upload = time.perf_counter(), None
        try:
            self._agree(upload.wait_sent())
            self._agree(upload.wait())
        finally:
            upload.abandon()
            self.upload_seconds += upload.seconds
            self.checkpoint_seconds += time.perf_counter() - began

    def restore(self, read: Callable[[Path], None]) -> bool:
        """The newest checkpoint whose files are all as they were written; damaged ones after it are taken back.

        Raises `InputError`, on all ranks, if there are checkpoints but none of them is whole.
        """
        skipped: list[Checkpoint] = []
        problems: list[str] = []
        for checkpoint in reversed(self._on_rank_0(self._published)):
            local = self._scratch.folder()
            try:
                problem = checkpoint.problem or self._fetch(checkpoint, local)
                found = [item for item in self.gather(problem) if item]
                if not found:
                    read(local)
                    self._on_rank_0(lambda: self._record(skipped, problems, checkpoint))  # noqa: B023
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

    def _begin_attempt(self, step: int) -> None:
        attempt = Attempt.begin(self._run.store, self.world_size, step, self._began)
        self._reports = Reports(self._run.store, attempt, self._scratch.folder(), write_history=self._run.write_history)

    def _publish(self, step: int, metrics: Mapping[str, float], history: Sequence[Mapping[str, float]]) -> None:
        assert self._reports is not None, "begin comes first"
        self._reports.add(step, metrics, history)

    def _published(self) -> list[Checkpoint]:
        self._run.check_lease()
        return self._run.published()

    def _fetch(self, checkpoint: Checkpoint, local: Path) -> str:
        """All files, a share of them from the store, the others from the other ranks; what is wrong with them."""
        sizes = {name: entry.size for name, entry in checkpoint.files.items()}
        owners = share_out(sizes, self.world_size)
        problem = self._download(checkpoint, local, [name for name, owner in owners.items() if owner == self.rank])
        if self.world_size == 1 or any(self.gather(problem)):
            return problem
        exchange(local, sizes, owners, self.device)
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

    def _on_rank_0(self, act: Callable[[], T]) -> T:
        """What `act` returns on rank 0, on every rank; or its error."""
        value, failure = None, None
        if self.rank == 0:
            try:
                value = act()
            except Exception as error:
                failure = error
        self._agree(failure)
        return self.gather(value)[0]

    def _agree(self, failure: Exception | None) -> None:
        """Every rank calls; if one has an error, it is raised on all of them."""
        portable = failure
        if failure is not None and not isinstance(failure, InputError):
            portable = RuntimeError(f"rank {self.rank}: {type(failure).__name__}: {failure}")
        for error in self.gather(portable):
            if error is not None:
                raise error from failure

    def _end_upload(self, error: BaseException) -> None:
        """After an error the other ranks may be gone: save what can be saved without them, and hide nothing."""
        if (upload := self._upload) is None:
            return
        if isinstance(error, StoreAway | LeaseLost):
            upload.abandon()
            return
        upload.wait_sent()
        if failure := upload.wait(seconds=_PATIENCE_AT_ERROR):
            _LOG.warning("%s", failure)
