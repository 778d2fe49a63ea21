"""What a model sees of measured k-space is what it saw in training, where the target was known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from larmor.recon.inference.inference import Physics, network_method, reconstruct_sample
from larmor.recon.models.measured import measured_sample
from larmor.recon.models.model import Model
from larmor.recon.networks.data_consistency import ConsistentGenerator
from larmor.recon.physics.masks import make_mask
from larmor.recon.physics.phase import centre_size
from larmor.recon.physics.samples import prepare
from larmor.recon.recipe.mask_config import MaskConfig
from larmor.recon.recipe.signal import SignalConfig
from larmor.storage.formats.volumes import image_to_kspace
from larmor.storage.loading.loader import Batch
from larmor.storage.objects.errors import InputError
from tests.helpers import coil_scan, ellipsoid, small_recipe

CPU = torch.device("cpu")
SIZE = (40, 36)
SAMPLES = np.array([(0, 0), (0, 1)])
MASK = MaskConfig(kind="gaussian2d", sampling_ratio=0.15)


def model_of(signal: SignalConfig, consistency: str) -> Model:
    recipe = small_recipe(
        data={"url": "unused", "crop": SIZE},
        signal=signal.model_dump(),
        generator={"width": 4, "data_consistency": consistency},
    )
    return Model(torch.nn.Identity(), Physics(SIZE, MASK, signal), recipe, {}, Path("model"))


@pytest.mark.parametrize("consistency", ["none", "hard"])
@pytest.mark.parametrize("mode", ["magnitude", "complex sense", "complex rss", "complex all"])
def test_it_is_what_training_sees(mode: str, consistency: str) -> None:
    """The same zero-filled image, k-space and units: nothing of the target is in them."""
    if (mode, consistency) == ("complex rss", "hard"):
        pytest.skip("there is no such model")
    kind, _, coils = mode.partition(" ")
    signal = SignalConfig.model_validate({"mode": kind, **({"coils": coils} if coils else {})})
    bright = np.array([1, 70], np.float32)[:, None, None, None]
    maps = None
    if kind == "magnitude":
        kspace = image_to_kspace(3 + ellipsoid((36, 6, 40))[:, 2:4].transpose(1, 2, 0))[:, None] * bright
    else:
        scan, maps = coil_scan(3, 2, *SIZE)
        kspace = scan * bright
        maps = None if coils == "all" else maps
    whole = prepare(Batch.of(kspace, SAMPLES, maps), SIZE, MASK, CPU, signal=signal)
    measured = measured_sample(
        Batch.of(kspace * make_mask(MASK, SIZE), SAMPLES, maps), model_of(signal, consistency), CPU
    )
    torch.testing.assert_close(measured.zero_filled, whole.zero_filled, rtol=0, atol=1e-5)
    torch.testing.assert_close(measured.scale, whole.scale)
    if consistency == "hard" or kind == "complex":
        torch.testing.assert_close(measured.kspace, whole.kspace, rtol=0, atol=1e-4)
    # what a method makes of both comes out in the same intensities
    results = [
        reconstruct_sample({"doubled": lambda sample: 2 * sample.zero_filled}, each, (0, 1))
        for each in (measured, whole)
    ]
    bright_images = []
    for result in results:
        low, high = result.scale.T[:, :, None, None]
        bright_images.append(result.images["doubled"] * (high - low) + low)
    np.testing.assert_allclose(bright_images[0], bright_images[1], rtol=1e-3, atol=1e-2)


def phases(size: tuple[int, int]) -> dict[str, np.ndarray]:
    """In radians: constant, a ramp of one turn, and a bowl."""
    rows, columns = np.meshgrid(*(np.linspace(-1, 1, length) for length in size), indexing="ij")
    return {
        "constant": np.full(size, np.pi / 2),
        "ramp": np.pi * columns,
        "bowl": 0.4 + 1.5 * rows**2 + columns * rows,
    }


LARGE = (64, 56)


def turned(phase: str) -> tuple[np.ndarray, np.ndarray]:
    """Truth (height, width) and its k-space (1, 1, height, width) with a phase."""
    truth = ellipsoid((LARGE[1], 6, LARGE[0]))[:, 3].T
    return truth, image_to_kspace(truth * np.exp(1j * phases(LARGE)[phase]))[None, None]


def put_back(kspace: np.ndarray, network: torch.nn.Module, kind: str = "hard", iterations: int = 1) -> np.ndarray:
    """What a magnitude model with data consistency makes of measured k-space, in the source's intensities."""
    sample = measured_sample(Batch.of(kspace, SAMPLES[:1]), model_of(SignalConfig(), kind), CPU)
    generator = ConsistentGenerator([network], kind, iterations)  # type: ignore[arg-type]
    result = reconstruct_sample({"found": network_method(generator)}, sample, (0,))
    low, high = result.scale[0]
    return result.images["found"][0] * (high - low) + low


class Told(torch.nn.Module):
    """Returns an image, in units of the zero-filled one, whatever it is given; the parameter says its precision."""

    def __init__(self, image: np.ndarray) -> None:
        super().__init__()
        self.image = torch.nn.Parameter(torch.from_numpy(image.astype(np.float32)))

    def forward(self, zero_filled: torch.Tensor) -> torch.Tensor:
        return self.image.expand_as(zero_filled)


def psnr(truth: np.ndarray, found: np.ndarray) -> float:
    return float(20 * np.log10(np.ptp(truth) / np.sqrt(np.mean((truth - found) ** 2))))


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("phase", ["constant", "ramp", "bowl"])
def test_with_everything_measured_the_phase_does_not_matter(phase: str, iterations: int) -> None:
    truth, kspace = turned(phase)
    assert psnr(truth, put_back(kspace, Told(np.zeros(LARGE)), iterations=iterations)) > 80


@pytest.mark.parametrize(
    "mask", [{"kind": "gaussian1d", "center_fraction": 0.15}, {"kind": "gaussian2d", "center_fraction": 0.2}]
)
@pytest.mark.parametrize("phase", ["constant", "ramp", "bowl"])
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_data_consistency_helps_whatever_the_phase(kind: str, phase: str, mask: dict[str, Any]) -> None:
    truth, kspace = turned(phase)
    kspace = kspace * make_mask(MaskConfig(sampling_ratio=0.3, **mask), LARGE)
    zero_filled = np.abs(np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace[0, 0]), norm="ortho")))
    rough = truth + np.random.default_rng(0).normal(0, 10, LARGE)
    alone, helped = rough.clip(0), put_back(kspace, Told(rough / zero_filled.max()), kind)
    assert psnr(truth, helped) > psnr(truth, alone)
    if phase == "constant":
        real = put_back(image_to_kspace(truth)[None, None] * (kspace != 0), Told(rough / zero_filled.max()), kind)
        assert np.abs(helped - real).max() < 0.05 * truth.max(), "as if there were no phase"


def test_a_phase_without_a_centre_is_refused() -> None:
    truth, kspace = turned("ramp")
    sparse = np.zeros(LARGE, bool)
    sparse[:, ::3] = sparse[:, 27:31] = True
    with pytest.raises(InputError, match=r"has a phase, .* centre is 64×\d; .* signal.mode=complex"):
        put_back(kspace * sparse, Told(truth))
    real = put_back(image_to_kspace(truth)[None, None] * sparse, Told(truth / 50))
    assert np.isfinite(real).all(), "an image without a phase needs no centre"


@pytest.mark.parametrize("size", [(12, 12), (13, 10), (7, 20)])
def test_the_centre_is_as_large_as_it_goes(size: tuple[int, int]) -> None:
    assert centre_size(np.ones(size, bool)) == size
    for height, width in ((5, 5), (size[0], 4), (3, size[1]), (2, 6)):
        measured = np.zeros(size, bool)
        top, left = size[0] // 2 - height // 2, size[1] // 2 - width // 2
        measured[top : top + height, left : left + width] = True
        assert centre_size(measured) == (height, width)
    assert centre_size(np.zeros(size, bool)) == (0, 0)
