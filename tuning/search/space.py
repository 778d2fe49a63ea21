"""The search space: any key of the experiment, written as `loguniform(0.1, 100)` and checked before the start."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from larmor.cluster.experiments.experiment import Experiment, build, change, get_dotted
from larmor.storage.objects.errors import InputError
from larmor.tuning.search.records import Parameters

KINDS = {"loguniform": 2, "uniform": 2, "randint": 2, "choice": None}


@dataclass(frozen=True)
class Dimension:
    """One searched key: `kind` of `KINDS`, and its bounds [low, high] (or the choices)."""

    key: str
    kind: str
    arguments: tuple[Any, ...]

    def contains(self, value: Any) -> bool:
        """Whether a trial could have this value. The end of a `randint` is outside, as in Python's range."""
        if self.kind == "choice":
            return value in self.arguments
        low, high = self.arguments
        return isinstance(value, int | float) and low <= value <= high - (self.kind == "randint")

    def distribution(self) -> Any:
        """As Optuna has it."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.kind == "choice":
            return CategoricalDistribution(self.arguments)
        low, high = self.arguments
        if self.kind == "randint":
            return IntDistribution(low, high - 1)
        return FloatDistribution(low, high, log=self.kind == "loguniform")

    def __str__(self) -> str:
        return f"{self.kind}({', '.join(str(value) for value in self.arguments)})"


def parse_dimension(key: str, text: str) -> Dimension:
    """Read `loguniform(1e-3, 1e-1)`, `uniform(0, 1)`, `randint(1, 6)` (6 excluded) or `choice(1, 2, 4)`.

    Raises `InputError` for anything else.
    """
    expected = f"sweep.space.{key}={text!r}: expected one of loguniform(low, high), uniform(low, high), " + (
        "randint(low, high), choice(value, …)"
    )
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.func.id not in KINDS:
            raise InputError(expected)
        if call.keywords:
            raise InputError(f"{expected}; write values without names")
        arguments = tuple(_as_recorded(ast.literal_eval(argument)) for argument in call.args)
    except (SyntaxError, ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(expected) from error
    kind, count = call.func.id, KINDS[call.func.id]
    if not arguments or (count is not None and len(arguments) != count):
        raise InputError(f"{expected}; {kind} takes {count or 'at least 1'} values, not {len(arguments)}")
    if kind != "choice":
        low, high = arguments
        if not all(isinstance(value, int | float) and math.isfinite(value) for value in arguments) or low >= high:
            raise InputError(f"sweep.space.{key}={text!r}: the bounds must be numbers with low < high")
        if kind == "randint" and not all(isinstance(value, int) for value in arguments):
            raise InputError(f"sweep.space.{key}={text!r}: the bounds of randint must be whole numbers")
        if kind == "loguniform" and low <= 0:
            raise InputError(f"sweep.space.{key}={text!r}: a logarithmic range must begin above 0")
    return Dimension(key, kind, arguments)


def parse_space(space: Mapping[str, str], experiment: Experiment) -> list[Dimension]:
    """Every dimension, checked: its key exists and its bounds are values that the experiment accepts."""
    if not space:
        raise InputError("nothing to search: give sweep.space, such as space.loss.a='loguniform(0.1,100)'")
    dimensions = [parse_dimension(key, text) for key, text in space.items()]
    for dimension in dimensions:
        get_dotted(experiment, dimension.key)
        if dimension.key in ("name", "output_url"):
            raise InputError(f"sweep.space.{dimension.key}: the place of the results cannot be searched")
        if dimension.key.startswith("cluster."):
            raise InputError(f"sweep.space.{dimension.key}: all trials run in the same workers; set it for the sweep")
        ends = dimension.arguments
        if dimension.kind == "randint":
            ends = (ends[0], ends[1] - 1)
        for value in ends:
            with_values(experiment, {dimension.key: value})
    return dimensions


def with_values(experiment: Experiment, values: Parameters, name: str | None = None) -> Experiment:
    """The experiment with some keys changed, validated again. Raises `InputError` for impossible values."""
    content = experiment.model_dump(mode="json", include=set(Experiment.model_fields))
    change(content, values)
    if name is not None:
        content["name"] = name
    return build(content, Experiment, "trial")


def starting_point(dimensions: Sequence[Dimension], experiment: Experiment) -> Parameters | None:
    """The experiment's own values, tried first; None if one lies outside its range."""
    values = {dimension.key: _as_recorded(get_dotted(experiment, dimension.key)) for dimension in dimensions}
    inside = all(dimension.contains(values[dimension.key]) for dimension in dimensions)
    return values if inside else None


def _as_recorded(value: Any) -> Any:
    """As the JSON records of trials give a value back: a tuple would not equal the list that it is there."""
    return json.loads(json.dumps(value.model_dump() if isinstance(value, BaseModel) else value))


def describe_value(value: Any) -> str:
    """A searched value for people: numbers with four digits, words as they are."""
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)
