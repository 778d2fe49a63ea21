"""The figures of a report, from laps of one and several ranks."""

from __future__ import annotations

import pytest

from larmor.recon.recipe.recipe import Recipe
from larmor.recon.training import flops
from larmor.recon.training.speed import Lap, _flops_of, figures_of

LAP = {
    "data": 2.0,
    "critic": 3.0,
    "generator": 5.0,
    "validation": 6.0,
    "checkpoint": 3.0,
    "report": 1.0,
    "communication": 1.0,
}
SHARES = ("data", "compute", "communication", "validation", "checkpoint", "report")


def lap(waited: float = 0.5, bytes_read: int = 1000, gpu_memory_bytes: int = 0, **seconds: float) -> Lap:
    return Lap({**LAP, **seconds}, waited, bytes_read, gpu_memory_bytes)


def test_speed_is_of_the_steps_and_shares_are_of_all_the_time() -> None:
    figures = figures_of([lap()], num_steps=4, num_slices=8)
    assert figures["step_seconds"] == 2.5
    assert figures["slices_per_second"] == 3.2
    assert figures["seconds"] == 20
    assert [figures[f"{name}_share"] for name in SHARES] == [0.1, 0.35, 0.05, 0.3, 0.15, 0.05]
    assert figures["waiting_share"] == 0.05
    assert figures["bytes_per_second"] == 100
    assert figures["world_size"] == 1
    assert "gpu_memory_bytes" not in figures


def test_ranks_are_averaged_their_bytes_added_and_the_fullest_gpu_counts() -> None:
    ranks = [lap(data=1.0, gpu_memory_bytes=5), lap(data=3.0, waited=1.5, bytes_read=500, gpu_memory_bytes=7)]
    figures = figures_of(ranks, num_steps=4, num_slices=8)
    assert figures["step_seconds"] == 2.5
    assert figures["waiting_share"] == 0.1
    assert figures["bytes_per_second"] == 150
    assert figures["gpu_memory_bytes"] == 7
    assert figures["world_size"] == 2
    assert sum(figures[f"{name}_share"] for name in SHARES) == pytest.approx(1)


def test_a_network_whose_operations_cannot_be_counted_trains_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(recipe: Recipe) -> int:
        raise RuntimeError("Tensor on device cpu is not on the expected device meta!")

    monkeypatch.setattr(flops, "flops_per_step", refuses)
    assert _flops_of(Recipe()) == 0
