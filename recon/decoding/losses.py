"""The losses of TIGAN's generator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from larmor.recon.decoding.networks import unpacked
from larmor.recon.recipe.decoding import DecodingConfig
from larmor.recon.training.losses import adversarial_loss


def ranking_loss(image_code: Tensor, bold_code: Tensor, stimulus: Tensor, margin: float) -> Tensor:
    """Matching pairs of image and trial above those that do not match: a scalar.

    With s_ij the cosine of image i and trial j, both (batch, code), the mean over pairs i ≠ j of
    max(0, margin + s_ij − s_ii) + max(0, margin + s_ji − s_ii). Trials of one and the same `stimulus` match each other,
    as the blocks of a category do, and are left out. A batch without two stimuli has no loss.
    """
    cosine = F.normalize(image_code, dim=1) @ F.normalize(bold_code, dim=1).T
    own = cosine.diagonal()[:, None]
    differ = (stimulus.flatten(1)[:, None] != stimulus.flatten(1)[None]).any(dim=2)
    above = (margin + cosine - own).clamp_min(0) + (margin + cosine.T - own).clamp_min(0)
    return (above * differ).sum() / differ.sum().clamp_min(1)


def generator_loss(
    stimulus: Tensor, output: Tensor, fake_scores: Sequence[Tensor], config: DecodingConfig
) -> dict[str, Tensor]:
    """The terms for the `output` of `Tigan` in training; the key `loss` is what is minimised.

    `fake_scores` are the critic's of the decoded images, empty where there is no critic.
    """
    parts = unpacked(output, stimulus.shape[-1])
    terms = {
        "content": F.l1_loss(parts.decoded, stimulus),
        "autoencoder": F.l1_loss(parts.again, stimulus),
        "ranking": ranking_loss(parts.image_code, parts.bold_code, stimulus, config.margin),
    }
    for scores in fake_scores:
        terms["adversarial"] = adversarial_loss(scores, "bce")
    loss = sum((getattr(config, name) * term for name, term in terms.items()), torch.zeros((), device=output.device))
    return {"loss": loss, **terms}
