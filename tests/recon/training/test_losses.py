"""Each equation of the paper against its own formula."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from larmor.recon.training.losses import (
    LossConfig,
    adversarial_loss,
    complex_l1_loss,
    critic_loss,
    frequency_loss,
    generator_loss,
    normalized_root_mse_loss,
)

REAL, FAKE = torch.tensor([[2.0], [-1.0], [0.5]]), torch.tensor([[-3.0], [4.0], [0.25]])


def images(seed: int, scale: tuple[float, ...] = (1.0, 20.0)) -> Tensor:
    """(batch, 1, 9, 12), each of its own brightness."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(len(scale), 1, 9, 12, generator=generator) * torch.tensor(scale).view(-1, 1, 1, 1)


def sigmoid(scores: Tensor) -> np.ndarray:
    return 1 / (1 + np.exp(-scores.double().numpy()))


def test_eq_7_is_the_mean_of_each_images_relative_error() -> None:
    target, found = images(0), images(1)
    errors = [np.linalg.norm((t - f).ravel()) / np.linalg.norm(t.ravel()) for t, f in zip(target, found, strict=True)]
    assert float(normalized_root_mse_loss(target, found)) == pytest.approx(np.mean(errors), rel=1e-5)


def test_eq_7_by_hand() -> None:
    target = torch.tensor([[[[3.0, 4.0]]], [[[0.0, 10.0]]]])
    found = torch.tensor([[[[3.0, 5.0]]], [[[3.0, 6.0]]]])
    assert float(normalized_root_mse_loss(target, found)) == pytest.approx((1 / 5 + 5 / 10) / 2)
    assert float(normalized_root_mse_loss(target, target)) == 0


def test_an_empty_target_gives_a_finite_loss() -> None:
    assert torch.isfinite(normalized_root_mse_loss(torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)))


def test_eq_8_of_magnitudes() -> None:
    target, found = images(0), images(1)
    spectra = [np.abs(np.fft.fft2(values.numpy(), norm="ortho")) for values in (target, found)]
    expected = np.mean(np.sum((spectra[0] - spectra[1]) ** 2, axis=(1, 2, 3)))
    assert float(frequency_loss(target, found, "magnitude")) == pytest.approx(expected, rel=1e-4)


def test_eq_8_is_dagans_mean_over_an_unnormalised_transform() -> None:
    target, found = images(0), images(1)
    spectra = [np.abs(np.fft.fft2(values.numpy())) for values in (target, found)]
    expected = np.mean((spectra[0] - spectra[1]) ** 2)
    assert float(frequency_loss(target, found, "magnitude")) == pytest.approx(expected, rel=1e-4)


def test_eq_8_of_complex_spectra_is_the_squared_error_of_the_images() -> None:
    target, found = images(0), images(1)
    expected = np.mean(np.sum((target.numpy() - found.numpy()) ** 2, axis=(1, 2, 3)))
    assert float(frequency_loss(target, found, "complex")) == pytest.approx(expected, rel=1e-5)


def test_only_the_complex_form_sees_a_shift() -> None:
    target = images(0, (1.0,))
    moved = target.roll(3, dims=-1)
    assert float(frequency_loss(target, moved, "magnitude")) == pytest.approx(0, abs=1e-9)
    assert float(frequency_loss(target, moved, "complex")) > 0.01


def test_complex_l1_is_the_mean_modulus_and_has_a_slope_where_nothing_is_wrong() -> None:
    target, found = (torch.cat([images(seed), images(seed + 2)], dim=1).requires_grad_() for seed in (0, 1))
    error = (target - found).detach().numpy()
    expected = np.abs(error[:, :1] + 1j * error[:, 1:]).mean()
    assert float(complex_l1_loss(target, found).detach()) == pytest.approx(expected, rel=1e-5)
    complex_l1_loss(target, target.detach()).backward()
    assert target.grad is not None
    assert torch.isfinite(target.grad).all()


def test_eqs_5_and_6() -> None:
    assert float(critic_loss(REAL, FAKE, "wasserstein")) == pytest.approx((-3 + 4 + 0.25) / 3 - (2 - 1 + 0.5) / 3)
    assert float(adversarial_loss(FAKE, "wasserstein")) == pytest.approx(-(-3 + 4 + 0.25) / 3)


def test_eq_2_from_logits() -> None:
    expected = -np.log(sigmoid(REAL)).mean() - np.log(1 - sigmoid(FAKE)).mean()
    assert float(critic_loss(REAL, FAKE, "bce")) == pytest.approx(expected, rel=1e-5)
    assert float(adversarial_loss(FAKE, "bce")) == pytest.approx(-np.log(sigmoid(FAKE)).mean(), rel=1e-5)


def test_eq_2_stays_finite_for_large_scores() -> None:
    far = torch.tensor([[1e4]])
    assert float(critic_loss(-far, far, "bce")) == pytest.approx(2e4)
    assert float(adversarial_loss(-far, "bce")) == pytest.approx(1e4)


@pytest.mark.parametrize("kind", ["wasserstein", "bce"])
def test_critic_and_generator_pull_the_scores_apart(kind: str) -> None:
    real, fake = REAL.clone().requires_grad_(), FAKE.clone().requires_grad_()
    critic_loss(real, fake, kind).backward()
    assert real.grad is not None
    assert fake.grad is not None
    assert (real.grad < 0).all(), "the critic raises the scores of real images"
    assert (fake.grad > 0).all(), "and lowers those of reconstructions"
    fake.grad.zero_()
    adversarial_loss(fake, kind).backward()
    assert (fake.grad < 0).all(), "the generator raises them"


@pytest.mark.parametrize("adversarial", ["wasserstein", "bce"])
@pytest.mark.parametrize("frequency", ["magnitude", "complex"])
def test_eq_9_adds_the_weighted_terms(adversarial: Any, frequency: Any) -> None:
    target, found, scores = images(0), images(1), FAKE[:2]
    config = LossConfig(adversarial=adversarial, frequency=frequency, a=3.0, b=0.7)
    terms = generator_loss(target, found, [scores], config)
    assert terms["adversarial"] == adversarial_loss(scores, adversarial)
    assert terms["normalized_root_mse"] == normalized_root_mse_loss(target, found)
    assert terms["frequency"] == frequency_loss(target, found, frequency)
    expected = terms["adversarial"] + 3.0 * terms["normalized_root_mse"] + 0.7 * terms["frequency"]
    torch.testing.assert_close(terms["loss"], expected)


@pytest.mark.parametrize("frequency", ["magnitude", "complex"])
def test_every_term_has_a_gradient_that_lowers_it(frequency: str) -> None:
    target, found = images(0, (1.0, 2.0)), images(1, (1.0, 2.0)).requires_grad_()
    for loss in (normalized_root_mse_loss, lambda t, f: frequency_loss(t, f, frequency)):
        before = loss(target, found)
        (gradient,) = torch.autograd.grad(before, found)
        assert torch.isfinite(gradient).all()
        step = 1e-3 / gradient.norm()
        assert loss(target, found - step * gradient) < before


def test_a_perfect_reconstruction_has_finite_gradients() -> None:
    found = images(0).requires_grad_()
    terms = generator_loss(images(0), found, [found.mean(dim=(1, 2, 3))[:, None]], LossConfig())
    terms["loss"].backward()
    assert found.grad is not None
    assert torch.isfinite(found.grad).all()
