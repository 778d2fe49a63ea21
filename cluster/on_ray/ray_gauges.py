"""Gauges of a training at Ray's metrics endpoint, which Prometheus reads: `larmor_step` is `ray_larmor_step` there."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from larmor.cluster.worker.gauges import Gauge


def set_ray_gauge(gauge: Gauge, value: float, labels: Mapping[str, str]) -> None:
    """See `cluster.worker.gauges.SetGauge`. Only in a process of a Ray cluster."""
    _at_ray(gauge, tuple(labels)).set(value, tags=dict(labels))


@functools.cache
def _at_ray(gauge: Gauge, label_names: tuple[str, ...]) -> Any:
    from ray.util.metrics import Gauge as RayGauge

    return RayGauge(gauge.name, description=gauge.help, tag_keys=label_names)
