"""The cascaded ConvLSTM: causal, in the order of time, and each series by itself."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from larmor.recon.networks.conv_lstm import ConvLstm, ConvLstmStage
from larmor.recon.networks.data_consistency import ConsistentGenerator, Measured
from larmor.recon.networks.networks import build_generator
from larmor.recon.physics.fourier import fft2c, ifft2c
from larmor.recon.physics.views import shared_views
from larmor.recon.recipe.recipe import Recipe
from larmor.recon.recipe.settings import GeneratorConfig
from tests.helpers import random_images

STACK = 4


def make_stage(stack: int = STACK, width: int = 4) -> ConvLstmStage:
    torch.manual_seed(0)
    stage = ConvLstmStage(width, 1, stack).double()
    nn.init.normal_(stage.last.weight, std=0.1)
    return stage


def make_generator(method: str = "none", trained: bool = True, **settings: Any) -> ConsistentGenerator:
    content = {"name": "conv_lstm", "width": 4, "cascades": 2, "data_consistency": "hard", "start": {"method": method}}
    torch.manual_seed(0)
    generator = build_generator(GeneratorConfig.model_validate({**content, **settings}), 1, STACK)
    for name, parameter in generator.named_parameters():
        if trained and name.endswith("last.weight"):
            nn.init.normal_(parameter, std=0.1)
    return cast(ConsistentGenerator, generator)


def measured(num_stacks: int = 1, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Zero-filled images, k-space and a mask for each of the frames."""
    rng = torch.Generator().manual_seed(seed)
    image = torch.rand(num_stacks * STACK, 1, 12, 10, generator=rng)
    mask = (torch.rand(num_stacks * STACK, 1, 1, 10, generator=rng) < 0.4).expand(-1, -1, 12, -1)
    kspace = fft2c(image) * mask
    return ifft2c(kspace).abs(), kspace, mask


def test_a_frame_answers_to_those_before_it_and_to_none_after() -> None:
    """Usable while the scan goes on."""
    stage, frames = make_stage(), random_images(STACK, 9, 11).double().requires_grad_()
    for frame in range(STACK):
        (gradient,) = torch.autograd.grad(stage(frames)[frame].sum(), frames)
        answers = gradient.abs().amax(dim=(1, 2, 3)) > 0
        assert answers.tolist() == [other <= frame for other in range(STACK)]


def test_the_order_of_the_frames_matters() -> None:
    stage, frames = make_stage(), random_images(STACK, 9, 11).double()
    order = [2, 0, 3, 1]
    with torch.no_grad():
        assert (stage(frames[order]) - stage(frames)[order]).abs().max() > 1e-3


def test_one_frame_is_no_series_but_works() -> None:
    with torch.no_grad():
        image = random_images(3, 9, 11).double()
        assert make_stage(stack=1)(image).shape == image.shape


@torch.no_grad()
def test_series_do_not_depend_on_each_other() -> None:
    stage, frames = make_stage(), random_images(3 * STACK, 9, 11).double()
    alone = torch.cat([stage(part) for part in frames.split(STACK)])
    torch.testing.assert_close(stage(frames), alone)


@torch.no_grad()
def test_a_state_is_kept_at_first() -> None:
    """The forget gate starts open: what the first frame shows is still there after several dark ones."""
    layer = ConvLstm(1, 4)
    frames = torch.zeros(1, STACK, 1, 6, 6)
    frames[:, 0] = 1
    shown = layer(frames) - layer(torch.zeros_like(frames))
    assert shown[:, -1].abs().mean() > 0.1 * shown[:, 0].abs().mean()


def test_parameters_at_full_width() -> None:
    recipe = Recipe.model_validate({"system": "conv_lstm"})
    assert recipe.data.stack == 8
    generator = build_generator(recipe.generator, 1, recipe.data.stack)
    assert sum(parameter.numel() for parameter in generator.parameters()) == 336_867


def test_every_parameter_gets_a_gradient() -> None:
    generator = make_generator()
    generator(*measured()).square().mean().backward()
    missing = [name for name, value in generator.named_parameters() if value.grad is None or not value.grad.any()]
    assert missing == []


@torch.no_grad()
@pytest.mark.parametrize("method", ["view_sharing", "causal_view_sharing"])
def test_an_untrained_one_returns_its_shared_views(method: str) -> None:
    inputs = measured(2)
    generator = make_generator(method, trained=False)
    _, kspace, mask = inputs
    expected = Measured(kspace, mask, None, 1).views(
        lambda points, known: shared_views(points, known, STACK, method == "causal_view_sharing")
    )
    torch.testing.assert_close(generator(*inputs), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(generator.start(*inputs), expected)


@torch.no_grad()
@pytest.mark.parametrize("method", ["none", "causal_view_sharing"])
def test_with_a_causal_start_the_whole_is_causal(method: str) -> None:
    generator, (image, kspace, mask) = make_generator(method), measured()
    others = measured(seed=1)
    for frame in range(STACK - 1):
        later = torch.arange(STACK).view(-1, 1, 1, 1) > frame
        changed = [torch.where(later, other, own) for own, other in zip((image, kspace, mask), others, strict=True)]
        result, before = generator(*changed), generator(image, kspace, mask)
        torch.testing.assert_close(result[: frame + 1], before[: frame + 1])
        assert (result[frame + 1 :] - before[frame + 1 :]).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("method", ["none", "view_sharing"])
def test_measured_points_are_kept_frame_by_frame(method: str) -> None:
    image, kspace, mask = measured()
    found = fft2c(make_generator(method)(image, kspace, mask))
    torch.testing.assert_close(found * mask, kspace, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"stack": 1}}, r"generator.name=conv_lstm joins the frames of a stack, and data.stack=1 .*=8"),
        (
            {"system": "unet", "generator": {"start": {"method": "view_sharing"}}},
            r"generator.start.method=view_sharing takes what an image lacks from others of its stack.*=8",
        ),
    ],
)
def test_a_single_frame_is_refused(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Recipe.model_validate({"system": "conv_lstm", **sections})
