"""Shares of the gradient and scores, as a report gives them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from larmor.recon.recipe.settings import LossConfig
from larmor.recon.training.balance import Judge, figures, measure
from larmor.recon.training.losses import frequency_loss, generator_loss, normalized_root_mse_loss
from larmor.recon.training.silent_critic import SilentCritic

WEIGHTS = torch.randn(1, 1, 8, 10, generator=torch.Generator().manual_seed(9))


def images(seed: int, count: int = 4) -> Tensor:
    return torch.rand(count, 1, 8, 10, generator=torch.Generator().manual_seed(seed))


def score(image: Tensor) -> Tensor:
    """A critic of two scales: its slope differs from image to image."""
    return (torch.tanh(image * WEIGHTS) + 0.3 * image.square()).sum(dim=(1, 2, 3)).unsqueeze(1)


def report(target: Tensor, found: Tensor, config: LossConfig, parts: int = 1) -> dict[str, float]:
    pieces = zip(target.chunk(parts), found.chunk(parts), strict=True)
    return figures([measure(t, f, config, [Judge(score, score(t))]) for t, f in pieces])


@pytest.mark.parametrize("adversarial", ["wasserstein", "bce"])
def test_shares_are_the_norms_of_the_terms_gradients(adversarial: Any) -> None:
    config = LossConfig(adversarial=adversarial, a=3.0, b=0.7)
    target, found = images(0), images(1).requires_grad_()
    terms = generator_loss(target, found, [score(found)], config)
    weighted = {
        "adversarial": terms["adversarial"],
        "content": 3.0 * normalized_root_mse_loss(target, found),
        "frequency": 0.7 * frequency_loss(target, found, config.frequency),
    }
    norms = {name: torch.autograd.grad(term, found, retain_graph=True)[0].norm() for name, term in weighted.items()}
    shares = report(target, found, config)
    for name, norm in norms.items():
        assert shares[f"share/{name}"] == pytest.approx(float(norm / sum(norms.values())), rel=1e-4)
    assert sum(shares[f"share/{name}"] for name in norms) == pytest.approx(1)
    assert shares["score/real"] == pytest.approx(float(score(target).mean()), rel=1e-5)
    assert shares["score/fake"] == pytest.approx(float(score(found).mean()), rel=1e-5)


def test_the_slope_is_that_of_each_image() -> None:
    target, found = images(0), images(1).requires_grad_()
    slopes = [torch.autograd.grad(score(image[None]).sum(), image)[0].norm() for image in found]
    assert report(target, found, LossConfig())["score/slope"] == pytest.approx(float(torch.stack(slopes).mean()))


def test_ranks_and_micro_batches_do_not_matter() -> None:
    target, found = images(0), images(1)
    assert report(target, found, LossConfig()) == pytest.approx(report(target, found, LossConfig(), parts=4))


def test_terms_without_weight_or_company_are_left_out() -> None:
    target, found = images(0), images(1)
    assert "share/frequency" not in report(target, found, LossConfig(b=0.0))
    alone = figures([measure(target, found, LossConfig(adversarial="none", b=0.0))])
    assert alone == {}, "one term has all of the gradient: no figure that cannot move"
    pair = figures([measure(target, found, LossConfig(adversarial="none"))])
    assert set(pair) == {"share/content", "share/frequency"}


def test_nothing_is_left_in_the_gradients_of_a_critic() -> None:
    critic = nn.Sequential(nn.Flatten(), nn.Linear(80, 1)).requires_grad_(False)
    target, found = images(0), images(1)
    measure(target, found, LossConfig(), [Judge(critic, critic(target))])
    assert all(parameter.grad is None for parameter in critic.parameters())


def test_a_silent_critic_is_told_once_with_the_remedy() -> None:
    silent = SilentCritic()
    rows = [{"step": step, "share/adversarial": 0.001} for step in range(10, 80, 10)]
    messages = [silent.add(row) for row in rows]
    told = [message for message in messages if message]
    assert len(told) == 1
    assert messages[2] == told[0], "after three reports in a row"
    assert "Raise critic.clip" in told[0]
    assert "0.10%" in told[0]


def test_each_silent_critic_is_told_by_its_name() -> None:
    silent = SilentCritic()
    row = {"share/adversarial": 0.3, "share/adversarial_residual": 0.001}
    told = [message for step in range(5) if (message := silent.add({"step": step, **row}))]
    assert len(told) == 1
    assert "The residual critic has 0.10%" in told[0]


def test_a_critic_with_a_say_is_not_told() -> None:
    silent = SilentCritic()
    for share in (0.001, 0.002, 0.3, 0.001, 0.004, 0.05):
        assert silent.add({"step": 1, "share/adversarial": share}) is None
    assert silent.add({"step": 2, "loss": 1.0}) is None, "a training without a critic"
