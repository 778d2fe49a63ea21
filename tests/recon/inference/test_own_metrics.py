"""Metrics of one's own: functions, classes and networks, each called with one image."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch

from larmor.recon.inference.own_metrics import own_figures
from larmor.recon.recipe.metric import from_record, to_record
from larmor.recon.recipe.own_metric import find_metric, own_metrics
from larmor.storage.objects.errors import InputError

CODE = '''
import torch


class Sharpness:
    """Slope of the reconstruction, in parts of the target's. It is 1 at best."""

    higher_is_better = True
    title, unit = "Sharpness {relative}", "%"
    made = 0

    def __init__(self):
        Sharpness.made += 1

    def __call__(self, reconstruction, target):
        assert reconstruction.shape == target.shape and reconstruction.ndim == 2
        assert not torch.is_grad_enabled()
        return 100 * reconstruction.diff().abs().sum() / target.diff().abs().sum()


class Network(torch.nn.Module):
    higher_is_better = False

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Dropout(0.9))

    def forward(self, reconstruction, target):
        assert not self.training
        return (self.layer(reconstruction[None]) - self.layer(target[None])).abs().mean()


class Needs:
    def __init__(self, path):
        self.path = path
'''


@pytest.fixture(autouse=True)
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ratings.py").write_text(CODE)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "ratings", raising=False)


def test_a_class_is_made_once_and_says_what_it_is() -> None:
    target = torch.rand(8, 6, generator=torch.Generator().manual_seed(0))
    for share in (0.5, 1.0):
        found = own_figures(["ratings:Sharpness"], target, share * target)
        assert found == {"ratings:Sharpness": pytest.approx(100 * share)}
    assert sys.modules["ratings"].Sharpness.made == 1
    metric = find_metric("ratings:Sharpness")
    assert (metric.heading, metric.higher_is_better) == ("Sharpness {relative} (%)", True)
    assert metric.definition == "Slope of the reconstruction, in parts of the target's. It is 1 at best"
    assert metric.brief.format(12.3456) == "Sharpness {relative} 12.35"
    assert from_record(to_record(metric)) == metric


def test_a_network_judges_as_it_stands() -> None:
    target, reconstruction = torch.rand(2, 8, 6, generator=torch.Generator().manual_seed(0))
    first, again = (own_figures(["ratings:Network"], target, reconstruction)["ratings:Network"] for _ in range(2))
    assert first == again > 0


def test_an_image_that_is_not_finite_has_no_figure() -> None:
    target = torch.rand(8, 6)
    found = own_figures(["ratings:nowhere"], target, torch.full_like(target, math.nan))
    assert math.isnan(found["ratings:nowhere"]), "nor is the metric asked"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("psnr", "--metric psnr: is in every table already"),
        ("ratings:Needs", r"ratings:Needs: called as Needs\(\): TypeError: .*'path'"),
        ("ratings:missing", "ratings has no missing; it has torch, Sharpness"),
        ("sharpness", "'sharpness' is not a validation metric"),
    ],
)
def test_what_a_table_cannot_have(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        own_metrics([name], None)
