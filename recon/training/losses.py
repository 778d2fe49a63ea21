"""The paper's losses, eqs. (2)–(9)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from larmor.recon.physics.fourier import fft2c
from larmor.recon.physics.sense import channels_to_complex
from larmor.recon.physics.transfer import constant
from larmor.recon.recipe.own_code import call_part
from larmor.recon.recipe.own_name import is_own
from larmor.recon.recipe.settings import Content, LossConfig
from larmor.storage.objects.errors import InputError

_K1, _K2 = 0.01, 0.03  # of SSIM (Wang et al., 2004)


def normalized_root_mse_loss(target: Tensor, reconstruction: Tensor) -> Tensor:
    """Eq. (7): ‖i − G(n)‖ / ‖i‖ per image, mean over the batch. The paper calls it NMSE; it has the root.

    An image of zeros has no relative error, and counts as 0.
    """
    error = torch.linalg.vector_norm(target - reconstruction, dim=(1, 2, 3))
    size = torch.linalg.vector_norm(target, dim=(1, 2, 3))
    return torch.where(size > 0, error / size.clamp_min(1e-12), 0).mean()


def frequency_loss(target: Tensor, reconstruction: Tensor, kind: str) -> Tensor:
    """Eq. (8), ‖F{i} − F{G(n)}‖²: the sum over k-space of an orthonormal FFT, mean over the batch.

    DAGAN's released loss is the same number: the mean over an unnormalised FFT. So the published b = 0.1 means here
    what it meant there. `magnitude`: squared difference of FFT magnitudes, as DAGAN computes it. `complex`: of the
    FFTs themselves, which by Parseval equals the squared error of the images.
    """
    wanted, found = (
        fft2c(image if image.shape[1] == 1 else channels_to_complex(image)) for image in (target, reconstruction)
    )
    error = wanted.abs() - found.abs() if kind == "magnitude" else (wanted - found).abs()
    return error.square().sum(dim=(1, 2, 3)).mean()


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


def dssim_loss(target: Tensor, reconstruction: Tensor) -> Tensor:
    """(1 − SSIM) / 2 of images (batch, 1, height, width) in [0, 1], mean over the batch; Gaussian window of 11.

    Bit for bit MONAI's `SSIMLoss`, which sends its window to the device in every call, and the host waits for that.
    """
    window, first, second = constant(_window(), target)[None, None], _K1**2, _K2**2
    x, y = (F.conv2d(image, window) for image in (reconstruction, target))
    # one after the other: gradients are added in the reverse order
    xx = F.conv2d(reconstruction * reconstruction, window)
    yy = F.conv2d(target * target, window)
    xy = F.conv2d(reconstruction * target, window)
    variance, other, covariance = xx - x * x, yy - y * y, xy - x * y
    contrast = (2 * covariance + second) / (variance + other + second)
    ssim = ((2 * x * y + first) / (x**2 + y**2 + first)) * contrast
    return (1 - ssim.flatten(1).mean(dim=1, keepdim=True)).mean() / 2


@lru_cache(maxsize=1)
def _window() -> tuple[tuple[float, ...], ...]:
    """SSIM's Gaussian, 11×11 with σ = 1.5 and the sum 1, in float32."""
    line = torch.exp(-((torch.arange(-5.0, 6.0) / 1.5) ** 2) / 2)
    line = (line / line.sum()).unsqueeze(0)
    return tuple(map(tuple, torch.matmul(line.t(), line).tolist()))


def complex_l1_loss(target: Tensor, reconstruction: Tensor) -> Tensor:
    """|i − G(n)| of complex pixels, as real and imaginary parts (`complex_to_channels`), mean over all of them."""
    real, imaginary = (target - reconstruction).chunk(2, dim=1)
    # the root has no slope at 0, where a pixel that was measured whole has its error
    return (real.square() + imaginary.square() + 1e-12).sqrt().mean()


def content_loss(target: Tensor, reconstruction: Tensor, kind: Content) -> Tensor:
    """L_N of eq. (7), or what another system has in its place; a scalar.

    Raises `InputError` if a loss of one's own fails or gives no scalar.
    """
    if is_own(kind):
        loss = call_part(kind, lambda part: part(reconstruction, target), "loss(reconstruction, target)")
        if not isinstance(loss, Tensor) or loss.ndim:
            raise InputError(f"loss.content={kind}: expected one number (a tensor of shape []), got {_what(loss)}")
        return loss
    if kind == "normalized_root_mse":
        return normalized_root_mse_loss(target, reconstruction)
    if kind == "mse":
        return F.mse_loss(reconstruction, target)
    if kind == "l1":
        return F.l1_loss(reconstruction, target)
    if kind == "complex_l1":
        return complex_l1_loss(target, reconstruction)
    return dssim_loss(target, reconstruction)


def _what(value: object) -> str:
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def generator_loss(
    target: Tensor, reconstruction: Tensor, fake_scores: Sequence[Tensor], config: LossConfig
) -> dict[str, Tensor]:
    """Eq. (9) and its terms; the key `loss` is what is minimised.

    `fake_scores` are those of each of `config.critics`, in that order; empty to leave the adversarial terms out. The
    terms are one for each critic (`adversarial`, `adversarial_residual`), `frequency` and one called
    `config.content_term`.
    """
    terms: dict[str, Tensor] = {}
    for role, scores in zip(config.critics, fake_scores, strict=bool(fake_scores)):
        terms[role.term] = adversarial_loss(scores, config.adversarial)
    if config.critic_sees != "measurement":
        terms[config.content_term] = content_loss(target, reconstruction, config.content)
        terms["frequency"] = frequency_loss(target, reconstruction, config.frequency)
    weights = term_weights(config)
    loss = sum((weights[name] * term for name, term in terms.items()), torch.zeros((), device=reconstruction.device))
    return {"loss": loss, **terms}


def term_weights(config: LossConfig) -> dict[str, float]:
    """The weights of eq. (9): of each term that `generator_loss` may give."""
    return {role.term: role.weight for role in config.critics} | {config.content_term: config.a, "frequency": config.b}
