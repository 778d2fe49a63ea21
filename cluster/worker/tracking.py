"""The trackers of a run, as rank 0 of its training has them: the section `tracking` of its experiment at work."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from larmor.cluster.experiments.experiment import Experiment
from larmor.cluster.runs.origin import code_hash
from larmor.cluster.runs.run_folder import RunFolder
from larmor.cluster.worker.delivery import Delivery, entry_of
from larmor.cluster.worker.mlflow_tracker import MlflowTracker
from larmor.cluster.worker.tracker import About, End, Sweep, Tracker, flat, without_credentials
from larmor.cluster.worker.wandb_tracker import WandbTracker
from larmor.storage.formats.provenance import larmor_version

_TRACKERS: dict[str, Callable[[str, About], Tracker]] = {"mlflow": MlflowTracker, "wandb": WandbTracker}
_GOODBYE_SECONDS, _HASTY_SECONDS = 30.0, 3.0


class Tracking:
    """Opens nothing before `begin`, which rank 0 alone calls. `sweep` is that of which the run is a trial."""

    def __init__(self, experiment: Experiment, run: RunFolder, sweep: Sweep | None = None) -> None:
        self._experiment, self._run, self._sweep = experiment, run, sweep
        self._deliveries: list[Delivery] = []

    def begin(self) -> None:
        config = self._experiment.tracking
        if config.names:
            about = describe(self._experiment, self._run, self._sweep)
            self._deliveries = [
                Delivery(_TRACKERS[name](getattr(config, name), about), self._run) for name in config.names
            ]

    def add(self, record: Mapping[str, float], picture: np.ndarray | None) -> None:
        """A report with its `step` and `time`. Returns at once."""
        for delivery in self._deliveries:
            entry = entry_of(dict(record))
            entry.picture = picture
            delivery.add(entry)

    def close(self, how: End, beat: Callable[[], None]) -> None:
        """Wait until everything is sent, but not for long, and hardly at all unless the training has finished."""
        for delivery in self._deliveries:
            delivery.close(how, _GOODBYE_SECONDS if how == "finished" else _HASTY_SECONDS, beat)
        self._deliveries = []


def send_the_rest(experiment: Experiment, run: RunFolder) -> None:
    """Send what trackers lack of a run that has finished; its warnings tell which could not be reached."""
    lacking = [name for name in experiment.tracking.names if run.store.exists(f"warnings/{name}.txt")]
    if lacking:
        tracking = Tracking(experiment, run)
        tracking.begin()
        tracking.close("finished", lambda: None)


def describe(experiment: Experiment, run: RunFolder, sweep: Sweep | None) -> About:
    """Name, params and tags of a run: the resolved experiment, without what could be a credential."""
    content = experiment.model_dump(mode="json", include=set(Experiment.model_fields))
    where = without_credentials(run.url)
    tags = {
        "larmor.run": where,
        "larmor.version": larmor_version(),
        "larmor.code": code_hash(),
        **({"larmor.own_code": experiment.code.sha256} if experiment.code.sha256 else {}),
        **({"larmor.sweep": sweep.name, "larmor.trial": experiment.name} if sweep else {}),
    }
    name = experiment.name + (f"-seed-{experiment.seed}" if "/seeds/" in run.url else "")
    return About(name, flat(content), tags, sweep, run.url if run.store.is_local else None)
