"""What an experiment says of decoding: networks and losses of the system `tigan`, and the runs that are held out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

VALIDATED = ("ssim", "psnr", "mse", "rmse")  # metrics of an image that are finite whatever the stimulus is


class DecodingConfig(BaseModel):
    """TIGAN after Huang et al., IEEE TCDS 14:1104 (2022), of whom the abstract is public; sizes and weights are ours.

    Runs are those of the scanner: trials of one run are never on both sides of a split.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = Field(64, ge=4, description="channels of the encoder's and the critic's first layer")
    units: int = Field(256, ge=1, description="units of the LSTM")
    code: int = Field(128, ge=1, description="numbers that stand for an image or a trial")
    adversarial: float = Field(1.0, ge=0, description="weight of the critic; 0: no critic", allow_inf_nan=False)
    content: float = Field(
        10.0, ge=0, description="weight of L1 between decoded image and stimulus", allow_inf_nan=False
    )
    autoencoder: float = Field(
        10.0, ge=0, description="weight of L1 between stimulus and stimulus, encoded and decoded", allow_inf_nan=False
    )
    ranking: float = Field(1.0, ge=0, description="weight of the pairwise ranking loss", allow_inf_nan=False)
    margin: float = Field(0.2, ge=0, le=2, description="margin of the ranking loss, between cosines")
    validation_runs: tuple[int, ...] = Field((), description="runs that choose the best checkpoint")
    test_runs: tuple[int, ...] = Field((), description="runs that the evaluation is of")

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> DecodingConfig:
        if not (self.adversarial or self.content):
            raise ValueError("adversarial=0 with content=0 leaves the decoded image nothing to learn from; raise one")
        if both := sorted(set(self.validation_runs) & set(self.test_runs)):
            raise ValueError(f"runs {both} are in validation_runs and in test_runs; take them out of one")
        return self


DECODERS: Mapping[str, Mapping[str, Any]] = {
    "tigan": {
        "decoding": {"width": 64},  # as it is: a section says that the task is decoding
        "generator_optimizer": {"name": "adam", "learning_rate": 2e-4, "beta1": 0.5},
        "critic_optimizer": {"name": "adam", "learning_rate": 2e-4, "beta1": 0.5},
        "training": {"global_batch_size": 32, "best_metric": "ssim"},
    },
}
"""The systems that decode, as `SYSTEMS` has those that reconstruct."""
