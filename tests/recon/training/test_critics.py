"""Several critics: what each sees, that each has a say, and that one without weight changes nothing."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from larmor.recon.physics.samples import Sample, prepare
from larmor.recon.recipe.recipe import Recipe
from larmor.recon.recipe.settings import LossConfig
from larmor.recon.training.balance import Judge, figures, measure
from larmor.recon.training.gan import Gan
from larmor.storage.loading.loader import Batch
from tests.helpers import random_kspace, small_recipe

CPU = torch.device("cpu")


def recipe(steps: int = 1, **loss: Any) -> Recipe:
    return small_recipe(
        loss=loss,
        critic={"width": 4, "steps": steps, "lipschitz": "gradient_penalty"},
        mask={"kind": "gaussian2d", "sampling_ratio": 0.3},
        training={"global_batch_size": 4, "gradient_accumulation": 2, "backend": "plain", "zero_stage": 0},
    )


def samples(found: Recipe, seed: int) -> list[Sample]:
    batches = [
        Batch.of(random_kspace(2, (1, 32, 32), 10 * seed + part), np.array([(seed, 0), (seed, 1)])) for part in range(2)
    ]
    return [prepare(batch, found.data.crop, found.mask, CPU, signal=found.signal) for batch in batches]


def trained(found: Recipe, steps: int = 3) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """The generator's and the first critic's weights, and all terms."""
    gan, rows = Gan(found, CPU), []
    for step in range(steps):
        gan.set_learning_rates(step)
        batch = samples(found, step)
        for terms in (*gan.train_critics(batch, step), *gan.train_generator(batch)):
            rows.append({name: float(value) for name, value in terms.items()})
    engines = (gan.engines["generator"], gan.engines["critic"])
    return {
        f"{place}.{name}": value for place, engine in enumerate(engines) for name, value in engine.state_dict().items()
    }, rows


def test_a_second_critic_without_weight_changes_no_bit() -> None:
    alone, rows = trained(recipe())
    beside, with_second = trained(recipe(residual_critic=0.0))
    assert all(torch.equal(alone[name], beside[name]) for name in alone)
    for ours, theirs in zip(rows, with_second, strict=True):
        assert {name: theirs[name] for name in ours} == ours
    assert any("critic_loss_residual" in row for row in with_second)


def test_a_second_critic_with_weight_changes_the_generator() -> None:
    alone, _ = trained(recipe())
    beside, rows = trained(recipe(residual_critic=1.0))
    assert any(not torch.equal(alone[name], beside[name]) for name in alone if name.startswith("0."))
    residual = [row["critic_loss_residual"] for row in rows if "critic_loss_residual" in row]
    assert len(set(residual)) == len(residual), "it learns"


@pytest.mark.parametrize("sees", ["image", "residual"])
def test_each_critic_alone_gives_the_generator_a_gradient(sees: str) -> None:
    found = recipe(critic_sees=sees, a=0.0, b=0.0)
    gan = Gan(found, CPU)
    before = gan.generator.state_dict()
    gan.set_learning_rates(0)
    for step in range(2):  # the map of an untrained generator is 0, at which a critic has no slope before it has learnt
        gan.train_critics(samples(found, step), step)
    gan.train_generator(samples(found, 0))
    after = gan.generator.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_the_second_critic_sees_what_is_added_to_the_zero_filled_image() -> None:
    found = recipe(residual_critic=1.0)
    gan, (sample, _) = Gan(found, CPU), samples(found, 0)
    first, second = gan.critics
    image = torch.rand_like(sample.target)
    assert torch.equal(first.view(sample)(image), image)
    assert torch.equal(first.real(sample), sample.target)
    assert torch.equal(second.view(sample)(image), image - sample.zero_filled)
    assert torch.equal(second.real(sample), sample.target - sample.zero_filled)
    assert list(gan.engines) == ["generator", "critic", "critic_residual"]
    draws = [critic.draw([sample], 3, 0)[0] for critic in gan.critics]
    assert not torch.equal(*draws), "a stream for each critic"


def score(gain: float, image: Tensor) -> Tensor:
    return gain * image.sum(dim=(1, 2, 3))[:, None]


def test_each_critic_has_its_share_and_scores() -> None:
    config = LossConfig(residual_critic=0.5, a=1.0, b=0.0)
    target, image = torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 8)
    judges = [Judge(partial(score, gain), torch.zeros(2, 1)) for gain in (1.0, 4.0)]
    found = figures([measure(target, image, config, judges)])
    assert found["share/adversarial_residual"] == pytest.approx(2 * found["share/adversarial"]), "0.5 × a slope of 4"
    assert found["score/slope_residual"] == pytest.approx(4 * found["score/slope"])
    assert found["score/fake_residual"] == pytest.approx(4 * found["score/fake"])
    assert sum(value for name, value in found.items() if name.startswith("share/")) == pytest.approx(1)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ({"adversarial": "none", "residual_critic": 1}, "adversarial=none"),
        ({"critic_sees": "measurement", "residual_critic": 1}, "critic_sees=measurement"),
        ({"critic_sees": "residual", "residual_critic": 1}, "critic_sees=residual"),
        ({"residual_critic": -1}, "greater than or equal to 0"),
    ],
)
def test_a_second_critic_that_fits_nothing_is_refused(loss: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        LossConfig.model_validate(loss)
