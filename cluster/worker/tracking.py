"""Who is told of a run while it trains, by rank 0: the trackers of the section `tracking`, and gauges."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from larmor.cluster.experiments.experiment import Experiment
from larmor.cluster.runs.attempts import Attempt
from larmor.cluster.runs.origin import code_hash
from larmor.cluster.runs.run_folder import RunFolder
from larmor.cluster.worker.delivery import Delivery, entry_of
from larmor.cluster.worker.gauges import Gauges, SetGauge
from larmor.cluster.worker.mlflow_tracker import MlflowTracker
from larmor.cluster.worker.tracker import About, End, Sweep, Tracker, flat, without_credentials
from larmor.cluster.worker.wandb_tracker import WandbTracker
from larmor.storage.formats.provenance import larmor_version

_TRACKERS: dict[str, Callable[[str, About], Tracker]] = {"mlflow": MlflowTracker, "wandb": WandbTracker}
_GOODBYE_SECONDS, _HASTY_SECONDS = 30.0, 3.0


class Tracking:
    """Opens nothing before `begin`, which rank 0 alone calls. `sweep` is that of which the run is a trial.

    `set_gauge`: where gauges are shown, if anywhere.
    """

    def __init__(
        self, experiment: Experiment, run: RunFolder, sweep: Sweep | None = None, set_gauge: SetGauge | None = None
    ) -> None:
        self._experiment, self._run, self._sweep = experiment, run, sweep
        self._deliveries: list[Delivery] = []
        self._set_gauge = set_gauge
        self._gauges: Gauges | None = None

    def begin(self, attempt: Attempt | None = None) -> None:
        """`attempt`: the one that trains now; None if nothing is trained and only trackers are to be told."""
        if self._set_gauge and attempt:
            self._gauges = Gauges(self._set_gauge, self._labels(), self._experiment.training.num_steps)
            self._gauges.begin(restarts=attempt.number - 1)
        config = self._experiment.tracking
        if config.names:
            about = describe(self._experiment, self._run, self._sweep)
            self._deliveries = [
                Delivery(_TRACKERS[name](getattr(config, name), about), self._run) for name in config.names
            ]

    def add(self, record: Mapping[str, float], picture: np.ndarray | None) -> None:
        """A report with its `step` and `time`. Returns at once."""
        if self._gauges:
            self._gauges.add(record)
        for delivery in self._deliveries:
            entry = entry_of(dict(record))
            entry.picture = picture
            delivery.add(entry)

    def saved(self) -> None:
        """A checkpoint was published. Any thread may call."""
        if self._gauges:
            self._gauges.saved()

    def close(self, how: End, beat: Callable[[], None]) -> None:
        """Wait until everything is sent, but not for long, and hardly at all unless the training has finished."""
        if self._gauges:
            self._gauges.close()
        for delivery in self._deliveries:
            delivery.close(how, _GOODBYE_SECONDS if how == "finished" else _HASTY_SECONDS, beat)
        self._deliveries = []

    def _labels(self) -> dict[str, str]:
        """A trial's experiment is its sweep."""
        name = _run_name(self._experiment, self._run)
        return {"run": name, "experiment": self._sweep.name if self._sweep else self._experiment.name}


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
    local = run.url if run.store.is_local else None
    return About(_run_name(experiment, run), flat(content), tags, sweep, local)


def _run_name(experiment: Experiment, run: RunFolder) -> str:
    return experiment.name + (f"-seed-{experiment.seed}" if "/seeds/" in run.url else "")
