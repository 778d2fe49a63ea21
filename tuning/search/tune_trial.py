"""Ray Tune's side of a trial: it hands its parameters to a free slot, and Tune what comes back. Imports little."""

from __future__ import annotations

from typing import Any

import ray
from ray import tune

from larmor.tuning.search.records import Parameters

# it computes nothing, so it takes no CPU from the workers; it stays on the head node
RESOURCES = {"CPU": 0, "node:__internal_head__": 0.001}


class DeskTrainable(tune.Trainable):
    """One trial after another in the same process: starting one takes seconds."""

    def setup(self, config: Parameters, desk: Any = None) -> None:
        self._desk = desk
        self._begin(config)

    def reset_config(self, new_config: Parameters) -> bool:
        self._begin(new_config)
        return True

    def step(self) -> dict[str, float | str | bool]:
        return dict(ray.get(self._desk.next_result.remote(self.trial_id)))

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, float]:
        return {}  # what lasts is in the trial's run folder

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing was saved."""

    def _begin(self, config: Parameters) -> None:
        ray.get(self._desk.begin.remote(self.trial_id, config))
