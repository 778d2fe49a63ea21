"""The grid for a GPU machine, packed, run and unpacked on a CPU at a tiny size."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
import yaml

from larmor.cluster.comparison.grid import load_grid
from larmor.recon.models.model import load_model
from larmor.storage.examples.phantom import phantom_volume

ROOT = Path(__file__).resolve().parents[2]


def paper_grid(*arguments: str) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / "paper_grid.py"), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_papers_grid_from_heads_to_tables(tmp_path: Path) -> None:
    pytest.importorskip("sigpy")
    heads, pack, results, home = (tmp_path / name for name in ("heads", "pack", "results", "home"))
    heads.mkdir()
    for seed, name in enumerate(("one", "two", "three")):
        volume = phantom_volume(np.random.default_rng(seed))[:, ::8]
        nibabel.save(nibabel.Nifti1Image(volume.astype(np.float32), np.diag([1, 12.8, 1, 1])), heads / f"{name}.nii.gz")
    (heads / "splits.yaml").write_text(yaml.safe_dump({"validation": ["two"], "test": ["three"]}))

    systems = load_grid("paper", {}).systems
    paper_grid("pack", "--heads", str(heads), "--pack", str(pack), "--no-wheels", "--tiny")
    classical = {path.name: path.read_bytes() for path in (pack / "cells").iterdir()}
    assert len(classical) == 2 * 6, "figures and examples of each cell"
    said = paper_grid(
        *("run", "--pack", str(pack), "--to", str(results), "--device", "cpu", "--tiny"),
        *("--minutes", "30", "--work", str(tmp_path / "work")),
    )
    assert "no time is left" not in said
    log = (tmp_path / "work" / "tables" / "log.txt").read_text()  # on the screen lines of two processes may be one
    assert sum("on the validation split" in line for line in log.splitlines()) == 6 * len(systems)
    assert all(path.stat().st_size < 16 * 2**20 for path in results.iterdir())
    with tarfile.open(results / "results.tar.gz") as archive:
        brought = {Path(name).name: archive.extractfile(name) for name in archive.getnames()}
        for name, content in classical.items():
            if name.endswith(".json"):
                file = brought[name]
                assert file is not None
                assert file.read() == content, "compressed sensing was rated once"

    model = Path(paper_grid("unpack", str(results), "--to", str(home)).strip())
    text = (home / "tables" / "tables.md").read_text()
    assert text.count("###") == 6
    for method in ("zero_filled", "wavelet", "total_variation", *systems):
        assert text.count(f"\n| {method} |") == (7 if method in systems else 6), "in each cell, and in the list"
    pulled = load_model(model)
    kept = load_model(tmp_path / "work" / "tables" / "models" / model.name)
    assert pulled.recipe == kept.recipe
    assert json.loads((model / "metrics.json").read_text())["step"] >= 1
    for ours, theirs in zip(pulled.generator.parameters(), kept.generator.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2**-10, atol=2**-24)
