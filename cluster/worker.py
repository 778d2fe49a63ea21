"""A rank that writes to its run's folder; `cluster/ray_train.py` adds Ray to it."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from cluster.run_folder import Checkpoint, RunFolder, checkpoint_folder
from recon.metrics import HIGHER_IS_BETTER
from recon.recipe import TrainingConfig


class LocalWorker:
    """One rank of a run (see `recon.worker.Worker`), alone or in an initialised `torch.distributed` group."""

    def __init__(self, run: RunFolder, config: TrainingConfig, device: torch.device) -> None:
        grouped = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.rank = torch.distributed.get_rank() if grouped else 0
        self.world_size = torch.distributed.get_world_size() if grouped else 1
        self.device = device
        self._run, self._config = run, config

    def gather(self, value: Any) -> list[Any]:
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value)
        return values

    def report(self, step: int, metrics: Mapping[str, float], history: Sequence[Mapping[str, float]]) -> None:
        if self.rank == 0:
            self._run.write_history(step, history)

    def save(self, step: int, metrics: Mapping[str, float], write: Callable[[Path], None]) -> None:
        folder = checkpoint_folder(step, self.gather(uuid.uuid4().hex[:8])[0])
        with tempfile.TemporaryDirectory(prefix="larmor-") as local:
            write(Path(local))
            part = self._run.upload_part(Path(local), folder)
        files = {name: entry for part in self.gather(part) for name, entry in part.items()}
        if self.rank == 0:
            self._run.publish(Checkpoint(folder, step, metrics, files))
            metric = self._config.best_metric
            self._run.prune(self._config.keep_checkpoints, f"val/{metric}", HIGHER_IS_BETTER[metric])
        self.gather(None)  # nobody goes on before the checkpoint counts

    def restore(self, read: Callable[[Path], None]) -> bool:
        checkpoint = self.gather(self._run.latest() if self.rank == 0 else None)[0]
        if checkpoint is None:
            return False
        with tempfile.TemporaryDirectory(prefix="larmor-") as local:
            self._run.download(checkpoint, Path(local))
            read(Path(local))
        return True
