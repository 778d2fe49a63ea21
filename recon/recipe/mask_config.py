"""Which points of k-space are measured, as a configuration says it; `masks.py` makes the masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from larmor.recon.recipe.mask_kinds import ALIASES, KINDS
from larmor.recon.recipe.own_code import OneOf

Kind = Annotated[str, OneOf(KINDS, "larmor.masks")]


def _with_other_words(schema: dict[str, Any]) -> None:
    """Let editors that know the JSON schema accept what `MaskConfig` reads beside its own words."""
    schema["properties"]["acceleration"] = {
        "anyOf": [{"type": "number", "minimum": 1}, {"type": "null"}],
        "default": None,
        "description": "all points / measured points, in place of sampling_ratio",
    }
    kind = schema["properties"]["kind"]
    kind["anyOf"][0]["enum"] += list(ALIASES)


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
    """

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra=_with_other_words)

    kind: Kind = Field("gaussian1d", description="which points are measured; `larmor masks` draws every kind")
    sampling_ratio: float = Field(0.1, gt=0, le=1, description="measured points / all points; not for kind file")
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
        if isinstance(acceleration, bool) or not isinstance(acceleration, int | float) or not acceleration >= 1:
            raise ValueError(f"acceleration={acceleration!r}: all points / measured points; give a number from 1 on")
        return {**content, "sampling_ratio": 1 / acceleration}

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
        return self
