"""A rank that trains a run and writes to its folder: what stands behind the training loop's `Worker`, with or without
Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from larmor.cluster.runs.attempts import Attempt
from larmor.cluster.runs.reports import Reports
from larmor.cluster.runs.run_folder import RunFolder
from larmor.cluster.worker.checkpoints import Checkpoints
from larmor.cluster.worker.heartbeat import Place
from larmor.cluster.worker.ranks import Ranks
from larmor.cluster.worker.scratch import Scratch
from larmor.cluster.worker.stopping import StopRequest
from larmor.cluster.worker.tracker import End
from larmor.cluster.worker.tracking import Tracking
from larmor.cluster.worker.upload import Retention
from larmor.cluster.worker.watchdog import Watchdog
from larmor.recon.recipe.own_metric import find_metric
from larmor.recon.recipe.recipe import TrainingConfig

Notice = Callable[[], str | None]  # why the machines are about to be taken away; the same answer on all ranks
Judge = Callable[[int, Mapping[str, float]], bool]  # step, metrics → whether to end now; the same on all ranks

_NOTICE_SECONDS = 5.0  # between two questions


class RunWorker:
    """One rank of a run, for the training loop (see `recon.training.worker.Worker`).

    To be used in a `with` block: at its end every saved checkpoint is published, or an error is raised. `ranks` stays
    open. All ranks ask for `notice` at the same step, every few seconds, and call `judge` after every report.
    """

    def __init__(
        self,
        ranks: Ranks,
        run: RunFolder,
        config: TrainingConfig,
        device: torch.device,
        request: StopRequest | None = None,
        notice: Notice | None = None,
        judge: Judge | None = None,
        tracking: Tracking | None = None,
    ) -> None:
        self.ranks = ranks
        self.rank, self.world_size = ranks.rank, ranks.world_size
        self.device = device
        self.request = request or StopRequest(grace_seconds=0)
        self.place = Place()
        self._run, self._notice, self._judge, self._tracking = run, notice, judge, tracking
        metric, higher = config.best_metric, find_metric(config.best_metric).higher_is_better
        retention = Retention(config.keep_checkpoints, config.keep_best, f"val/{metric}", higher)
        self._scratch = Scratch()
        self.checkpoints = Checkpoints(run, ranks, self._scratch, device, retention, self._published)
        self._began = time.time()
        self._asked = 0.0
        self._reports: Reports | None = None
        self._picture: np.ndarray | None = None
        self._stopped = False

    def __enter__(self) -> Self:
        self.ranks.forget_votes()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.checkpoints.close(error)
        finally:
            if self._reports:
                self._reports.close()
            if self._tracking:
                how: End = "failed" if error else "stopped" if self._stopped else "finished"
                self._tracking.close(how, lambda: self.place.at(self.place.step, "report"))
            self._scratch.remove()

    def progress(self, step: int, phase: str) -> None:
        self.place.at(step, phase)

    def should_stop(self) -> bool:
        due = self._notice is not None and time.monotonic() - self._asked > _NOTICE_SECONDS
        if due:
            self._asked = time.monotonic()
        wanted, ask = self.ranks.vote(self.request.reason is not None, due)
        if self._notice and ask and not wanted and (reason := self._notice()) is not None:
            self.request.ask(reason)
            wanted = True
        self._stopped = self._stopped or wanted
        return wanted

    def watched(self, hang_seconds: float) -> Watchdog:
        """Watch this rank in a `with` block: orders to stop arrive, and a hang ends the process."""
        return Watchdog(self._run.store, self.rank, self.world_size, self.place, self.request, hang_seconds)

    def gather(self, value: Any) -> list[Any]:
        return self.ranks.gather(value)

    def begin(self, step: int) -> None:
        self.ranks.on_rank_0(lambda: self._begin_attempt(step))

    def show(self, picture: np.ndarray) -> None:
        self._picture = picture

    def report(self, step: int, metrics: Mapping[str, float], history: Sequence[Mapping[str, float]]) -> bool:
        self.ranks.on_rank_0(lambda: self._publish(step, metrics, history))
        ended = self._judge is not None and self._judge(step, metrics)
        self._stopped = self._stopped or ended
        return ended

    def save(self, step: int, metrics: Mapping[str, float], write: Callable[[Path], None]) -> None:
        """See `Checkpoints.save`; published once the reports up to now are stored."""
        reported = self._reports.up_to_now() if self._reports else lambda: None
        self.checkpoints.save(step, metrics, write, reported)

    def restore(self, read: Callable[[Path], None]) -> bool:
        return self.checkpoints.restore(read)

    def initial(self, read: Callable[[Path], None]) -> None:
        self.checkpoints.initial(read)

    def _begin_attempt(self, step: int) -> None:
        attempt = Attempt.begin(self._run.store, self.world_size, step, self._began)
        tell = self._tracking.add if self._tracking else lambda record, picture: None
        self._reports = Reports(
            self._run.store, attempt, self._scratch.folder(), write_history=self._run.write_history, tell=tell
        )
        if self._tracking:
            self._tracking.begin(attempt)

    def _published(self) -> None:
        if self._tracking:
            self._tracking.saved()

    def _publish(self, step: int, metrics: Mapping[str, float], history: Sequence[Mapping[str, float]]) -> None:
        assert self._reports is not None, "begin comes first"
        self._reports.add(step, metrics, history, self._picture)
        self._picture = None
