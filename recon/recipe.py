"""Everything that one worker's training needs: the sections of an experiment that belong to this package."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from recon.augment import AugmentConfig
from recon.critic import CriticConfig
from recon.generator import GeneratorConfig
from recon.losses import LossConfig
from recon.masks import MaskConfig
from recon.optimizers import OptimizerConfig
from storage.config import DataConfig


class TrainingConfig(BaseModel):
    """Counts are generator steps. One step uses `critic.steps` global batches; the generator sees the last."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_steps: int = Field(10_000, ge=1)
    global_batch_size: int = Field(16, ge=1, description="slices per optimiser step, over all workers")
    gradient_accumulation: int = Field(1, ge=1, description="micro-batches per optimiser step")
    schedule: Literal["constant", "cosine"] = Field("constant", description="of both learning rates")
    backend: Literal["auto", "deepspeed", "plain"] = "auto"
    zero_stage: Literal[0, 1, 2, 3] = 1
    dtype: Literal["float32", "bfloat16"] = "float32"
    log_every: int = Field(20, ge=1)
    validate_every: int = Field(500, ge=1)
    checkpoint_every: int = Field(500, ge=1)
    validation_slices: int | None = Field(None, ge=1, description="evenly spaced slices; null: all")
    keep_checkpoints: int = Field(2, ge=1, description="newest checkpoints kept beside the best one")
    best_metric: Literal["psnr", "ssim", "mse", "rmse", "nmse"] = Field(
        "psnr", description="validation metric whose best checkpoint is kept"
    )


class Recipe(BaseModel):
    """Data, physics, networks, losses and schedule of a training, without the cluster it runs on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(0, ge=0)
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    mask: MaskConfig = MaskConfig()
    generator: GeneratorConfig = GeneratorConfig()
    critic: CriticConfig = CriticConfig()
    loss: LossConfig = LossConfig()
    generator_optimizer: OptimizerConfig = OptimizerConfig()
    critic_optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="after")
    def _accumulation_divides_batch(self) -> Recipe:
        batch, parts = self.training.global_batch_size, self.training.gradient_accumulation
        if batch % parts:
            raise ValueError(
                f"training.global_batch_size={batch} does not divide into training.gradient_accumulation={parts} "
                f"micro-batches; use a multiple of {parts}"
            )
        return self

    def micro_batch_size(self, world_size: int) -> int:
        """Slices of one forward on one rank. Raises `ValueError` if the batch does not divide evenly."""
        batch, parts = self.training.global_batch_size, self.training.gradient_accumulation
        if batch % (world_size * parts):
            raise ValueError(
                f"training.global_batch_size={batch} does not divide by {world_size} workers × {parts} micro-batches; "
                f"use a multiple of {world_size * parts}"
            )
        return batch // (world_size * parts)


def learning_rate_factor(schedule: str, step: int, num_steps: int) -> float:
    """What the learning rate of step `step` (from 0) is multiplied by; a pure function."""
    if schedule == "constant":
        return 1.0
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / num_steps))
