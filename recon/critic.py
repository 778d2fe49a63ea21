"""The paper's discriminator: ResNet-50 trunk, global average pooling, one dense unit (Fig. 3)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from recon.trunk import Norm, ResNet50Trunk


class CriticConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["resnet50", "dagan"] = "resnet50"
    width: int = Field(64, ge=4, description="channels of the first layer; 64 is as published")
    norm: Norm = "group"
    steps: int = Field(5, ge=1, description="critic steps per generator step")
    lipschitz: Literal["weight_clipping", "gradient_penalty", "spectral_norm", "none"] = Field(
        "weight_clipping", description="how the slope of the critic is held"
    )
    clip: float | None = Field(
        0.01, gt=0, description="the clipping constant c of eq. (4), of weight_clipping alone; null: no clipping"
    )
    penalty_weight: float = Field(10.0, gt=0, description="of gradient_penalty alone", allow_inf_nan=False)

    @property
    def applied_clip(self) -> float | None:
        """What weights are clamped to; None where another way, or none, holds the slope."""
        return self.clip if self.lipschitz == "weight_clipping" else None


class ResNet50Critic(nn.Module):
    """(batch, channels, height, width) → (batch, 1) unbounded scores; with `adversarial: bce` they are logits.

    Any size with one set of weights, thanks to the global average pooling.
    """

    def __init__(self, config: CriticConfig, channels: int = 1) -> None:
        super().__init__()
        self.trunk = ResNet50Trunk(channels, config.width, config.norm)
        # no bias: real and fake cancel in its Wasserstein gradient, and RMSprop would amplify what rounding leaves
        self.dense = nn.Linear(self.trunk.channels[-1], 1, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        return self.dense(self.trunk(image)[-1].mean(dim=(2, 3)))
