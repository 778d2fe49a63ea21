"""The paper's losses, eqs. (2)–(9)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from recon.fourier import fft2c


class LossConfig(BaseModel):
    """Eq. (9): L_G = L_A + a·L_N + b·L_F. The paper gives no a and b; 15 and 0.1 follow DAGAN."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    adversarial: Literal["wasserstein", "bce"] = "wasserstein"
    a: float = Field(15.0, ge=0, description="weight of the normalised root-MSE loss, eq. (7)")
    b: float = Field(0.1, ge=0, description="weight of the frequency loss, eq. (8)")
    frequency: Literal["magnitude", "complex"] = "magnitude"


def normalized_root_mse_loss(target: Tensor, reconstruction: Tensor) -> Tensor:
    """Eq. (7): ‖i − G(n)‖ / ‖i‖ per image, mean over the batch. The paper calls it NMSE; it has the root."""
    error = torch.linalg.vector_norm(target - reconstruction, dim=(1, 2, 3))
    return (error / torch.linalg.vector_norm(target, dim=(1, 2, 3)).clamp_min(1e-12)).mean()


def frequency_loss(target: Tensor, reconstruction: Tensor, kind: str) -> Tensor:
    """Eq. (8) with the orthonormal FFT, mean over pixels, so that b does not depend on the image's size.

    `magnitude`: squared difference of FFT magnitudes (DAGAN's). `complex`: of the FFTs themselves, which by
    Parseval equals the mean squared error of the images.
    """
    wanted, found = fft2c(target), fft2c(reconstruction)
    if kind == "magnitude":
        return (wanted.abs() - found.abs()).square().mean()
    return (wanted - found).abs().square().mean()


def critic_loss(real_scores: Tensor, fake_scores: Tensor, kind: str) -> Tensor:
    """What the critic minimises: the negative of eq. (5), or of eq. (2) from logits. Scores are (batch, 1)."""
    if kind == "wasserstein":
        return fake_scores.mean() - real_scores.mean()
    real = F.binary_cross_entropy_with_logits(real_scores, torch.ones_like(real_scores))
    fake = F.binary_cross_entropy_with_logits(fake_scores, torch.zeros_like(fake_scores))
    return real + fake


def adversarial_loss(fake_scores: Tensor, kind: str) -> Tensor:
    """The generator's part: eq. (6), or the non-saturating form −log D(G(n)) of eq. (2)."""
    if kind == "wasserstein":
        return -fake_scores.mean()
    return F.binary_cross_entropy_with_logits(fake_scores, torch.ones_like(fake_scores))


def generator_loss(
    target: Tensor, reconstruction: Tensor, fake_scores: Tensor, config: LossConfig
) -> dict[str, Tensor]:
    """Eq. (9) and its terms; the key `loss` is what is minimised."""
    adversarial = adversarial_loss(fake_scores, config.adversarial)
    content = normalized_root_mse_loss(target, reconstruction)
    frequency = frequency_loss(target, reconstruction, config.frequency)
    return {
        "loss": adversarial + config.a * content + config.b * frequency,
        "adversarial": adversarial,
        "normalized_root_mse": content,
        "frequency": frequency,
    }
