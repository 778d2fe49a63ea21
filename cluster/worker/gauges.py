"""The figures of a training while it runs, as gauges that a monitoring system reads at any moment.

The newest values are set again every few seconds. Ray, for one, forgets a gauge that is not: so the series of a
training end soon after the training does, however it ends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_PERIOD = 4.0  # seconds: Ray sends what was set every 10 s, and forgets it then
_PHASES = ("data", "compute", "communication", "validation", "checkpoint", "report")


@dataclass(frozen=True)
class Gauge:
    """Its name; what it says; which label it has beside `run` and `experiment`, if any; its figure of a report.

    With a label, `figure` is a beginning, and what follows it in a report's name is the value of the label.
    """

    name: str
    help: str
    label: str = ""
    figure: str = ""


SetGauge = Callable[[Gauge, float, Mapping[str, str]], None]  # gauge, value, labels

RUNNING = Gauge("larmor_running", "1 while the training runs")
RESTARTS = Gauge("larmor_restarts", "How often the run was started again")
NUM_STEPS = Gauge("larmor_num_steps", "Steps of the whole training")
CHECKPOINT_AGE = Gauge("larmor_checkpoint_age_seconds", "Since the last checkpoint, or the last start if that is later")
REPORT_AGE = Gauge("larmor_report_age_seconds", "Since the last report, or the last start if that is later")
_OF_A_REPORT = (
    Gauge("larmor_step", "Completed generator steps", figure="step"),
    Gauge("larmor_slices_per_second", "Slices trained on per second, without validation", figure="slices_per_second"),
    Gauge("larmor_goodput", "Part of the time since the first start that advanced the training", figure="goodput"),
    Gauge("larmor_workers", "Workers that train together", figure="world_size"),
    Gauge("larmor_waiting_share", "Part of the steps' time that waited for the loader", figure="waiting_share"),
    Gauge("larmor_mfu", "Share of the GPUs' peak operations per second", figure="mfu"),
    Gauge("larmor_gpu_memory_bytes", "Most memory held so far, of the fullest GPU", figure="gpu_memory_bytes"),
    Gauge("larmor_gradient_share", "Each loss term's share of the gradient", label="term", figure="share/"),
    Gauge("larmor_validation", "Metrics of the last validation", label="metric", figure="val/"),
)
_TIME = Gauge("larmor_time_share", "How the time since the report before was spent", label="phase")
GAUGES = (RUNNING, RESTARTS, NUM_STEPS, CHECKPOINT_AGE, REPORT_AGE, *_OF_A_REPORT, _TIME)


class Gauges:
    """Those of one run, which `labels` name. `begin` before all else; `close` when the training ends.

    Figures that a report lacks keep their value: a validation is rarer than a report. `set_gauge` is called in a thread
    of its own, so that no report waits for it.
    """

    def __init__(self, set_gauge: SetGauge, labels: Mapping[str, str], num_steps: int) -> None:
        self._set, self._labels = set_gauge, dict(labels)
        self._values: dict[tuple[Gauge, str], float] = {(RUNNING, ""): 1.0, (NUM_STEPS, ""): float(num_steps)}
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._saved = self._reported = time.monotonic()
        self._thread = threading.Thread(target=self._work, name="larmor-gauges", daemon=True)

    def begin(self, restarts: int) -> None:
        self._values[RESTARTS, ""] = float(restarts)
        self._saved = self._reported = time.monotonic()
        self._thread.start()

    def add(self, record: Mapping[str, float]) -> None:
        """The figures of a report. Returns at once."""
        with self._lock:
            self._values |= _figures(record)
            self._reported = time.monotonic()

    def saved(self) -> None:
        """A checkpoint was published just now."""
        self._saved = time.monotonic()

    def close(self) -> None:
        self._closed.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _work(self) -> None:
        while True:
            self._set_all()
            if self._closed.wait(_PERIOD):
                return

    def _set_all(self) -> None:
        now = time.monotonic()
        with self._lock:
            values = dict(self._values)
            ages = {(CHECKPOINT_AGE, ""): now - self._saved, (REPORT_AGE, ""): now - self._reported}
        for (gauge, value_of_label), value in (values | ages).items():
            own = {gauge.label: value_of_label} if gauge.label else {}
            self._set(gauge, value, self._labels | own)


def _figures(record: Mapping[str, float]) -> dict[tuple[Gauge, str], float]:
    """What a report says of the gauges: (gauge, value of its label) → figure."""
    found: dict[tuple[Gauge, str], float] = {}
    for gauge in _OF_A_REPORT:
        for name, value in record.items():
            if gauge.label and name.startswith(gauge.figure):
                found[gauge, name.removeprefix(gauge.figure)] = float(value)
            elif name == gauge.figure:
                found[gauge, ""] = float(value)
    return found | {(_TIME, phase): record[f"{phase}_share"] for phase in _PHASES if f"{phase}_share" in record}
