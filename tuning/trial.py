"""Ray Tune's side of a trial: it hands its parameters to a free slot, and Tune what comes back. Imports little."""

from __future__ import annotations

from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler

# it computes nothing, so it takes no CPU from the workers; it stays on the head node
RESOURCES = {"CPU": 0, "node:__internal_head__": 0.001}


class SlotTrial(tune.Trainable):
    """One trial after another in the same process: starting one takes seconds."""

    def setup(self, config: dict[str, Any], desk: Any = None) -> None:
        self._desk = desk
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        return dict(ray.get(self._desk.next_result.remote(self.trial_id)))

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        return {}  # what lasts is in the trial's run folder

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing was saved."""

    def _begin(self, config: dict[str, Any]) -> None:
        ray.get(self._desk.begin.remote(self.trial_id, config))


class TellingASHA(ASHAScheduler):
    """ASHA that tells the slot of a trial at once, and with the reason, when it stops it."""

    def __init__(self, desk: Any, reduction_factor: float, **settings: Any) -> None:
        super().__init__(reduction_factor=reduction_factor, **settings)
        self._desk, self._factor = desk, reduction_factor

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        action = super().on_trial_result(tune_controller, trial, result)
        if action == self.STOP:
            reason = f"ASHA: not among the best 1/{self._factor:g} of the trials that reached step {result['step']}"
            self._desk.stop.remote(trial.trial_id, reason)
        return action
