"""A training step never makes the host wait for the device.

Tensors without content (`meta`) stand for those of a GPU: whatever needs a value on the host (`item`, `nonzero`, an
index by a mask, a shape that depends on data) raises an error there. Copies to the device are recorded, and none of
them may be one that the host waits for. Values that PyTorch itself fetches below an operator (`masked_fill_` by a
tensor) do not show here; no code of Larmor has such.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode  # from where PyTorch's "Extending PyTorch" takes it

from larmor.recon.networks import trunk
from larmor.recon.physics.augment import changes
from larmor.recon.physics.samples import Sample, prepare
from larmor.recon.physics.transfer import HostCopy, constant, sent
from larmor.recon.recipe.recipe import Recipe
from larmor.recon.recipe.systems import merged
from larmor.recon.training.gan import Gan
from larmor.recon.training.losses import dssim_loss
from larmor.recon.training.starts import Starts
from larmor.storage.loading.loader import Batch
from tests.helpers import random_kspace

META = torch.device("meta")
SIZE = (64, 64)
BASE: dict[str, Any] = {
    "data": {"crop": SIZE},
    "generator": {"width": 4},
    "critic": {"width": 4, "steps": 1},
    "training": {
        "num_steps": 8,
        "global_batch_size": 4,
        "ema_decay": 0.99,
        "backend": "plain",
        "zero_stage": 0,
    },
}
RECIPES: dict[str, dict[str, Any]] = {
    "gan_resnet50": {
        "generator": {"subbands": "wavelet"},
        "generator_optimizer": {"name": "adam", "learning_rate": 1e-3, "clip_gradient_norm": 1.0},
    },
    "larmor": {"system": "larmor", "mask": {"per_slice": True}, "generator": {"start": {"iterations": 2}}},
    "a sample of its own": {
        "system": "larmor",
        "generator": {"start": {"method": "none"}},
        "loss": {"adversarial": "none"},
        "mask": {"sampling_ratio": {"min": 0.1, "max": 0.5}},
        "augment": {"flip": 0.5, "rotation": 5},
        "signal": {"noise": (0, 0.1)},
    },
    "slopes": {"system": "dagan", "critic": {"lipschitz": "gradient_penalty"}},
    "unet_dssim": {"system": "unet_dssim"},
    "idpcnn": {"system": "idpcnn"},
    "deepcomplexmri": {"system": "deepcomplexmri", "generator": {"cascades": 1}},
}


SLOW: dict[str, dict[str, Any]] = {
    "spectral norm": {"system": "dagan", "critic": {"lipschitz": "spectral_norm"}},
    "augmentation by MONAI": {
        **RECIPES["a sample of its own"],
        "augment": {"flip": 0.5, "elastic": 0.01, "contrast": 0.1, "bias": 0.1},
    },
}


def recipe(**sections: Any) -> Recipe:
    return Recipe.model_validate(merged(BASE, sections))


class _Dispatched(TorchDispatchMode):
    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__()
        self._note = note

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func is torch.ops.aten._to_copy.default and _crosses(args[0], result) and not kwargs.get("non_blocking"):
            self._note("copy")
        if func is torch.ops.aten.copy_.default and _crosses(args[1], args[0]) and not any(args[2:]):
            self._note("copy")
        return result


class _Called(TorchFunctionMode):
    """Tensors made of numbers: they never reach the dispatcher as copies."""

    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__()
        self._note = note

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor) and result.device == META:
            self._note("tensor of numbers")
        return result


def _crosses(source: torch.Tensor, target: torch.Tensor) -> bool:
    return source.device.type == "cpu" and target.device == META


def waits_of(step: Callable[[], object]) -> list[str]:
    """What `step` does that the host has to wait for, and where."""
    found: list[str] = []

    def note(what: str) -> None:
        frames = [frame for frame in traceback.extract_stack() if "recon/" in frame.filename]
        found.append(f"{what} at {frames[-1].filename}:{frames[-1].lineno}" if frames else what)

    with _Called(note), _Dispatched(note):
        step()
    return found


def samples(found: Recipe, step: int, device: torch.device) -> list[Sample]:
    """The micro-batches of a step, as the training loop makes them."""
    move, recolour = changes(found.augment, found.seed)
    size, coils = found.micro_batch_size(1) * found.data.stack, found.signal.kspace_coils
    batch = Batch.of(random_kspace(size, (coils, *SIZE), step), np.array([(step, number) for number in range(size)]))
    return [
        prepare(batch, found.data.crop, found.mask, device, move, found.signal, found.data.stack, recolour)
        for _ in range(found.training.gradient_accumulation)
    ]


@pytest.mark.parametrize("name", [*RECIPES, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_a_step_waits_for_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trunk, "BLOCKS", (1, 1, 1, 1))  # all kinds of layers, and a quarter of them
    found = recipe(**{**RECIPES, **SLOW}[name])
    gan = Gan(found, META)
    starts = Starts(gan.whole, found, name)

    def step(number: int) -> None:
        gan.set_learning_rates(number)
        batches = [starts.add(sample) for sample in samples(found, number, META)]
        gan.train_critics(batches, number)
        terms = gan.train_generator(batches)
        assert all(term.device == META for row in terms for term in row.values()), "loss terms stay on the device"

    step(0)  # what is made once is made
    assert waits_of(lambda: step(1)) == []


@pytest.mark.parametrize(
    "step",
    [
        lambda: torch.ones(3).to(META),
        lambda: torch.zeros(3, device=META).copy_(torch.ones(3)),
        lambda: torch.tensor([1.0, 2.0], device=META),
        lambda: torch.zeros(3, device=META).new_tensor([1.0]),
    ],
)
def test_a_copy_that_is_waited_for_is_found(step: Callable[[], object]) -> None:
    assert len(waits_of(step)) == 1


@pytest.mark.parametrize(
    "step",
    [lambda x: x.sum().item(), lambda x: x.nonzero(), lambda x: x[x > 0], lambda x: x.cpu(), lambda x: bool(x[0])],
)
def test_a_value_that_the_host_needs_is_an_error(step: Callable[[torch.Tensor], object]) -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        step(torch.zeros(3, device=META))


def test_kept_starts_reach_the_device_in_one_copy() -> None:
    found = recipe(system="larmor")
    cpu, generator = torch.device("cpu"), Gan(found, torch.device("cpu")).whole
    for sample in samples(found, 0, cpu):
        made = Starts(generator, found, "kept").add(sample).start
    starts = Starts(generator, found, "kept")
    copies: list[str] = []

    def add() -> None:
        copies.extend(waits_of(lambda: starts.add(samples(found, 1, META)[0])))

    add()
    assert copies == []
    again = starts.add(samples(found, 0, cpu)[0]).start
    assert made is not None
    assert again is not None
    assert torch.equal(made, again)


def test_a_transfer_changes_nothing() -> None:
    image = torch.randn(3, 4)
    cpu = torch.device("cpu")
    assert torch.equal(sent(image, cpu), image)
    copy = HostCopy(image)
    held = copy.result.clone()
    image += 1
    assert torch.equal(copy.result, held)
    with torch.inference_mode():
        numbers = constant((1.5, 2.5), image)
    assert torch.equal(numbers, torch.tensor([1.5, 2.5]))
    weight = torch.ones(2, requires_grad=True)
    (weight * numbers).sum().backward()
    assert weight.grad is not None


def test_the_loss_by_similarity_is_that_of_monai_bit_for_bit() -> None:
    from monai.losses.ssim_loss import SSIMLoss

    target = torch.rand(2, 1, 33, 40)
    ours, theirs = (target.clone().mul_(0.9).requires_grad_() for _ in range(2))
    found, wanted = dssim_loss(target, ours), SSIMLoss(spatial_dims=2, data_range=1.0)(theirs, target) / 2
    found.backward()
    wanted.backward()
    assert torch.equal(found, wanted)
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.equal(ours.grad, theirs.grad)
