"""What all ranks decide together, in processes that train one trial after another."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.workbench import environment


@pytest.mark.parametrize("kept", ["0", "1"], ids=["ranks of each trial", "ranks of all trials"])
def test_a_trial_leaves_no_thread_no_open_file_and_no_vote_behind(tmp_path: Path, kept: str) -> None:
    """Whether it ends well or, on all ranks alike, with an error."""
    program = [sys.executable, str(Path(__file__).with_name("agreement_program.py"))]
    ranks = [
        subprocess.Popen(
            [*program, str(rank), "2", str(tmp_path / "rendezvous"), str(tmp_path / "run"), kept],
            env=environment(OMP_NUM_THREADS="1"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in ranks:
        output, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors[-4000:]
        held = [tuple(map(int, line.split())) for line in output.splitlines()]
        assert len(held) == 6
        if kept == "0":
            assert held[-1] == held[1], "threads and open files after each trial"
        for numbers in zip(*held, strict=True):  # the group's set-up may still hold a file during one of the first
            assert min(numbers[3:]) <= max(numbers[:3]), held
