"""The script for a GPU machine: what it counts without one, and that it measures, on a CPU at a tiny size."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from operator_costs import Counting  # noqa: E402

META = torch.device("meta")


def test_an_operator_reads_and_writes_once_and_a_view_costs_nothing() -> None:
    image = torch.empty(2, 8, 16, 16, device=META, dtype=torch.bfloat16)
    with Counting() as counting:
        image.view(2, -1).t()
    assert counting.costs.launches == 0
    with Counting() as counting:
        image * 2
    assert counting.costs.rows["pointwise"][:3] == [1, 0, 2 * 2 * image.numel()]


@pytest.mark.parametrize(("layout", "transposed"), [("planes", True), ("channels_last_norms", False)])
def test_a_convolution_has_the_operations_of_its_formula(layout: str, transposed: bool) -> None:
    image = torch.empty(2, 8, 16, 16, device=META)
    convolution = nn.Conv2d(8, 4, 3, padding=1, bias=False, device=META)
    with Counting(layout) as counting:  # type: ignore[arg-type]
        convolution(image)
    _, flops, moved, _ = counting.costs.rows["convolution"]
    assert flops == 2 * 2 * 4 * 16 * 16 * 8 * 9
    assert moved == 4 * (image.numel() + 4 * 8 * 9 + 2 * 4 * 16 * 16)
    assert ("transposition" in counting.costs.rows) == transposed


def test_a_fused_norm_costs_its_own_passes_alone() -> None:
    image = torch.empty(2, 8, 16, 16, device=META)
    norm = nn.GroupNorm(2, 8, device=META)
    with Counting("channels_last_norms", fused=True) as counting:
        norm(image).relu()
    assert counting.costs.launches == counting.costs.rows["norm"][0] == 3
    assert counting.costs.rows["norm"][2] == pytest.approx(4 * 3 * image.numel(), rel=0.01)


def profile(*arguments: str) -> list[str]:
    command = [sys.executable, "benchmarks/gpu_profile.py", "--size", "32", "32", "--width", "4", *arguments]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    return [line for line in shown.splitlines() if line.startswith("|")]


@pytest.mark.slow
def test_tables_are_filled() -> None:
    few = ("--micro-batches", "2", "--systems", "larmor")
    assert len(profile("--device", "cpu", "--operators", *few)) > 15
    switches = ("--switches", "as it is", "channels_last", "no norms")
    rows = profile("--device", "cpu", "--measure", "--dtype", "float32", *few, *switches)[2:]
    assert len(rows) == 6
    assert all("Error" not in row for row in rows), rows
