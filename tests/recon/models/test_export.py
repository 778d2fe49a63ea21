"""Exported programs compute what the model computes, or there is no file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from larmor.recon.inference.inference import Physics
from larmor.recon.models import export
from larmor.recon.models.export import ExportConfig, export_model
from larmor.recon.models.model import Model
from larmor.recon.models.portable import centred_dft
from larmor.recon.networks.idpcnn import IdpGenerator
from larmor.recon.networks.networks import build_generator
from larmor.recon.physics.fourier import fft2c, ifft2c
from larmor.recon.physics.masks import make_mask
from larmor.recon.recipe.mask_config import MaskConfig
from larmor.storage.objects.errors import InputError
from tests.helpers import small_recipe

UNET = {"name": "unet", "width": 4}
HARD = {"generator": {**UNET, "data_consistency": "hard"}}
SENSE = {"signal": {"mode": "complex"}, "generator": {**UNET, "data_consistency": "soft"}}

ALL_COILS = {
    "system": "deepcomplexmri",
    "signal": {"num_coils": 3},
    "generator": {"name": "deepcomplex", "width": 4, "cascades": 2},
}


def make_model(**sections: Any) -> Model:
    recipe = small_recipe(**{"generator": UNET, **sections})
    torch.manual_seed(0)
    generator = build_generator(recipe.generator, recipe.signal.channels, recipe.data.stack).eval()
    for parameter in generator.parameters():
        if not parameter.any():  # of an untrained last layer
            torch.nn.init.normal_(parameter, std=0.05)
    if isinstance(generator, IdpGenerator):
        # what a denoiser of large random weights is given grows a hundredfold in each turn, and rounding errors with it
        for parameter in list(generator.denoiser.parameters())[-2:]:
            parameter.data *= 0.1
    physics = Physics(recipe.data.crop, recipe.mask, recipe.signal, recipe.data.stack)
    return Model(generator, physics, recipe, {"step": 7}, Path("model"))


@pytest.mark.parametrize("size", [(8, 8), (7, 12), (33, 20), (256, 5)])
@pytest.mark.parametrize("inverse", [False, True])
def test_the_real_transform_is_the_complex_one(size: tuple[int, int], inverse: bool) -> None:
    image = torch.randn((2, 3, *size), dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    found = torch.view_as_complex(centred_dft(torch.view_as_real(image), inverse))
    torch.testing.assert_close(found, (ifft2c if inverse else fft2c)(image), rtol=0, atol=2e-5)


def test_onnx_carries_what_its_users_must_know(tmp_path: Path) -> None:
    exported = export_model(make_model(**HARD), tmp_path / "model.onnx", ExportConfig((32, 24)))
    assert exported.error < 1e-5
    assert exported.inputs == {
        "zero_filled": ("batch", 1, 32, 24),
        "kspace": ("batch", 1, 32, 24, 2),
        "mask": ("batch", 1, 32, 24),
    }
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"], "weights are inside, no scratch is left"
    stored = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(stored)
    assert [item.name for item in stored.graph.input] == list(exported.inputs)
    about = json.loads({item.key: item.value for item in stored.metadata_props}["larmor"])
    assert about["trained_on"]["mask"]["kind"] == "gaussian1d"
    assert about["model"] == {"step": 7}
    assert about["units"] == "each image and its k-space divided by the largest magnitude of its zero-filled image"


SERIES = {"data": {"url": "unused", "crop": [16, 16], "stack": 3}}
SLAB = {**SERIES, "generator": {"name": "sat_net", "width": 4, "data_consistency": "hard"}}
FRAMES = {**SERIES, "generator": {"name": "conv_lstm", "width": 4, "data_consistency": "hard", "cascades": 2}}


@pytest.mark.parametrize(
    ("sections", "suffix"),
    [(SLAB, ".pt2"), (FRAMES, ".pt2"), (FRAMES, ".onnx"), pytest.param(SLAB, ".onnx", marks=pytest.mark.slow)],
)
def test_a_batch_holds_whole_stacks(tmp_path: Path, sections: dict[str, Any], suffix: str) -> None:
    exported = export_model(make_model(**sections), tmp_path / f"model{suffix}", ExportConfig((16, 16)))
    assert exported.inputs["zero_filled"] == ("3 * stacks" if suffix == ".onnx" else 3, 1, 16, 16)
    if suffix == ".onnx":
        stored = onnx.load(tmp_path / "model.onnx")
        about = json.loads({item.key: item.value for item in stored.metadata_props}["larmor"])
        assert about["stack"] == 3
        assert about["units"].startswith("each stack of 3 consecutive images")


def test_shared_views_are_an_input(tmp_path: Path) -> None:
    generator = {**FRAMES["generator"], "start": {"method": "view_sharing"}}
    model = make_model(**{**FRAMES, "generator": generator})
    exported = export_model(model, tmp_path / "model.pt2", ExportConfig((18, 16), dynamic_size=True))
    assert exported.inputs["start"] == (3, 1, "height", "width")


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_a_classical_start_is_an_input(tmp_path: Path, suffix: str) -> None:
    generator = {
        "name": "residual_unet",
        "width": 4,
        "norm": "none",
        "start": {"method": "alternating", "iterations": 4},
        "data_consistency": "hard",
        "cascades": 2,
    }
    exported = export_model(make_model(generator=generator), tmp_path / f"model{suffix}", ExportConfig((24, 32)))
    assert list(exported.inputs) == ["start", "kspace", "mask"]
    assert exported.error < 1e-4
    if suffix == ".onnx":
        stored = onnx.load(tmp_path / "model.onnx")
        about = json.loads({item.key: item.value for item in stored.metadata_props}["larmor"])
        assert about["start"]["method"] == "alternating"


def test_torch_export_takes_any_size_and_coils(tmp_path: Path) -> None:
    model = make_model(**SENSE)
    exported = export_model(model, tmp_path / "model.pt2", ExportConfig((32, 48), dynamic_size=True, num_coils=3))
    assert exported.inputs["maps"] == ("batch", 3, "height", "width", 2)
    assert exported.num_checks == 9
    extra = {"larmor": ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=extra).module()
    assert json.loads(extra["larmor"])["size_multiple"] == 16
    rng = torch.Generator().manual_seed(1)
    image, mask = torch.rand((5, 2, 80, 64), generator=rng), torch.rand((5, 1, 80, 64), generator=rng) < 0.4
    kspace, maps = torch.randn((2, 5, 3, 80, 64), dtype=torch.complex64, generator=rng)
    with torch.no_grad():
        found = program(image, torch.view_as_real(kspace), mask, torch.view_as_real(maps))
        torch.testing.assert_close(found, model.generator(image, kspace, mask, maps), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", export.SUFFIXES)
@pytest.mark.parametrize("dynamic_size", [False, True])
@pytest.mark.parametrize(
    ("sections", "size", "coils"),
    [
        ({}, (32, 32), 1),
        ({"generator": {"width": 4}}, (96, 64), 1),
        ({"generator": {"width": 4, "data_consistency": "hard"}}, (96, 64), 1),
        ({"generator": {"width": 4, "data_consistency": "hard", "iterations": 2}}, (96, 64), 1),
        ({"generator": {"width": 4, "data_consistency": "soft"}, "signal": {"mode": "complex"}}, (96, 64), 1),
        ({"generator": {"name": "dagan", "width": 4}}, (256, 256), 1),
        ({"generator": {"name": "fda", "width": 4}}, (64, 32), 1),
        ({"generator": {"name": "dilated", "width": 4}}, (40, 27), 1),
        ({"generator": {"name": "drgan", "width": 4}}, (40, 32), 1),
        ({"generator": {"name": "similar_patches", "width": 4}}, (40, 32), 1),
        ({"system": "idpcnn", "generator": {"width": 4, "turns": 4}}, (40, 27), 1),
        ({"system": "idpcnn", "generator": {"width": 4, "turns": 2}, "signal": {"mode": "complex"}}, (24, 17), 1),
        (SENSE, (32, 32), 4),
        (ALL_COILS, (24, 17), 1),
    ],
)
def test_every_system_can_be_exported(
    tmp_path: Path, sections: dict[str, Any], size: tuple[int, int], coils: int, dynamic_size: bool, suffix: str
) -> None:
    config, path = ExportConfig(size, dynamic_size, coils), tmp_path / f"model{suffix}"
    if dynamic_size and size == (256, 256):
        with pytest.raises(InputError, match="leave out --dynamic-size"):
            export_model(make_model(**sections), path, config)
    else:
        assert export_model(make_model(**sections), path, config).error < export.TOLERANCE


def test_all_coils_are_channels_and_no_maps_are_wanted(tmp_path: Path) -> None:
    model = make_model(**ALL_COILS)
    with torch.no_grad():
        for parameter in model.generator.parameters():
            parameter.normal_(std=0.05)
    exported = export_model(model, tmp_path / "model.pt2", ExportConfig((24, 17)))
    assert exported.inputs == {
        "zero_filled": ("batch", 6, 24, 17),
        "kspace": ("batch", 3, 24, 17, 2),
        "mask": ("batch", 1, 24, 17),
    }
    assert exported.error < 1e-5
    extra = {"larmor": ""}
    torch.export.load(tmp_path / "model.pt2", extra_files=extra)
    assert json.loads(extra["larmor"])["channels"][3] == "imaginary of coil 0"
    with pytest.raises(InputError, match=r"--coils 4: this model takes the 3 coils .*leave --coils out"):
        export_model(model, tmp_path / "other.pt2", ExportConfig((24, 17), num_coils=4))


@pytest.mark.slow
def test_a_loop_sees_coils_through_their_maps(tmp_path: Path) -> None:
    """With a denoiser that takes little off, as a trained one does: another would enlarge every rounding."""
    model = make_model(system="idpcnn", generator={"width": 4, "turns": 2}, signal={"mode": "complex"})
    with torch.no_grad():
        for parameter in model.generator.parameters():
            parameter.mul_(0.5)
    exported = export_model(model, tmp_path / "model.pt2", ExportConfig((24, 17), num_coils=3))
    assert exported.inputs["maps"] == ("batch", 3, 24, 17, 2)
    assert exported.error < 1e-4


def test_a_program_that_computes_something_else_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = export._write_pt2

    def wrong(*arguments: Any) -> Any:
        run = write(*arguments)
        return lambda inputs: run(inputs) + np.float32(2e-4)

    monkeypatch.setattr(export, "_write_pt2", wrong)
    with pytest.raises(InputError, match=r"differs from the model by up to 0.0002, more than 0.0001"):
        export_model(make_model(), tmp_path / "model.pt2", ExportConfig((16, 16)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "config", "reason"),
    [
        ("model.pth", ExportConfig((32, 32)), r"model.pth: expected a name that ends in .onnx or .pt2"),
        ("model.pt2", ExportConfig((40, 32), dynamic_size=True), r"40×32: .* are multiples of 16 up to 4096"),
        (
            "model.pt2",
            ExportConfig((64, 16), dynamic_size=True),
            r"64×16: .* from 32 on; .*leave out --dynamic-size",
        ),
        ("model.pt2", ExportConfig((32, 32), num_coils=4), r"--coils 4: this model sees no coils"),
    ],
)
def test_what_cannot_be_exported_is_refused(tmp_path: Path, name: str, config: ExportConfig, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        export_model(make_model(), tmp_path / name, config)
    assert list(tmp_path.iterdir()) == []


def test_the_documented_recipe_gives_back_all_that_the_model_gives() -> None:
    """A model that returns the truth: nothing that is brighter than the zero-filled image is lost."""
    text = (Path(__file__).parents[3] / "docs" / "methods.md").read_text()
    recipe = text.split('InferenceSession("model.onnx")\n')[1].split("```")[0]
    truth = np.full((32, 24), 50.0)
    truth[16, 9] = 700.0
    kspace = np.fft.fftshift(np.fft.fft2(truth)) * make_mask(
        MaskConfig(kind="gaussian2d", sampling_ratio=0.3), truth.shape
    )
    zero_filled = np.abs(np.fft.ifft2(np.fft.ifftshift(kspace)))

    class Session:
        def run(self, _: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            assert inputs["zero_filled"].shape == (1, 1, 32, 24)
            assert inputs["zero_filled"].max() == 1
            return [truth[None, None] / zero_filled.max()]

    names: dict[str, Any] = {"np": np, "session": Session(), "zero_filled": zero_filled}
    exec(recipe, names)
    np.testing.assert_allclose(names["image"], truth)
