"""What a PET scan of `signal.mode=pet` is like: counts, geometry, resolution."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator


class PetConfig(BaseModel):
    """A slice is measured alone, by parallel beams; sizes are those of a whole-body scanner, and ours."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    counts: float = Field(3e5, gt=0, description="true coincidences of a slice in the scan to be improved")
    full_counts: float | None = Field(
        3e6, gt=0, description="the same of the target; null: the target is the blurred activity, without noise"
    )
    background: float = Field(0.2, ge=0, description="randoms and scatter, spread evenly, as a fraction of the counts")
    num_angles: int = Field(180, ge=8, le=1024, description="angles of the projections, over 180°")
    resolution_mm: float = Field(4.5, ge=0, description="full width at half maximum of a point, in mm")
    pixel_mm: float = Field(2.0, gt=0, description="height and width of a pixel of the data set, in mm")
    seed: int = Field(0, ge=0, description="seed of the counts")

    @property
    def label(self) -> str:
        """The counts in words."""
        target = "no noise" if self.full_counts is None else f"{self.full_counts:.3g} counts"
        return f"{self.counts:.3g} counts (target: {target})"

    @model_validator(mode="after")
    def _target_is_better(self) -> PetConfig:
        if self.full_counts is not None and self.full_counts <= self.counts:
            raise ValueError(
                f"full_counts={self.full_counts:g} is not above counts={self.counts:g}, so that the target would be no "
                "better than the input; raise it, or set it to null"
            )
        return self
