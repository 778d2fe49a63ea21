"""What holds a critic's slope: exact for critics whose slope is known."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from larmor.recon.networks.lipschitz import apply_spectral_norm, draw_shares, gradient_penalty, interpolate
from larmor.recon.networks.networks import build_critic
from larmor.recon.recipe.settings import CriticConfig
from tests.helpers import property_test, random_images


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class TestGradientPenalty:
    @property_test
    @given(seed=st.integers(0, 2**31), scale=st.floats(0.01, 100))
    def test_a_linear_critics_is_its_norm_minus_one_squared(self, seed: int, scale: float) -> None:
        weight = torch.randn(1, 2, 3, 4, dtype=torch.float64, generator=seeded(seed)) * scale
        weight.requires_grad_()
        points = torch.randn(5, 2, 3, 4, dtype=torch.float64, generator=seeded(seed + 1), requires_grad=True)
        penalty = gradient_penalty((weight * points).sum(dim=(1, 2, 3))[:, None] + 7, points)
        norm = torch.linalg.vector_norm(weight.detach())
        torch.testing.assert_close(penalty.detach(), (norm - 1) ** 2)
        (slope,) = torch.autograd.grad(penalty, weight)
        torch.testing.assert_close(slope, 2 * (norm - 1) * weight.detach() / norm, msg="it trains the critic")

    def test_each_image_has_a_slope_of_its_own(self) -> None:
        """D(x) = ‖x‖²/2, whose slope is x."""
        points = random_images(3, 4, 5) * torch.tensor([0.1, 1.0, 5.0]).view(3, 1, 1, 1)
        points.requires_grad_()
        penalty = gradient_penalty(points.square().sum(dim=(1, 2, 3))[:, None] / 2, points)
        norms = torch.linalg.vector_norm(points.detach(), dim=(1, 2, 3))
        torch.testing.assert_close(penalty.detach(), (norms - 1).square().mean())

    @pytest.mark.parametrize("name", ["resnet50", "dagan"])
    def test_it_reaches_the_weights_of_a_critic(self, name: str) -> None:
        torch.manual_seed(0)
        critic = build_critic(CriticConfig.model_validate({"name": name, "width": 4}))
        points = interpolate(random_images(2, 32, 64), torch.zeros(2, 1, 32, 64), draw_shares(2, seeded()))
        gradient_penalty(critic(points), points).backward()
        assert all(torch.isfinite(value.grad).all() for value in critic.parameters() if value.grad is not None)
        layers = (layer for layer in critic.modules() if isinstance(layer, nn.Conv2d | nn.Linear))
        assert all(layer.weight.grad is not None and layer.weight.grad.any() for layer in layers)


class TestInterpolate:
    def test_points_lie_on_the_line_between_real_and_fake(self) -> None:
        real, fake = random_images(4, 3, 5), random_images(4, 3, 5) + 2
        points = interpolate(real, fake, draw_shares(4, seeded()))
        share = (fake - points.detach()) / (fake - real)
        assert ((share > 0) & (share < 1)).all()
        torch.testing.assert_close(share, share[:, :, :1, :1].expand_as(share), rtol=0, atol=1e-5)
        assert len(set(share[:, 0, 0, 0].tolist())) == 4, "each image has a share of its own"

    def test_they_are_leaves_that_want_gradients(self) -> None:
        fake = random_images(2, 3, 5).requires_grad_()
        points = interpolate(torch.zeros(2, 1, 3, 5), fake * 2, draw_shares(2, seeded()))
        assert points.is_leaf
        assert points.requires_grad

    def test_the_generator_alone_decides(self) -> None:
        torch.manual_seed(1)
        first = draw_shares(2, seeded(3))
        torch.manual_seed(2)
        assert torch.equal(draw_shares(2, seeded(3)), first)
        assert not torch.equal(draw_shares(2, seeded(4)), first)


class TestSpectralNorm:
    def test_a_dense_layer_is_divided_by_its_largest_singular_value(self) -> None:
        weight = torch.diag(torch.tensor([5.0, 2.0, 0.5]))
        layer = nn.Linear(3, 3, bias=False)
        layer.weight.data.copy_(weight)
        assert apply_spectral_norm(layer) is layer
        for _ in range(20):
            result = layer(torch.eye(3))
        torch.testing.assert_close(result.detach(), weight / 5)

    @pytest.mark.parametrize("name", ["resnet50", "dagan"])
    def test_every_layer_of_a_critic_gets_norm_one(self, name: str) -> None:
        torch.manual_seed(0)
        config = {"name": name, "width": 4, "lipschitz": "spectral_norm"}
        critic = build_critic(CriticConfig.model_validate(config))
        with torch.no_grad():
            for _ in range(30):
                critic(random_images(1, 32, 64))
        critic.eval()
        layers = [layer for layer in critic.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
        assert len(layers) == (54 if name == "resnet50" else 12)
        norms = [torch.linalg.matrix_norm(layer.weight.detach().flatten(1), ord=2) for layer in layers]
        torch.testing.assert_close(torch.stack(norms), torch.ones(len(norms)), rtol=0, atol=0.05)

    def test_it_can_still_be_trained(self) -> None:
        torch.manual_seed(0)
        critic = build_critic(CriticConfig(width=4, lipschitz="spectral_norm"))
        critic(random_images(2, 32, 64)).square().mean().backward()
        assert [name for name, value in critic.named_parameters() if value.grad is None] == []
