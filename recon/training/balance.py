"""How the terms of eq. (9) pull at the reconstruction, and how the critic scores it: is the GAN alive?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from larmor.recon.recipe.critic_role import CRITICS
from larmor.recon.recipe.settings import LossConfig
from larmor.recon.training.losses import adversarial_loss, generator_loss, term_weights

_TERMS = [*(f"adversarial{suffix}" for suffix in CRITICS), "content", "frequency"]
_SCORES = [f"{name}{suffix}" for suffix in CRITICS for name in ("real", "fake", "slope")]


@dataclass(frozen=True)
class Judge:
    """A critic, its weights frozen: `score` of reconstructions (batch, channels, height, width) → (batch, 1), and
    `real_scores` of the same images' targets."""

    score: Callable[[Tensor], Tensor]
    real_scores: Tensor


def measure(
    target: Tensor, reconstruction: Tensor, config: LossConfig, critics: Sequence[Judge] = ()
) -> dict[str, float]:
    """Of one micro-batch: the squared norm of each weighted term's gradient at the reconstruction, as `adversarial`,
    `content` and `frequency`; the sums of the critic's `real` and `fake` scores and of its `slope` ‖∇D‖ at each
    reconstruction; and the number of `images`. `critics` are those of `config.critics`, or none; the figures of a
    second one carry its suffix, such as `adversarial_residual`.

    Terms of weight 0 are left out. Nothing is trained: the networks' own gradients stay as they are. One pass goes
    back through the critic, because ZeRO 3 gathers its weights for each: the score of an image depends on no other
    image, so the gradient of L_A at an image is its slope times ∂L_A/∂score.
    """
    image = reconstruction.detach().requires_grad_()
    found: dict[str, float] = {"images": len(target)}
    weights = term_weights(config)
    for name, term in generator_loss(target, image, (), config).items():
        if weights.get(name):
            (gradient,) = torch.autograd.grad(weights[name] * term, image)
            found["content" if name == config.content_term else name] = _square(gradient)
    for role, critic in zip(config.critics, critics, strict=bool(critics)):
        scores = critic.score(image)
        (slopes,) = torch.autograd.grad(scores.sum(), image)
        leaf = scores.detach().requires_grad_()
        (by_score,) = torch.autograd.grad(adversarial_loss(leaf, config.adversarial), leaf)
        if role.weight:
            found[role.term] = _square(role.weight * by_score.view(-1, 1, 1, 1) * slopes)
        sums = {"real": critic.real_scores, "fake": scores, "slope": torch.linalg.vector_norm(slopes, dim=(1, 2, 3))}
        found |= {f"{name}{role.suffix}": float(values.detach().sum()) for name, values in sums.items()}
    return found


def _square(gradient: Tensor) -> float:
    return float(gradient.double().square().sum())


def figures(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The figures of a report from the micro-batches of all ranks.

    `share/…` are the norms of the terms' gradients over their sum, each norm over the whole batch; `score/real`,
    `score/fake` and `score/slope` are means over its images. No shares where there is one term alone.
    """
    total: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    norms = {name: total[name] ** 0.5 for name in _TERMS if name in total}
    whole = sum(norms.values())
    report: dict[str, float] = {}
    if len(norms) > 1 and whole > 0:
        report = {f"share/{name}": norm / whole for name, norm in norms.items()}
    images = total.get("images", 0)
    scores = {f"score/{name}": total[name] / images for name in _SCORES if name in total}
    return report | scores
