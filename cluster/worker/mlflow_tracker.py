"""A run at MLflow, through its client: nothing of MLflow's global state is touched."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from larmor.cluster.runs.event_file import IMAGES, tag
from larmor.cluster.worker.tracker import About, End, Entry

_LOG = logging.getLogger(__name__)
_DEFAULTS = {
    # it is this room's thread that tries again, and a training that ends waits for one call
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}
_PARAMS, _METRICS = 100, 1000  # of one request, as MLflow limits them
_STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
_IN_EACH = tag("goodput")


class MlflowTracker:
    """Runs are in the experiment that MLFLOW_EXPERIMENT_NAME names, else in `larmor`; trials below their sweep's."""

    name = "mlflow"

    def __init__(self, uri: str, about: About) -> None:
        self.place = uri
        self._about = about
        self._id = ""
        self._client: Any = None
        self._pictureless = False

    def begin(self, id: str | None, keep: Callable[[str], None]) -> int | None:
        """See `Tracker`. Params of a run never change at MLflow: those that it has stay as they are."""
        for name, value in _DEFAULTS.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=self.place)
        if id is None:
            parent = {"mlflow.parentRunId": self._parent()} if self._about.sweep else {}
            id = self._create(self._about.name, {**self._about.tags, **parent})
            keep(id)
        self._id = id
        known = self._client.get_run(id).data
        self._describe(known.params)
        self._client.update_run(id, status="RUNNING")
        history = self._client.get_metric_history(id, _IN_EACH) if _IN_EACH in known.metrics else ()
        return max((metric.step for metric in history), default=0)

    def log(self, entries: Sequence[Entry]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, int(1000 * entry.time), entry.step)
            for entry in entries
            for name, value in entry.figures.items()
        ]
        for part in _parts(metrics, _METRICS):
            self._client.log_batch(self._id, metrics=part, synchronous=True)
        for entry in entries:
            if entry.picture is not None and not self._pictureless:
                self._show(entry, entry.picture)

    def _show(self, entry: Entry, picture: np.ndarray) -> None:
        """Artifacts have a place of their own, which may be out of reach while the server is not."""
        time = int(1000 * entry.time)
        try:
            self._client.log_image(self._id, picture, key=IMAGES, step=entry.step, timestamp=time, synchronous=True)
        except Exception as error:
            self._pictureless = True
            _LOG.warning(
                "tracking.mlflow=%s takes no images (%s: %s); figures are sent without them: check the place of its "
                "artifacts; TensorBoard has the images",
                self.place,
                type(error).__name__,
                error,
            )

    def end(self, how: End) -> None:
        self._client.set_terminated(self._id, _STATUS[how])

    def _describe(self, known: dict[str, str]) -> None:
        from mlflow.entities import Param, RunTag

        params = {
            name: value if isinstance(value, str) else json.dumps(value) for name, value in self._about.params.items()
        }
        missing = [Param(name, value) for name, value in params.items() if name not in known]
        for part in _parts(missing, _PARAMS):
            self._client.log_batch(self._id, params=part, synchronous=True)
        tags = [RunTag(name, value) for name, value in self._about.tags.items()]
        self._client.log_batch(self._id, tags=tags, synchronous=True)

    def _create(self, name: str, tags: dict[str, str]) -> str:
        return str(self._client.create_run(self._experiment(), tags=tags, run_name=name).info.run_id)

    def _experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "larmor"
        if (found := self._client.get_experiment_by_name(name)) is None:
            try:
                return str(self._client.create_experiment(name, artifact_location=self._artifacts()))
            except MlflowException:  # another run has just made it
                if (found := self._client.get_experiment_by_name(name)) is None:
                    raise
        return str(found.experiment_id)

    def _artifacts(self) -> str | None:
        """Beside a database in a file; else the store's own choice, which for such a file is the working directory."""
        path = self.place.removeprefix("sqlite:///")
        return None if path == self.place else str(Path(path).absolute().parent / "mlartifacts")

    def _parent(self) -> str:
        """The run that stands for the sweep: the first trial makes it. It has no figures, and ends at once."""
        sweep = self._about.sweep
        assert sweep, "of a trial"
        path = "trackers/mlflow.json"
        if sweep.folder.exists(path):
            known = json.loads(sweep.folder.read(path))
            if known["place"] == self.place:
                return str(known["id"])
        parent = self._create(sweep.name, {"larmor.sweep": sweep.name})
        self._client.set_terminated(parent)
        note = json.dumps({"place": self.place, "id": parent}).encode()
        if sweep.folder.exists(path):  # of another place
            sweep.folder.write(path, note)
        elif not sweep.folder.create(path, note):
            self._client.delete_run(parent)
            return str(json.loads(sweep.folder.read(path))["id"])
        return parent


def _parts(items: list[Any], size: int) -> Iterator[list[Any]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]
