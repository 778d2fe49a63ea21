"""Ray Tune's Optuna search, taught by trials of earlier calls. One metric or two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optuna
from ray.tune.search.optuna import OptunaSearch

from larmor.tuning.search.objectives import Objectives
from larmor.tuning.search.records import Figures, Parameters
from larmor.tuning.search.space import Dimension

_NAME = "sweep"
TuneResult = dict[str, Any]  # what Tune passes on of a report: Larmor's figures among its own


class PointSearch(OptunaSearch):
    """Suggests points; trials that have no figures (diverged, failed, waiting) are told as pruned, below all others.

    Tune's own class cannot be told of a point with two values, so the study is made here, in a storage of its own.
    """

    def __init__(
        self,
        objectives: Objectives,
        dimensions: Sequence[Dimension],
        first: Sequence[Parameters],
        sampler: optuna.samplers.BaseSampler,
    ) -> None:
        storage = optuna.storages.InMemoryStorage()
        high, low = optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE
        directions = [high if mode == "max" else low for mode in objectives.modes]
        self.study = optuna.create_study(storage=storage, study_name=_NAME, directions=directions)
        self.objectives = objectives
        self.distributions = {item.key: item.distribution() for item in dimensions}
        one = not objectives.has_front  # for a list Tune passes no figures of running trials on
        super().__init__(
            self.distributions,
            metric=objectives.keys[0] if one else list(objectives.keys),
            mode=objectives.modes[0] if one else objectives.modes,
            sampler=sampler,
            points_to_evaluate=[dict(point) for point in first] or None,
            storage=storage,
            study_name=_NAME,
        )

    def teach(self, parameters: Parameters, metrics: Figures, seen: Figures) -> None:
        """A trial that has ended, or waits: `metrics` are its own, empty without an end; `seen` was last reported.

        Two metrics have no order in which a trial that waits could stand, so `seen` teaches of one metric alone.
        """
        rated, key = self.objectives.are_in(metrics), self.objectives.keys[0]
        state = optuna.trial.TrialState.COMPLETE if rated else optuna.trial.TrialState.PRUNED
        trial = optuna.trial.create_trial(
            state=state,
            values=[metrics[key] for key in self.objectives.keys] if rated else None,
            params=dict(parameters),
            distributions=self.distributions,
            intermediate_values={0: seen[key]} if key in seen and not self.objectives.has_front else None,
        )
        self.study.add_trial(trial)

    def on_trial_complete(self, trial_id: str, result: TuneResult | None = None, error: bool = False) -> None:
        super().on_trial_complete(trial_id, result if result and self.objectives.are_in(result) else None, error)
