"""Runtimes agree with the trained network, and the choice among them is a rule."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from larmor.recon.inference.inference import Physics
from larmor.recon.models import runtimes
from larmor.recon.models.model import Model
from larmor.recon.models.runtimes import TOLERANCE, Trial, check_runtime, fastest, measure, with_runtime
from larmor.recon.networks.networks import build_generator
from larmor.recon.physics.fourier import fft2c, ifft2c
from larmor.recon.recipe.recipe import Recipe
from larmor.storage.objects.errors import InputError
from tests.recon.networks.test_classical_start import a_mask, heads

SIZE = (64, 96)


def a_model(**generator: object) -> Model:
    content = {"system": "larmor", "data": {"url": "unused", "crop": SIZE}, "generator": {"width": 8, **generator}}
    recipe = Recipe.model_validate(content)
    torch.manual_seed(0)
    network = build_generator(recipe.generator, recipe.signal.channels).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return Model(network, Physics(SIZE, recipe.mask, recipe.signal), recipe, {}, Path("model"))


def image_of(model: Model) -> torch.Tensor:
    kspace = fft2c(heads(SIZE)) * a_mask(SIZE)
    with torch.inference_mode():
        found: torch.Tensor = model.generator(ifft2c(kspace).abs(), kspace, a_mask(SIZE))
    return found


@pytest.mark.parametrize("name", ["channels_last", "bfloat16"])
@pytest.mark.parametrize("start", ["none", "split_bregman"])
def test_a_runtime_agrees_with_the_trained_network(name: str, start: str) -> None:
    model = a_model(start={"method": start, "iterations": 4}, cascades=2)
    expected = image_of(model)
    found = image_of(with_runtime(model, name))
    assert found.dtype == torch.float32
    assert float((found - expected).square().mean().sqrt()) < TOLERANCE
    assert torch.equal(image_of(model), expected), "the model itself stays as it is"
    assert with_runtime(model, "eager") is model


def test_every_runtime_is_measured() -> None:
    trials = measure(a_model(start={"method": "none"}).generator, SIZE, 1)
    assert set(trials) == {"eager", "channels_last", "bfloat16"}
    assert trials["eager"].difference == 0
    assert all(trial.seconds > 0 for trial in trials.values())


@pytest.mark.parametrize(
    ("trials", "expected"),
    [
        ({"eager": (0.050, 0), "channels_last": (0.030, 1e-7), "bfloat16": (0.010, 3e-4)}, "bfloat16"),
        ({"eager": (0.050, 0), "channels_last": (0.030, 1e-7), "bfloat16": (0.010, 6e-4)}, "channels_last"),
        ({"eager": (0.050, 0), "channels_last": (0.049, 0), "bfloat16": (0.120, 3e-4)}, "eager"),
        ({"eager": (0.003, 0), "channels_last": (0.002, 0)}, "eager"),
        ({"eager": (0.050, 0), "bfloat16": (0.010, float("nan"))}, "eager"),
        ({"eager": (0.050, 0)}, "eager"),
    ],
)
def test_the_fastest_that_agrees_is_chosen(trials: dict[str, tuple[float, float]], expected: str) -> None:
    assert fastest({name: Trial(*values) for name, values in trials.items()}) == expected


def test_the_choice_is_remembered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LARMOR_HOME", str(tmp_path))
    calls: list[object] = []

    def slow_eager(*_: object) -> dict[str, Trial]:
        calls.append(None)
        return {"eager": Trial(1.0, 0), "channels_last": Trial(0.1, 0)}

    monkeypatch.setattr(runtimes, "measure", slow_eager)
    model = a_model()
    for _ in range(2):
        assert with_runtime(model, "auto").generator is not model.generator
    assert len(calls) == 1
    (file,) = tmp_path.glob("runtimes/*.json")
    file.write_text("damaged")
    with_runtime(model, "auto")
    assert len(calls) == 2, "measured again"


def test_networks_that_need_more_than_an_image_stay_as_they_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LARMOR_HOME", str(tmp_path))
    recipe = Recipe.model_validate({"system": "idpcnn", "data": {"url": "unused", "crop": SIZE}})
    network = build_generator(recipe.generator)
    model = Model(network, Physics(SIZE, recipe.mask, recipe.signal), recipe, {}, Path("model"))
    assert with_runtime(model, "auto") is model


def test_an_unknown_runtime_is_refused() -> None:
    with pytest.raises(InputError, match=r"--runtime fast: choose one of auto, eager, channels_last, bfloat16"):
        check_runtime("fast")
