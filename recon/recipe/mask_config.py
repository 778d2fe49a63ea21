"""Which points of k-space are measured, as a configuration says it; `masks.py` makes the masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from larmor.recon.recipe.mask_kinds import ALIASES, KINDS
from larmor.recon.recipe.own_code import OneOf

Kind = Annotated[str, OneOf(KINDS, "larmor.masks")]


def _with_other_words(schema: dict[str, Any]) -> None:
    """Let editors that know the JSON schema accept what `MaskConfig` reads beside its own words."""
    number = {"type": "number", "minimum": 1}
    ends = {"type": "object", "properties": {"min": number, "max": number}, "required": ["min", "max"]}
    schema["properties"]["acceleration"] = {
        "anyOf": [number, {**ends, "additionalProperties": False}, {"type": "null"}],
        "default": None,
        "description": "all points / measured points, in place of sampling_ratio",
    }
    kind = schema["properties"]["kind"]
    kind["anyOf"][0]["enum"] += list(ALIASES)


class RatioRange(BaseModel):
    """Sampling ratios, of which each sample has one: evenly distributed, drawn from the sample's own stream."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min: float = Field(gt=0, le=1, description="the least sampling ratio")
    max: float = Field(gt=0, le=1, description="the largest sampling ratio")

    @model_validator(mode="after")
    def _in_order(self) -> RatioRange:
        if self.max <= self.min:
            raise ValueError(f"max={self.max:g} is not more than min={self.min:g}; swap them, or give one number")
        return self


def _kind_of_ratio(value: Any) -> str:
    return "a range" if isinstance(value, Mapping | RatioRange) else "a number"


class MaskConfig(BaseModel):
    """Which points of k-space are measured, besides a fully sampled centre.

    Whole columns (phase-encoding lines): `gaussian1d`, denser towards the centre; `uniform1d`, equally
    spaced; `random1d`, each equally likely; `center_periphery1d`, half of them the central ones, a quarter
    equally spaced, the others at random. Single points, all denser towards the centre: `gaussian2d`;
    `poisson2d`, which keep a distance from each other; `radial` and `spiral`, on the trajectories of that
    name. `file` reads a mask, and only `file` counts then. `MODULE:NAME` is a function of one's own: called with the
    shape (height, width), the sampling ratio and a random generator of NumPy, it gives booleans in that shape.

    fastMRI's words are read too: the kinds `equispaced` (`uniform1d`) and `random` (`random1d`), and `acceleration: 4`
    in place of `sampling_ratio: 0.25`. The configuration keeps the kind and the ratio.

    With a range, `sampling_ratio: {min: 0.1, max: 0.5}`, each sample has a ratio of its own (and the images of a stack
    have one), so that one model learns all of them. Any kind but `file` can.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra=_with_other_words)

    kind: Kind = Field("gaussian1d", description="which points are measured; `larmor masks` draws every kind")
    sampling_ratio: Annotated[
        Annotated[float, Field(gt=0, le=1), Tag("a number")] | Annotated[RatioRange, Tag("a range")],
        Discriminator(_kind_of_ratio),
    ] = Field(
        0.1,
        description="measured points / all points: a number, or {min: 0.1, max: 0.5}, drawn for each sample; not for "
        "kind file",
    )
    center_fraction: float = Field(
        0.04, ge=0, lt=1, description="fully sampled centre, as a fraction of each axis that is undersampled"
    )
    spread: float = Field(
        0.22,
        gt=0,
        description="standard deviation of the density, as a fraction of the axis; gaussian and poisson kinds",
    )
    per_slice: bool = Field(False, description="a mask of its own for every sample, else one for all")
    seed: int = Field(0, ge=0, description="of the mask, apart from the training's seed")
    file: str | None = Field(
        None,
        description="for kind file: a .npy of True/False or 1/0 (height, width), zero frequency at "
        "[height // 2, width // 2], which every worker can read",
    )
    sha256: str | None = Field(
        None,
        pattern="^[0-9a-f]{64}$",
        description="for kind file: the hash of the mask; another mask in that file is refused; a run that begins with "
        "null keeps what it found",
    )

    @model_validator(mode="before")
    @classmethod
    def _in_our_words(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        content = dict(given)
        if isinstance(content.get("kind"), str):
            content["kind"] = ALIASES.get(content["kind"], content["kind"])
        if (acceleration := content.pop("acceleration", None)) is None:
            return content
        if "sampling_ratio" in content:
            raise ValueError("acceleration and sampling_ratio say the same; leave one of them out")
        return {**content, "sampling_ratio": _ratio_of(acceleration)}

    @property
    def ratios(self) -> tuple[float, float]:
        """The least and the largest sampling ratio."""
        ratio = self.sampling_ratio
        return (ratio.min, ratio.max) if isinstance(ratio, RatioRange) else (ratio, ratio)

    @property
    def differs(self) -> bool:
        """Whether samples have masks of their own."""
        return self.per_slice or isinstance(self.sampling_ratio, RatioRange)

    @property
    def ratio_in_words(self) -> str:
        low, high = (100 * ratio for ratio in self.ratios)
        return f"{low:g} %" if low == high else f"{low:g} to {high:g} %"

    @model_validator(mode="after")
    def _file_for_kind_file(self) -> MaskConfig:
        if (self.kind == "file") != (self.file is not None):
            missing = "mask.kind is file, but mask.file names none: set it to the path of a .npy"
            unused = (
                f"mask.file is {self.file}, but mask.kind is {self.kind}: set mask.kind to file, or leave mask.file out"
            )
            raise ValueError(missing if self.file is None else unused)
        if self.sha256 is not None and self.file is None:
            raise ValueError(f"mask.sha256 is that of a file, but mask.kind is {self.kind}: leave mask.sha256 out")
        if self.file is not None and isinstance(self.sampling_ratio, RatioRange):
            raise ValueError(
                f"mask.sampling_ratio is a range ({self.ratio_in_words}), but mask.kind=file has one mask: leave "
                "mask.sampling_ratio out, or choose another mask.kind"
            )
        return self


def _ratio_of(acceleration: Any) -> Any:
    """A sampling ratio, or the two ends of a range, from all points / measured points."""
    if isinstance(acceleration, Mapping) and set(acceleration) == {"min", "max"}:
        return {"min": _ratio_of(acceleration["max"]), "max": _ratio_of(acceleration["min"])}
    if isinstance(acceleration, bool) or not isinstance(acceleration, int | float) or not acceleration >= 1:
        raise ValueError(
            f"acceleration={acceleration!r}: all points / measured points; give a number from 1 on, or "
            "{min: 2, max: 10}"
        )
    return 1 / acceleration
