"""The paper's discriminator: ResNet-50 trunk, global average pooling, one dense unit (Fig. 3)."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from recon.trunk import Norm, ResNet50Trunk


class CriticConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = Field(64, ge=4, description="channels of the stem; 64 is ResNet-50")
    norm: Norm = "group"
    steps: int = Field(5, ge=1, description="critic steps per generator step")
    clip: float | None = Field(0.01, gt=0, description="the clipping constant c of eq. (4); null: no clipping")


class ResNet50Critic(nn.Module):
    """(batch, 1, height, width) → (batch, 1) unbounded scores; with `adversarial: bce` they are logits.

    Any size with one set of weights, thanks to the global average pooling.
    """

    def __init__(self, config: CriticConfig) -> None:
        super().__init__()
        self.trunk = ResNet50Trunk(1, config.width, config.norm)
        # no bias: real and fake cancel in its Wasserstein gradient, and RMSprop would amplify what rounding leaves
        self.dense = nn.Linear(self.trunk.channels[-1], 1, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        return self.dense(self.trunk(image)[-1].mean(dim=(2, 3)))
