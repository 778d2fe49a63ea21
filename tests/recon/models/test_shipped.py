"""The model that comes with Larmor is whole, small, and what its card says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from larmor import load_model, pull, reconstruct
from larmor.cluster.runs.published import shipped_model, shipped_models
from larmor.storage.objects.errors import InputError
from tests.helpers import contents_of, ellipsoid, write_volume


@pytest.mark.parametrize("name", shipped_models())
def test_it_is_pulled_like_any_other(name: str, tmp_path: Path) -> None:
    pulled = pull(f"larmor://{name}", tmp_path / "model")
    found = contents_of(tmp_path / "model")
    assert sum(map(len, found.values())) < 2**20
    assert pulled.checkpoint.metrics["val/psnr"] > 39


def test_its_card_states_licence_data_mask_and_what_others_reach() -> None:
    folder = shipped_model("larmor://small")
    card = (folder / "model-card.md").read_text()
    matter = yaml.safe_load(card.split("---\n")[1])
    assert matter["license"] == "apache-2.0"
    (result,) = matter["model-index"][0]["results"]
    figures = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert f"| larmor | {figures['psnr']:.3f} dB |" in card
    assert "| zero_filled | " in card
    assert "| total_variation | " in card
    for fact in ("gaussian2d", "BOLD5000 (CC0 at its source)", "larmor evaluate small"):
        assert fact in card
    splits = json.loads((folder / "metrics.json").read_text())["origin"]["data"]["splits"]
    assert splits["train"]["subjects"] == ["csi1", "csi2"], "its data are free: CC0 at their source"
    assert splits["test"]["subjects"] == ["petdeface01"]


@torch.no_grad()
def test_it_reconstructs_without_a_network(tmp_path: Path) -> None:
    head = write_volume(tmp_path / "head.nii.gz", ellipsoid((40, 6, 48)))
    (report,) = reconstruct("larmor://small", str(head), tmp_path / "images")
    assert not report.problem
    assert load_model("larmor://small")(torch.rand(1, 1, 64, 48), *_measured(64, 48)).shape == (1, 1, 64, 48)


def _measured(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    kspace = torch.from_numpy(rng.standard_normal((1, 1, height, width)).astype(np.complex64))
    return kspace, torch.ones(1, 1, height, width, dtype=torch.bool)


def test_another_name_is_told_which_there_are() -> None:
    with pytest.raises(InputError, match=r"larmor://big: is not shipped here; choose of small"):
        shipped_model("larmor://big")
    with pytest.raises(InputError, match="is not shipped here"):
        shipped_model("larmor://../networks")
