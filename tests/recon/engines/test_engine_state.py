"""A training goes on with another number of ranks: the same state, and the losses of a single process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from larmor.recon.engines.engine_state import open_state
from larmor.storage.objects.errors import InputError
from tests.recon.engines.parity_program import SAVE_AT, Case
from tests.recon.engines.resize_program import ALL, CROSSED, FEW, GLOBAL_BATCH, SIZES
from tests.recon.engines.test_parity import ROOT, TOLERANCE, by_name, cached_reference


def results_of(folder: Path, cases: str) -> Path:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        environment.pop(name, None)
    program = [sys.executable, str(Path(__file__).with_name("resize_program.py")), str(folder), cases]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return results_of(tmp_path_factory.mktemp("resize") / "few", "few")


def tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    with open_state(folder) as state:
        for name in sorted(state.names):
            yield name, state.tensor(name)


def assert_same_state(folder: Path, other: Path) -> None:
    for network in ("generator", "critic"):
        ours, theirs = dict(tensors(folder / network)), dict(tensors(other / network))
        assert ours.keys() == theirs.keys()
        assert len({name.split("/")[0] for name in ours}) > 1, "weights and moments"
        for name, tensor in ours.items():
            assert torch.equal(tensor, theirs[name]), name
        with open_state(folder / network) as one, open_state(other / network) as two:
            assert one.facts == two.facts


def assert_goes_on(results: Path, name: str, case: Case) -> None:
    """What followed the resume equals a single process of plain PyTorch that was never interrupted."""
    whole = cached_reference(GLOBAL_BATCH, case.critic_steps, case.optimizer)
    found = torch.load(results / f"{name}.pt")
    expected = whole["losses"][SAVE_AT : case.num_steps]
    if case.dtype == "bfloat16":  # 8 bits; the losses are about 1
        torch.testing.assert_close(found["losses"], expected, rtol=0, atol=0.03)
        return
    assert (found["losses"] - expected).abs().max() <= TOLERANCE
    for network in ("generator", "critic"):
        for key, weight in whole[network].items():
            assert (found[network][key] - weight).abs().max() <= TOLERANCE, key


@pytest.mark.parametrize(("before", "after"), SIZES)
@pytest.mark.parametrize("case", FEW, ids=by_name)
def test_another_number_of_ranks_goes_on(results: Path, case: Case, before: int, after: int) -> None:
    name = f"{case.name}-{before}-{after}"
    assert len(list((results / name / "critic").iterdir())) == after
    assert_same_state(results / name, results / f"{case.name}-{before}")
    assert_goes_on(results, name, case)


@pytest.mark.slow
def test_another_number_of_ranks_goes_on_with_every_engine(tmp_path: Path) -> None:
    results = results_of(tmp_path / "all", "all")
    for case in ALL:
        for before, after in SIZES:
            name = f"{case.name}-{before}-{after}"
            assert_same_state(results / name, results / f"{case.name}-{before}")
            assert_goes_on(results, name, case)


@pytest.mark.parametrize(("source", "case"), CROSSED, ids=by_name)
def test_state_is_of_no_stage_and_no_backend(results: Path, source: Case, case: Case) -> None:
    name = f"{source.name}-{case.name}-2-3"
    assert_same_state(results / name, results / f"{source.name}-2")
    assert_goes_on(results, name, case)


def test_a_newer_format_is_refused(results: Path, tmp_path: Path) -> None:
    part = next((results / f"{FEW[0].name}-1" / "critic").iterdir())
    content = part.read_bytes()
    assert content.count(rb"\"format\": 1") == 1
    (tmp_path / part.name).write_bytes(content.replace(rb"\"format\": 1", rb"\"format\": 9"))
    with pytest.raises(InputError, match="written by a newer Larmor"), open_state(tmp_path):
        pass
