"""The whole experiment file, with its `sweep:` section."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from larmor.cluster.experiments.experiment import Experiment, build, change, parse_override, read_content
from larmor.cluster.experiments.own_system import with_own_system
from larmor.recon.recipe.own_metric import find_metric
from larmor.recon.recipe.own_name import is_own
from larmor.storage.objects.errors import InputError
from larmor.tuning.search.objectives import Objectives


def _one_or_two(metric: Any) -> str | tuple[str, ...]:
    """`psnr`, or two of them. Raises `ValueError` for anything else."""
    names = [metric] if isinstance(metric, str) else metric
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError("expected a metric, or a list of two, such as [psnr, hfen]")
    found = Objectives.of(names).names
    return found if len(found) > 1 else found[0]


class SweepConfig(BaseModel):
    """What is searched, by which metric. `overrides` are keys in which a trial differs from the full training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_trials: int = Field(8, ge=1, description="points of the space; a grid has as many as it has")
    metric: Annotated[str | tuple[str, ...], BeforeValidator(_one_or_two)] = Field(
        "psnr", description="validation metric, without a, b; of a list of two the best trade-offs are searched"
    )
    sampler: Literal["tpe", "random", "grid"] = Field("tpe", description="what proposes the values of a trial")
    scheduler: Literal["none", "asha"] = Field("none", description="asha: trials that lag behind are stopped early")
    grace_steps: int | None = Field(
        None, ge=1, description="asha: no trial is stopped before this step; default: 1 / reduction_factor² of a trial"
    )
    reduction_factor: float = Field(3.0, gt=1, description="asha: one trial in so many continues at each rung")
    seeds: int = Field(1, ge=1, description="trainings for each point; what counts is their mean")
    start_seeds: int = Field(
        1, ge=1, description="trainings of the values that the search starts from; their spread is its noise"
    )
    warm_start: str | None = Field(None, description="URL of an earlier sweep whose trials teach the sampler")
    concurrent_trials: int | None = Field(
        None, ge=1, description="trials at once; default: what the cluster has room for"
    )
    seed: int = Field(0, ge=0, description="of the sampler")
    space: Mapping[str, str] = Field(default_factory=dict, description="experiment key → loguniform(low, high), …")
    overrides: Mapping[str, Any] = Field(
        default_factory=dict, description="experiment key → value, in which a trial differs from the full training"
    )

    @property
    def objectives(self) -> Objectives:
        """Raises `InputError` for a metric of one's own that cannot be imported."""
        return Objectives.of(self.metric, find_metric)

    def first_rung(self, num_steps: int, validate_every: int) -> int:
        """The step at which ASHA first stops trials of `num_steps`: a validation, unless it was chosen."""
        own = math.ceil(num_steps / self.reduction_factor**2 / validate_every) * validate_every
        return min(self.grace_steps or own, num_steps)


class SweepExperiment(Experiment):
    """An experiment and its search."""

    sweep: SweepConfig = SweepConfig()

    @property
    def own_parts(self) -> dict[str, str]:
        """Those of the search too."""
        names = [self.sweep.metric] if isinstance(self.sweep.metric, str) else self.sweep.metric
        metrics = {f"sweep.metric.{number}": name for number, name in enumerate(names) if is_own(name)}
        return super().own_parts | metrics

    @property
    def sweep_url(self) -> str:
        return f"{self.output_url.rstrip('/')}/sweeps/{self.name}"

    def training_part(self) -> Experiment:
        """The experiment without its search."""
        return Experiment.model_validate(self.model_dump(mode="json", include=set(Experiment.model_fields)))


def load_sweep_experiment(source: str, overrides: Sequence[str]) -> SweepExperiment:
    """An experiment file with overrides; `space.KEY=loguniform(…)` adds a dimension to the search.

    Raises `InputError` for a missing file, an unknown key (naming the valid ones) or an impossible value, and for a
    system of one's own that cannot be had.
    """
    return build_sweep_experiment(read_content(source), overrides, source)


def build_sweep_experiment(content: dict[str, Any], overrides: Sequence[str], source: str) -> SweepExperiment:
    """The same of what stands in a file already read, which is changed; messages call it `source`."""
    spaces = [override for override in overrides if override.startswith("space.")]
    change(content, dict(parse_override(item, SweepExperiment) for item in overrides if item not in spaces))
    for override in spaces:  # last: they add to a section that another override may replace
        key, equals, value = override.partition("=")
        if not equals:
            raise InputError(f"'{override}': expected space.KEY=loguniform(low,high)")
        sweep = content.setdefault("sweep", {})
        space = sweep.setdefault("space", {}) if isinstance(sweep, dict) else None
        if not isinstance(space, dict):
            raise InputError(f"'{override}': sweep.space is a value, not a section; remove it")
        space[key.removeprefix("space.")] = value
    content, system = with_own_system(content)
    return build(content, SweepExperiment, f"{source} with {system}" if system else source)
