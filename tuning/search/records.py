"""What a sweep's folder says of its trials and of the whole sweep: records, written and read here alone.

Objects in the store are JSON. A reader ignores keys that it does not know; what a record does not state is left out.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from larmor.storage.objects.errors import InputError

State = Literal["finished", "stopped", "diverged", "failed"]
Parameters = Mapping[str, Any]  # searched key → value
Figures = Mapping[str, float]  # `val/psnr` → value
# how a trial ends that is not tried again; `failed` is: what failed may have been the cluster
ENDED: tuple[State, ...] = ("finished", "stopped", "diverged")
# whose best checkpoint counts: a stopped trial's may be the best of all
RATED: tuple[State, ...] = ("finished", "stopped")
_ALWAYS = ("metrics", "parameters")  # written also if they are empty


@dataclass(frozen=True, kw_only=True)
class TrainingEnd:
    """How one training of a trial ended.

    `metrics` are those of its best checkpoint, `last` the step and the figures that were last reported; both are empty
    if there are none. `steps` and `num_images` are None where they were not counted.
    """

    state: State
    reason: str = ""
    metrics: Figures = field(default_factory=dict)
    last: Figures = field(default_factory=dict)
    seed: int | None = None
    steps: int | None = None
    num_images: int | None = None


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """A trial that has ended: `trial.json`. Fields as in `TrainingEnd`, over all its trainings.

    `began` is in seconds since 1970; `seconds` is what it took. `seeds` has its trainings if there are several.
    """

    id: str
    state: State
    metrics: Figures = field(default_factory=dict)
    last: Figures = field(default_factory=dict)
    steps: int | None = None
    num_images: int | None = None
    reason: str = ""
    seeds: tuple[TrainingEnd, ...] = ()
    parameters: Parameters
    began: float
    seconds: float | None = None

    @property
    def is_rated(self) -> bool:
        """Whether its best checkpoint counts."""
        return self.state in RATED


@dataclass(frozen=True)
class BegunTrial:
    """A trial that has begun: `begun.json`. `seconds` are those that it took before it was resumed."""

    parameters: Parameters
    began: float
    seconds: float = 0.0


@dataclass(frozen=True)
class SweepResult:
    """A finished sweep: `result.json`. `front` holds ids of trials, and is empty for a sweep by one metric."""

    state: Literal["finished"]
    metric: str | tuple[str, ...]
    trials: tuple[TrialRecord, ...]
    best: TrialRecord
    front: tuple[str, ...] = ()


def to_json(record: TrialRecord | BegunTrial | SweepResult) -> bytes:
    """The record as it lies in the store."""
    document = dataclasses.asdict(record, dict_factory=_stated)
    return json.dumps(document, indent=None if isinstance(record, BegunTrial) else 2).encode()


def read_trial(content: bytes, url: str) -> TrialRecord:
    """Raises `InputError` if the object at `url` is not the record of a trial."""
    try:
        return _trial(json.loads(content))
    except (TypeError, ValueError, AttributeError) as error:
        raise _unreadable(url, "the record of a trial", error) from error


def read_begun(content: bytes, url: str) -> BegunTrial:
    """Raises `InputError` if the object at `url` is not the record of a trial that has begun."""
    try:
        return BegunTrial(**_known(BegunTrial, json.loads(content)))
    except (TypeError, ValueError, AttributeError) as error:
        raise _unreadable(url, "the record of a trial that has begun", error) from error


def read_result(content: bytes, url: str) -> SweepResult:
    """Raises `InputError` if the object at `url` is not the result of a sweep."""
    try:
        document = json.loads(content)
        if (state := document["state"]) != "finished":
            raise ValueError(f"its state is '{state}'")
        metric = document["metric"]
        return SweepResult(
            state="finished",
            metric=metric if isinstance(metric, str) else tuple(metric),
            trials=tuple(map(_trial, document["trials"])),
            best=_trial(document["best"]),
            front=tuple(document.get("front", ())),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _unreadable(url, "the result of a sweep", error) from error


def _stated(pairs: Sequence[tuple[str, Any]]) -> Parameters:
    return {key: value for key, value in pairs if key in _ALWAYS or value not in (None, "", (), {})}


def _trial(document: Mapping[str, Any]) -> TrialRecord:
    seeds = tuple(TrainingEnd(**_known(TrainingEnd, end)) for end in document.get("seeds", ()))
    known = _known(TrialRecord, document)
    if known.get("state") not in get_args(State):  # another version's: not rated, and tried again
        known |= {"state": "failed", "reason": f"its state is '{known.get('state')}', which this Larmor does not know"}
    return TrialRecord(**known | {"seeds": seeds})


def _known(kind: type, document: Mapping[str, Any]) -> dict[str, Any]:
    return {item.name: document[item.name] for item in dataclasses.fields(kind) if item.name in document}


def _unreadable(url: str, what: str, error: Exception) -> InputError:
    return InputError(f"{url}: is not {what} ({error}); restore it, or remove this object to do without it")
