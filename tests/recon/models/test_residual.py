"""What a network changed of the measurement: 0 with hard consistency, as large as it is without."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from larmor.recon.inference.residual import Residual, ResidualSum, describe_share
from larmor.recon.inference.slices_page import RESIDUAL, RESIDUAL_KSPACE, read_page, slice_content
from larmor.recon.models.residual import measured_residual
from larmor.recon.physics.fourier import fft2c
from larmor.recon.physics.samples import Sample
from tests.helpers import write_heads
from tests.recon.models.test_reconstruct import lesion, make_model, run_all

SIZE = (24, 20)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_heads(tmp_path_factory.mktemp("heads"), ["ann"])[0]


def sample_of(complex_: bool) -> tuple[Sample, torch.Tensor]:
    """One measured slice of one coil in the intensities 0 to 8, in units of its largest magnitude, and its image."""
    image = 8 * torch.from_numpy(lesion(SIZE))[None, None]
    kspace = fft2c(torch.complex(image, image * 0.5) if complex_ else torch.complex(image, torch.zeros_like(image)))
    mask = torch.rand((1, 1, *SIZE), generator=torch.Generator().manual_seed(0)) < 0.5
    target = torch.cat([image, image * 0.5], 1) if complex_ else image
    scale = torch.tensor([[0.0, 4.0]])
    sample = Sample(target / 4, target / 4, kspace * mask / 4, mask, scale, np.zeros((1, 2)))
    return sample, target / 4


@pytest.mark.parametrize("complex_", [False, True], ids=["magnitude", "complex"])
def test_figures_and_maps_are_those_by_hand(complex_: bool) -> None:
    sample, image = sample_of(complex_)
    found = measured_residual(sample, [image * 1.1])
    assert found is not None
    assert found.shares == pytest.approx([0.1], rel=1e-4), "a tenth more of every point"
    assert measured_residual(sample, [image]).shares[0] < 1e-6  # type: ignore[union-attr]
    span = 8 * (1.25**0.5 if complex_ else 1)  # of the target, in the source's intensities
    measured = sample.mask[0, 0].numpy() | (not complex_) * np.roll(sample.mask[0, 0].numpy()[::-1, ::-1], 1, (0, 1))
    assert np.array_equal(found.kspace[0] > 1e-5 * found.kspace.max(), measured & (found.kspace[0] > 1e-9))
    assert found.kspace.max() == pytest.approx(0.1, rel=1e-3)
    # Parseval: the norm of the change is that of its image
    assert np.linalg.norm(found.image) * span == pytest.approx(found.changed[0], rel=1e-4)


def test_the_change_of_an_ensemble_is_that_of_its_mean() -> None:
    sample, image = sample_of(True)
    found = measured_residual(sample, [image * 1.2, image * 0.8])
    assert found is not None
    assert found.shares[0] < 1e-6


def test_images_that_cannot_be_compared_have_none() -> None:
    sample, image = sample_of(False)
    assert measured_residual(sample, [image[..., 1:]]) is None
    coils = replace(sample, kspace=sample.kspace.expand(1, 2, *SIZE))
    assert measured_residual(coils, [image]) is None


@pytest.mark.parametrize(("consistency", "low", "high"), [("hard", 0.0, 1e-6), ("none", 1e-3, 10.0)])
def test_hard_consistency_leaves_what_was_measured(
    tmp_path: Path, head: Path, consistency: str, low: float, high: float
) -> None:
    model = make_model(0.4, trained=True) if consistency == "none" else hard_model()
    (report,) = run_all(model, head, tmp_path)[0]
    assert report.problem == ""
    assert report.residual is not None
    assert low <= report.residual <= high
    (stack,) = read_page(tmp_path / "ann-reconstruction.html")
    image, kspace = stack["slices"][9]["panes"][-2:]
    assert (image["name"], kspace["name"], kspace["fixed"]) == (RESIDUAL, RESIDUAL_KSPACE, True)
    assert image["metrics"].endswith("% of the measured norm")
    assert (kspace["high"] > 0) == (consistency == "none"), "below a 10⁻⁴ all is black"


def hard_model() -> Any:
    model = make_model(0.4, generator={"width": 4, "data_consistency": "hard"})
    for values in model.generator.parameters():
        torch.nn.init.normal_(values, std=0.05)
    return model


def test_sums_weigh_images_by_their_measurement() -> None:
    total = ResidualSum()
    assert total.share is None
    maps = np.zeros((2, 2, 2), np.float32)
    total.add(Residual(np.array([3.0, 4.0]), np.array([10.0, 0.0]), maps, maps))
    assert total.share == pytest.approx(0.5)
    assert describe_share(0.01234) == "1.2 % of the measured norm"


def test_without_one_a_page_is_as_before() -> None:
    assert len(slice_content("one", {"target": np.eye(8)})["panes"]) == 1
