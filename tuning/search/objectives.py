"""What a sweep counts: one metric, or two, whose best trade-offs are its front. Needs no NumPy, for `larmor pull`."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from larmor.recon.recipe.metric import METRICS, Metric, check_metric
from larmor.storage.objects.errors import InputError

Figures = Mapping[str, float]  # `val/psnr` → value
_MOST = 2
RULE = "nearest to the best of each metric, distances in parts of the front's range"


@dataclass(frozen=True)
class Objectives:
    """Names of one metric or two, such as ("psnr", "hfen"). The first one is what ASHA and early stop look at.

    `own` describes those that are one's own.
    """

    names: tuple[str, ...]
    own: Mapping[str, Metric] = field(default_factory=dict)

    @staticmethod
    def of(metric: str | Sequence[str], describe: Callable[[str], Metric] | None = None) -> Objectives:
        """From `sweep.metric`; `describe` is asked of each metric of one's own.

        Raises `InputError` for an unknown metric, the same one twice, and more than two.
        """
        names = tuple(check_metric(name) for name in ([metric] if isinstance(metric, str) else metric))
        if not 1 <= len(names) <= _MOST:
            raise InputError(f"{len(names)} metrics: give one, or a list of two, such as [psnr, hfen]")
        if len(set(names)) < len(names):
            raise InputError(f"'{names[0]}' twice: the second metric must be another one, such as hfen")
        return Objectives(names, {name: describe(name) for name in names if name not in METRICS} if describe else {})

    @property
    def first(self) -> str:
        return self.names[0]

    @property
    def keys(self) -> tuple[str, ...]:
        """As histories and records have them: `val/psnr`, …"""
        return tuple(f"val/{name}" for name in self.names)

    def higher_is_better(self, name: str) -> bool:
        """Of one of `names`."""
        return self.entry(name).higher_is_better

    def entry(self, name: str) -> Metric:
        """How a metric is called and read."""
        return METRICS[name] if name in METRICS else self.own[name]

    @property
    def modes(self) -> list[str]:
        """`max` or `min` of each, as Ray Tune has them."""
        return ["max" if self.higher_is_better(name) else "min" for name in self.names]

    @property
    def has_front(self) -> bool:
        return len(self.names) > 1

    def are_in(self, metrics: Figures) -> bool:
        """Whether each metric is there, and finite."""
        return all(math.isfinite(metrics.get(key, math.nan)) for key in self.keys)

    def front(self, rated: Sequence[Figures]) -> list[int]:
        """Places of those that no other one surpasses: as good by each metric and better by one. Of equal ones the
        first. All of `rated` have the metrics.
        """
        points = [self._goodness(metrics) for metrics in rated]
        return [
            place
            for place, point in enumerate(points)
            if point not in points[:place]
            and not any(other != point and all(map(operator.ge, other, point)) for other in points)
        ]

    def choose(self, rated: Sequence[Figures], weights: Mapping[str, float] | None = None) -> int:
        """The place of the one on the front that is nearest to the best value of each metric; of equal ones the first.

        A metric's distance is its distance from the best in parts of the front's range, times its weight (1 without
        `weights`); the distances add up by their squares.
        """
        front = self.front(rated)
        points = [self._goodness(rated[place]) for place in front]
        shares = [weights.get(name, 0.0) if weights else 1.0 for name in self.names]
        ends = [(min(values), max(values)) for values in zip(*points, strict=True)]

        def distance(point: Sequence[float]) -> float:
            parts = (_missed(value, *end) for value, end in zip(point, ends, strict=True))
            return math.hypot(*(share * part for share, part in zip(shares, parts, strict=True)))

        return min(zip(front, points, strict=True), key=lambda pair: distance(pair[1]))[0]

    def weights(self, prefer: str) -> dict[str, float]:
        """`hfen`, or `psnr=0.7,hfen=0.3` → a weight for each metric.

        Raises `InputError` for a metric that is none, or is not the sweep's, and for weights that are not positive.
        """
        found: dict[str, float] = {}
        for part in prefer.split(","):
            name, equals, text = part.partition("=")
            metric = check_metric(name.strip())
            if metric not in self.names:
                raise InputError(f"--prefer {prefer}: the sweep's metrics are {', '.join(self.names)}, not '{metric}'")
            found[metric] = _weight(text if equals else "1", prefer)
        if not any(found.values()):
            raise InputError(f"--prefer {prefer}: every weight is 0; give one metric a positive weight")
        return {name: found.get(name, 0.0) for name in self.names}

    def _goodness(self, metrics: Figures) -> tuple[float, ...]:
        """The value of each metric, turned so that higher is better."""
        return tuple(metrics[f"val/{name}"] * (1 if self.higher_is_better(name) else -1) for name in self.names)


def _missed(value: float, low: float, high: float) -> float:
    """How far `value` is from `high`, in parts of the range."""
    return (high - value) / (high - low) if high > low else 0.0


def _weight(text: str, prefer: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not (math.isfinite(weight) and weight >= 0):
        raise InputError(f"--prefer {prefer}: '{text}' is no weight; write METRIC, or METRIC=NUMBER,METRIC=NUMBER")
    return weight
