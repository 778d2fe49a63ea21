"""What a training reports: the loss terms of its steps, and what stops it when they are not finite."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from larmor.recon.physics.samples import Sample
from larmor.recon.recipe.recipe import Recipe
from larmor.recon.training.balance import figures as balance_figures
from larmor.recon.training.speed import Speed
from larmor.recon.training.worker import Worker
from larmor.storage.dataset.dataset import SplitInfo
from larmor.storage.objects.errors import InputError


class TrainingDiverged(InputError):
    """A loss or a validation metric is not finite any more, or the critic ran away.

    Raised by all ranks at the same step; a restart would only repeat it.
    """


class History:
    """Collects the loss terms of each step and reports their means over micro-batches and ranks.

    `info` says of which slices a training is, to name those that are broken; without it none are looked for.
    """

    def __init__(self, worker: Worker, recipe: Recipe, info: SplitInfo | None, speed: Speed) -> None:
        self.metrics: dict[str, float] = {}
        self.validated: dict[str, float] = {}
        self._worker, self._recipe, self._info, self._speed = worker, recipe, info, speed
        self._inputs: list[tuple[np.ndarray, Tensor]] = []
        self._rows: list[tuple[int, dict[str, Tensor]]] = []
        self._balance: list[dict[str, float]] = []

    def add(
        self,
        step: int,
        terms: list[dict[str, Tensor]],
        critic_terms: list[dict[str, Tensor]],
        samples: Sequence[Sample],
    ) -> None:
        """The loss terms of one step and what it was trained on; dictionaries and a sample for each micro-batch."""
        rows = [{**ours, **critics} for ours, critics in zip(terms, critic_terms, strict=True)]
        self._rows.append((step, {name: torch.stack([row[name] for row in rows]).mean() for name in rows[0]}))
        # sums stay on the device: only if a loss is not finite are they looked at
        self._inputs += [(sample.samples, sample.target.sum(dim=(1, 2, 3))) for sample in samples]

    def balance(self, parts: list[dict[str, float]]) -> None:
        """What `recon/training/balance.py` says of the newest step's micro-batches."""
        self._balance = parts

    def validation(self, metrics: dict[str, float]) -> None:
        """Validation metrics that belong to the newest step."""
        self.validated = metrics

    def flush(self) -> bool:
        """Report the rows since the last flush; whether the training shall end with them.

        Raises `TrainingDiverged` at a loss or a validation metric that is not finite: it is never reported, and no
        checkpoint with it is saved.
        """
        self._speed.enter_report(self._rows[-1][0])
        names = sorted(self._rows[0][1])
        local = torch.stack([torch.stack([row[name].float() for name in names]) for _, row in self._rows]).cpu()
        parts = self._worker.gather((local, self._speed.lap(), self._balance))
        mean = torch.stack([losses for losses, _, _ in parts]).mean(dim=0)
        history: list[dict[str, float]] = [
            {"step": step, **dict(zip(names, values.tolist(), strict=True))}
            for (step, _), values in zip(self._rows, mean, strict=True)
        ]
        self._rows.clear()
        for row in history:
            self._check(row)
        self._refuse(int(history[-1]["step"]), self.validated)
        self._inputs.clear()
        self._balance = []
        history[-1] |= balance_figures([part for _, _, balances in parts for part in balances]) | self.validated
        figures = self._speed.figures([lap for _, lap, _ in parts], len(history))
        self.metrics = {name: value for name, value in history[-1].items() if name != "step"} | figures
        self.validated = {}
        return self._worker.report(int(history[-1]["step"]), self.metrics, history)

    def _check(self, row: dict[str, float]) -> None:
        """Raises `TrainingDiverged`, or `InputError` if it was the data, on every rank alike."""
        step = int(row["step"])
        if not all(map(math.isfinite, row.values())):
            broken = sorted({name for part in self._worker.gather(self._broken_slices()) for name in part})
            if broken:
                raise InputError(
                    f"training stopped at step {step}: values that are not finite in {', '.join(broken[:5])}"
                    f"{f' and {len(broken) - 5} more' if len(broken) > 5 else ''} of {self._recipe.data.url} "
                    f"({self._info.name if self._info else ''}); `larmor verify` "
                    "shows what else is broken; the checkpoints before this step are kept"
                )
            self._refuse(step, row)
        limit = self._recipe.training.largest_critic_loss
        for name in (name for name in row if name.startswith("critic_loss") and abs(row[name]) > limit):
            raise TrainingDiverged(
                f"the critic diverged: {name} is {row[name]:.4g} at step {step}, more than "
                f"training.largest_critic_loss={limit:g}; lower critic_optimizer.learning_rate or critic.clip, or "
                "choose another critic.lipschitz; the checkpoints before this step are kept"
            )

    @staticmethod
    def _refuse(step: int, figures: Mapping[str, float]) -> None:
        """Raises `TrainingDiverged` at a figure that is not finite."""
        for name, value in figures.items():
            if not math.isfinite(value):
                raise TrainingDiverged(
                    f"training diverged: {name} is {value} at step {step}; lower the learning rates or critic.clip; "
                    "the checkpoints before this step are kept"
                )

    def _broken_slices(self) -> list[str]:
        """The slices since the last flush, of this rank, whose image is not finite."""
        if (info := self._info) is None:
            return []
        return [
            f"slice {int(info.index[index])} of {info.volumes[int(info.volume[index])]}"
            for samples, sums in self._inputs
            for (_, index), finite in zip(samples.tolist(), torch.isfinite(sums).tolist(), strict=True)
            if not finite
        ]
