"""The `cluster.serving` section of an experiment: replicas of a model that is served over HTTP."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ServingConfig(BaseModel):
    """What `larmor serve --http` takes of the cluster. Trainings do not read it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    replicas: int = Field(1, ge=1, description="processes with the model; each reconstructs one volume at a time")
    max_replicas: int | None = Field(
        None, ge=1, description="up to so many replicas while requests wait; default: no more than replicas"
    )
    cpus_per_replica: float = Field(
        1.0, gt=0, description="processor cores that are reserved for each replica; a fraction lets several share one"
    )
    batch_size: int = Field(8, ge=1, description="slices of a volume that go through the network at once")

    @model_validator(mode="after")
    def _in_order(self) -> ServingConfig:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas={self.max_replicas} is less than replicas={self.replicas}; raise it")
        return self
