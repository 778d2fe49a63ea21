"""The paper's discriminator: ResNet-50 trunk, global average pooling, one dense unit (Fig. 3)."""

from __future__ import annotations

from torch import Tensor, nn

from larmor.recon.networks.trunk import ResNet50Trunk
from larmor.recon.recipe.settings import CriticConfig


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
