"""One experiment = one YAML file = one typed, validated configuration."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from larmor.cluster.experiments.serving_config import ServingConfig
from larmor.cluster.experiments.shipped import shipped_experiments
from larmor.cluster.experiments.tracking import TrackingConfig
from larmor.recon.recipe.recipe import Recipe
from larmor.storage.objects.errors import InputError


class WorkerRange(BaseModel):
    """As many workers as the cluster has room for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min: int = Field(ge=1, description="with fewer the training waits")
    max: int = Field(ge=1, description="more are not asked for")

    @model_validator(mode="after")
    def _in_order(self) -> WorkerRange:
        if self.max < self.min:
            raise ValueError(f"max={self.max} is less than min={self.min}; swap them, or give one number")
        return self


_KINDS = {"a number", "a range"}  # what pydantic calls the two ways to give num_workers


def _kind(value: Any) -> str:
    return "a range" if isinstance(value, Mapping | WorkerRange) else "a number"


class ClusterConfig(BaseModel):
    """What a training takes of the cluster. These keys may change when a run is resumed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_workers: Annotated[
        Annotated[int, Field(ge=1), Tag("a number")] | Annotated[WorkerRange, Tag("a range")], Discriminator(_kind)
    ] = Field(1, description="data-parallel workers, each one process: a number, or {min: 1, max: 4}: what there is")
    cpus_per_worker: int = Field(1, ge=1, description="processor cores that are reserved for each worker")
    use_gpu: bool = Field(False, description="one GPU for each worker")
    max_failures: int = Field(3, ge=0, description="restarts of the workers before the run fails")
    wait_seconds: int = Field(30, ge=0, description="seconds to wait for the cluster to have enough resources")
    grace_seconds: int = Field(
        30,
        ge=1,
        description="seconds from a notice to stop to the end of the process, saved or not; as the cluster gives",
    )
    hang_seconds: int = Field(
        600,
        ge=10,
        description="seconds without any progress on any worker: the training is started again; more than a step",
    )
    resize_seconds: int = Field(
        60, ge=1, description="seconds after which a training with a range of workers looks again for room for more"
    )
    serving: ServingConfig = ServingConfig()

    @property
    def fewest_workers(self) -> int:
        """With fewer the training waits."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers.min

    @property
    def most_workers(self) -> int:
        """More are not asked for."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers.max


class Experiment(Recipe):
    """A recipe with its name, the place of its results, and the cluster it asks for."""

    name: str = Field(
        "experiment", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="what the run or the sweep is called"
    )
    output_url: str = Field("s3://larmor", description="runs go to output_url/runs/NAME, sweeps to …/sweeps/NAME")
    cluster: ClusterConfig = ClusterConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _workers_divide_batch(self) -> Experiment:
        fewest, most = self.cluster.fewest_workers, self.cluster.most_workers
        batch, parts = self.training.global_batch_size, self.training.gradient_accumulation
        unfit = [str(number) for number in range(fewest, most + 1) if batch % (number * parts)]
        if unfit and fewest < most:
            multiple = math.lcm(*range(fewest, most + 1)) * parts
            raise ValueError(
                f"training.global_batch_size={batch} is not divisible by {', '.join(unfit)} workers × {parts} "
                f"micro-batches, and cluster.num_workers={{min: {fewest}, max: {most}}} allows that; use "
                f"training.global_batch_size={-(-batch // multiple) * multiple}, or a narrower range"
            )
        self.micro_batch_size(most)
        return self

    @property
    def run_url(self) -> str:
        return f"{self.output_url.rstrip('/')}/runs/{self.name}"


E = TypeVar("E", bound=BaseModel)


def read_content(source: str) -> dict[str, Any]:
    """What stands in an experiment's file, not yet validated. Raises `InputError` if it cannot be read."""
    path = Path(source)
    if not path.is_file():
        path = shipped_experiments().get(source, path)
    if not path.is_file():
        raise InputError(f"{source}: no such file; shipped experiments are {', '.join(shipped_experiments())}")
    try:
        content = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise InputError(f"{source}: is not YAML ({error})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{source}: is not a text file ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{source}: expected keys and values, found {type(content).__name__}")
    return content


def build(content: Mapping[str, Any], model: type[E], source: str) -> E:
    """Validate a nested mapping as `model`; `source` is what error messages call it."""
    try:
        return model.model_validate(dict(content))
    except ValidationError as error:
        raise InputError("\n".join(_explain(problem, model, source) for problem in error.errors())) from None


def parse_override(text: str, model: type[BaseModel] | None = None) -> tuple[str, Any]:
    """`training.num_steps=100` → ("training.num_steps", 100); the value is read as YAML.

    Where `model` has a text, the value is taken as it stands: `name=2024` and `name=1e5` are no numbers there. Raises
    `InputError` if there is no `=`.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InputError(f"'{text}': expected key=value, such as training.num_steps=100")
    kinds = _kinds(model, key.strip().split(".")) if model else set()
    if str in kinds and kinds <= {str, NoneType}:
        return key.strip(), _text(value.strip())
    try:
        return key.strip(), _number(yaml.safe_load(value))
    except yaml.YAMLError as error:
        raise InputError(f"'{text}': the value is not YAML ({error})") from error


def _text(value: str) -> str | None:
    """YAML's quotes, comments and null count; all else is text."""
    try:
        read = yaml.safe_load(value)
    except yaml.YAMLError:
        return value
    return read if isinstance(read, str) or read is None else value


def as_override(key: str, value: Any) -> str:
    """The inverse of `parse_override`, for a value that JSON can hold: null is not the text None."""
    return f"{key}={json.dumps(value)}"


def _number(value: Any) -> Any:
    """YAML 1.1 reads `5e-5` as text; people mean a number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def set_dotted(content: dict[str, Any], key: str, value: Any) -> None:
    """Set `a.b.c` of a nested dictionary, making sections on the way."""
    *sections, last = key.split(".")
    for section in sections:
        inner = content.setdefault(section, {})
        if not isinstance(inner, dict):
            raise InputError(f"'{key}': {section} is a value, not a section")
        content = inner
    content[last] = value


# what a key leads to → what says which that must be
PINS = {
    "data.url": "data.sha256",
    "mask.file": "mask.sha256",
    "code.paths": "code.sha256",
    "init_from.url": "init_from.sha256",
}


_ONE_OF = ("mask.sampling_ratio", "mask.acceleration")  # two ways to say one thing


def change(content: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Set each `a.b.c` of a nested dictionary; a pin goes with what it is a pin of, unless it is given as well.

    What `values` say in one way takes the place of what `content` says in another.
    """
    # a text is the short form of init_from.url, so that it goes with other keys of its section
    values = {f"{key}.url" if key == "init_from" and isinstance(to, str) else key: to for key, to in values.items()}
    if any(key in values for key in _ONE_OF) and isinstance(mask := content.get("mask"), dict):
        content["mask"] = {key: value for key, value in mask.items() if f"mask.{key}" not in _ONE_OF}
    if isinstance(content.get("code"), list):  # the short form of code.paths
        content["code"] = {"paths": content["code"]}
    if isinstance(content.get("init_from"), str):  # that of init_from.url
        content["init_from"] = {"url": content["init_from"]}
    elif content.get("init_from") is None:  # a section that was off
        content.pop("init_from", None)
    for key, pin in PINS.items():
        if key in values and pin not in values:
            set_dotted(content, pin, None)
    for key, value in values.items():
        set_dotted(content, key, value)


def get_dotted(experiment: BaseModel, key: str) -> Any:
    """The value of `a.b.c`. Raises `InputError` for an unknown key, naming the valid ones."""
    value: Any = experiment
    done: list[str] = []
    for part in key.split("."):
        valid = _keys_of(value)
        if part not in valid:
            raise InputError(_unknown_key([*done, part], valid))
        value = value[part] if isinstance(value, Mapping) else getattr(value, part)
        done.append(part)
    return value


def _keys_of(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return list(value)
    return list(type(value).model_fields) if isinstance(value, BaseModel) else []


def dump_for_workers(experiment: Experiment) -> dict[str, Any]:
    """The experiment for JSON, as processes with another working directory understand it: local places are absolute."""
    content = experiment.model_dump(mode="json", include=set(Experiment.model_fields))
    if "://" not in experiment.data.url:
        content["data"]["url"] = _absolute(experiment.data.url)
    if experiment.mask.file:
        content["mask"]["file"] = _absolute(experiment.mask.file)
    content["tracking"] = experiment.tracking.anywhere().model_dump(mode="json")
    content["code"]["paths"] = [_absolute(path) for path in experiment.code.paths]
    if experiment.init_from is not None:
        content["init_from"]["url"] = _absolute(experiment.init_from.url)
    return content


def _absolute(path: str) -> str:
    """A path that is here, as an absolute one; one that is elsewhere, on the nodes of a cluster, stays as it is."""
    place = Path(path).expanduser()
    return str(place.resolve()) if place.exists() else path


def dump_yaml(experiment: BaseModel) -> str:
    """The whole configuration, defaults included, as YAML in the order of the fields."""
    return yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False)


def differing_keys(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys whose values differ between two nested mappings."""
    keys: list[str] = []
    for key in {**old, **new}:
        left, right = old.get(key), new.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            keys += differing_keys(left, right, f"{prefix}{key}.")
        elif left != right:
            keys.append(f"{prefix}{key}")
    return keys


def _explain(problem: Mapping[str, Any], model: type[BaseModel], source: str) -> str:
    location = [str(part) for part in problem["loc"] if part not in _KINDS]
    if problem["type"] == "extra_forbidden":
        return f"{source}: {_unknown_key(location, _valid_keys(model, location[:-1]))}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "string_type":
        message += "; put it into quotes"
    if not location:
        return f"{source}: {message}"
    return f"{source}: {'.'.join(location)}={problem['input']!r}: {message[0].lower()}{message[1:]}"


def _unknown_key(location: Sequence[str], valid: Sequence[str]) -> str:
    close = difflib.get_close_matches(location[-1], valid, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else "."
    section = ".".join(location[:-1]) or "the top level"
    return f"unknown key '{'.'.join(location)}'{hint} Valid keys of {section}: {', '.join(valid) or 'none'}"


def _kinds(model: type[BaseModel], location: Sequence[str]) -> set[Any]:
    """The types that the value of a key may have; none for a key that does not exist."""
    *sections, last = location
    section = _section(model, sections)
    if section is None or last not in section.model_fields:
        return set()
    annotation = section.model_fields[last].annotation
    return set(get_args(annotation)) if isinstance(annotation, UnionType) else {annotation}


def _valid_keys(model: type[BaseModel], sections: Sequence[str]) -> list[str]:
    section = _section(model, sections)
    return [] if section is None else list(section.model_fields)


def _section(model: type[BaseModel], sections: Sequence[str]) -> type[BaseModel] | None:
    """The model of a section below `model`; None if there is no such section."""
    current: Any = model
    for section in sections:
        if section not in current.model_fields:
            return None
        annotation = current.model_fields[section].annotation
        choices = [getattr(choice, "__origin__", choice) for choice in (annotation, *get_args(annotation))]
        models = [choice for choice in choices if isinstance(choice, type) and issubclass(choice, BaseModel)]
        if not models:
            return None
        current = models[0]
    return current
