"""A recorded training step is the step itself."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from larmor.recon.engines.plain_engine import PlainEngine
from larmor.recon.physics.samples import Sample, prepare
from larmor.recon.recipe.mask_config import MaskConfig
from larmor.recon.recipe.recipe import Recipe
from larmor.recon.training import step_graph
from larmor.recon.training.gan import Gan
from larmor.storage.loading.loader import Batch
from larmor.storage.objects.errors import InputError
from tests.helpers import random_kspace

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is there")
SIZE = (64, 96)
STEPS = 8  # three as they are, the fourth recorded, four replayed


def recipe(system: str, **training: Any) -> Recipe:
    content = {
        "system": system,
        "data": {"crop": SIZE},
        "mask": {"kind": "gaussian2d", "sampling_ratio": 0.3},
        "generator": {"width": 8},
        "critic": {"width": 8, "steps": 1},
        "training": {
            "num_steps": STEPS,
            "global_batch_size": 4,
            "schedule": "cosine",
            "zero_stage": 0,
            "backend": "plain",
            **training,
        },
    }
    return Recipe.model_validate(content)


def samples(found: Recipe, step: int, device: torch.device) -> list[Sample]:
    parts, size = found.training.gradient_accumulation, found.micro_batch_size(1)
    batches = [
        Batch.of(random_kspace(size, (1, *SIZE), 10 * step + part), np.array([(step, n) for n in range(size)]))
        for part in range(parts)
    ]
    return [prepare(batch, found.data.crop, found.mask, device, signal=found.signal) for batch in batches]


def trained(found: Recipe, device: torch.device, steps: range, gan: Gan | None = None) -> tuple[Gan, list[float]]:
    gan, losses = gan or Gan(found, device), []
    for step in steps:
        gan.set_learning_rates(step)
        batch = samples(found, step, device)
        terms = [*gan.train_critics(batch, step), *gan.train_generator(batch)]
        losses += [float(value) for row in terms for value in row.values()]
    return gan, losses


@needs_cuda
class TestCuda:
    DEVICE = torch.device("cuda")

    @pytest.fixture(autouse=True)
    def _the_same_arithmetic(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)

    @pytest.mark.parametrize(
        ("system", "training"),
        [
            ("gan_resnet50", {}),
            ("gan_resnet50_modl", {"gradient_accumulation": 2, "ema_decay": 0.9}),
            ("dagan", {}),
            ("unet", {}),
            ("unsupervised_gan", {}),
            ("gan_resnet50_dc", {"dtype": "bfloat16"}),
            ("unsupervised_gan", {"dtype": "bfloat16"}),
        ],
    )
    def test_the_losses_are_those_of_the_steps_themselves(
        self, system: str, training: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With the same optimisers: those that can be recorded round differently, which a GAN enlarges."""
        wanted = recipe(system, cuda_graphs=True, **training)
        with monkeypatch.context() as patch:
            patch.setattr(step_graph, "_WARM_UP", STEPS)  # nothing is recorded
            _, unrecorded = trained(wanted, self.DEVICE, range(STEPS))
        gan, recorded = trained(wanted, self.DEVICE, range(STEPS))
        np.testing.assert_allclose(recorded, unrecorded, rtol=1e-3, atol=1e-3)
        assert len(set(recorded)) > STEPS, "each step has a loss of its own"
        assert isinstance(gan.generator, PlainEngine)

    def test_a_checkpoint_of_one_kind_serves_the_other(self, tmp_path: Path) -> None:
        plain, recorded = recipe("gan_resnet50"), recipe("gan_resnet50", cuda_graphs=True)
        _, whole = trained(plain, self.DEVICE, range(STEPS))
        for number, (first, second) in enumerate([(recorded, plain), (plain, recorded), (recorded, recorded)]):
            gan, before = trained(first, self.DEVICE, range(6))
            for name, engine in gan.engines.items():
                engine.save(tmp_path / str(number) / name)
            resumed = Gan(second, self.DEVICE)
            for name, engine in resumed.engines.items():
                engine.load(tmp_path / str(number) / name)
            _, after = trained(second, self.DEVICE, range(6, STEPS), resumed)
            np.testing.assert_allclose([*before, *after], whole, rtol=2e-3, atol=2e-3)

    def test_what_cannot_be_recorded_is_refused(self) -> None:
        with pytest.raises(InputError, match=r"cuda_graphs=true: this training cannot be recorded .* set it to false"):
            trained(recipe("unet_dssim", cuda_graphs=True), self.DEVICE, range(STEPS))


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_deepspeed_gives_all_tensors_back(zero_stage: int) -> None:
    """Of a training in the same process, as in a sweep."""

    def held() -> int:
        gc.collect()
        tensors = (item for item in gc.get_objects() if issubclass(type(item), torch.Tensor))
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    before = held()
    deepspeed = recipe("gan_resnet50", backend="deepspeed", zero_stage=zero_stage)
    gan, _ = trained(deepspeed, torch.device("cpu"), range(2))
    assert held() > before + 2**20
    gan.close()
    del gan
    assert held() < before + 2**16


def test_memory_is_given_back_without_the_garbage_collector() -> None:
    """A process trains again and again in a sweep, and large tensors do not make the collector run."""
    gan, _ = trained(recipe("gan_resnet50"), torch.device("cpu"), range(1))
    known = weakref.ref(gan)
    gc.disable()
    try:
        gan.close()
        del gan
        assert known() is None
    finally:
        gc.enable()


def sample_of(coils: int, with_maps: bool = False, size: int = 2) -> Sample:
    kspace = random_kspace(size, (coils, *SIZE))
    sample = prepare(Batch.of(kspace, np.array([(0, n) for n in range(size)])), SIZE, MaskConfig(), torch.device("cpu"))
    kspace_of_coils = torch.from_numpy(kspace)
    return dataclasses.replace(sample, kspace=kspace_of_coils, maps=kspace_of_coils if with_maps else None)


def test_inputs_replace_those_that_were_recorded() -> None:
    recorded, given = sample_of(3, with_maps=True), sample_of(3, with_maps=True)
    given.kspace.mul_(2)
    step_graph.copy_inputs([recorded], [given])
    assert torch.equal(recorded.kspace, given.kspace)


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (sample_of(1), "kspace is 2×1×64×96"),  # which would be copied over all coils
        (sample_of(4), "kspace is 2×4×64×96"),
        (sample_of(3, size=1), "target is 1×1×64×96"),
        (sample_of(3, with_maps=True), "maps"),
    ],
)
def test_a_batch_of_another_shape_is_refused(given: Sample, what: str) -> None:
    recorded = sample_of(3)
    before = recorded.kspace.clone()
    with pytest.raises(InputError, match=f"{what}.*training.cuda_graphs=false"):
        step_graph.copy_inputs([recorded], [given])
    assert torch.equal(recorded.kspace, before)


def test_on_the_cpu_it_makes_no_difference() -> None:
    _, plain = trained(recipe("gan_resnet50"), torch.device("cpu"), range(2))
    _, same = trained(recipe("gan_resnet50", cuda_graphs=True), torch.device("cpu"), range(2))
    assert plain == same


@pytest.mark.parametrize("changes", [{"backend": "deepspeed", "zero_stage": 1}, {"backend": "auto"}, {"compile": True}])
def test_what_records_nothing_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"cuda_graphs .* training\.backend=plain"):
        recipe("gan_resnet50", cuda_graphs=True, **changes)


def test_several_workers_are_refused() -> None:
    with pytest.raises(InputError, match="there are 2"):
        Gan(recipe("gan_resnet50", cuda_graphs=True), torch.device("cuda"), world_size=2)
