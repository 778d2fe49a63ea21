"""Training through Ray Train with two DeepSpeed workers, from and to the real object store."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator

import psutil
import pytest

from larmor.cluster.runs.run_folder import RunFolder
from tests.workbench import command, environment, larmor, succeed, tiny, unique_name

LOSSES = ("loss", "critic_loss", "adversarial", "normalized_root_mse", "frequency", "val/psnr", "val/ssim")
STEPS = 40
OUTPUT = "s3://larmor"
SCHEDULE = (
    f"training.num_steps={STEPS}",
    "training.checkpoint_every=10",
    "training.validate_every=10",
    "training.log_every=10",
    "training.zero_stage=2",
)

# a notice to stop is tested without Ray too, in test_stopping.py
ENDS = pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGKILL, id="killed"),
        pytest.param(signal.SIGTERM, id="told to stop", marks=pytest.mark.slow),
    ],
)


def losses(run: RunFolder) -> list[tuple[float | None, ...]]:
    return [tuple(row.get(name) for name in LOSSES) for row in run.history()]


def run_folder(name: str) -> RunFolder:
    return RunFolder(f"{OUTPUT}/runs/{name}")


@pytest.fixture(scope="module")
def undisturbed_name() -> str:
    return unique_name("undisturbed")


@pytest.fixture
def undisturbed(undisturbed_name: str, tiny_heads: str, store_environment: dict[str, str]) -> RunFolder:
    """Two workers from the first step to the last; trained once for all tests of this file."""
    run = run_folder(undisturbed_name)
    if run.result() is None:
        succeed("train", *tiny(undisturbed_name, tiny_heads, OUTPUT, *SCHEDULE, "cluster.num_workers=2"))
    return run


@pytest.fixture(scope="module")
def single_name() -> str:
    return unique_name("single")


@pytest.fixture
def single(single_name: str, tiny_heads: str, store_environment: dict[str, str]) -> RunFolder:
    """The same training by one worker without Ray."""
    run = run_folder(single_name)
    if run.result() is None:
        succeed("train", "--local", *tiny(single_name, tiny_heads, OUTPUT, *SCHEDULE, "cluster.num_workers=1"))
    return run


def test_run_is_complete_and_not_trained_twice(undisturbed: RunFolder, undisturbed_name: str, tiny_heads: str) -> None:
    assert [row["step"] for row in undisturbed.history()] == list(range(1, STEPS + 1))
    latest = undisturbed.latest()
    assert latest is not None
    assert latest.step == STEPS
    assert any("state-00001-of-00002" in name for name in latest.files), "each rank saves its part"
    before = undisturbed.store.list()
    arguments = tiny(undisturbed_name, tiny_heads, OUTPUT, *SCHEDULE, "cluster.num_workers=2")
    assert "already finished" in succeed("train", *arguments)
    assert undisturbed.store.list() == before


def test_two_workers_train_as_one_does(undisturbed: RunFolder, single: RunFolder) -> None:
    two, one = ([row["normalized_root_mse"] for row in run.history()] for run in (undisturbed, single))
    # The same samples in the same order; but sums over ranks are rounded in another order, and Adam's first
    # steps, gradient / sqrt(its square), turn the rounding of tiny gradients into steps of full length.
    assert two[:3] == pytest.approx(one[:3], rel=1e-4)
    assert two == pytest.approx(one, rel=0.02)


@ENDS
def test_worker_that_ends_changes_nothing(undisturbed: RunFolder, tiny_heads: str, number: signal.Signals) -> None:
    name = unique_name("killed")
    arguments = tiny(name, tiny_heads, OUTPUT, *SCHEDULE, "cluster.num_workers=2")
    with started("train", *arguments) as process:
        killed_at = signal_a_worker(process.pid, run_folder(name), number)
        output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output[-4000:]
    assert 0 < killed_at < STEPS
    assert losses(run_folder(name)) == losses(undisturbed)
    assert ("resuming as soon as there is room" in output) == (number == signal.SIGTERM)


@ENDS
def test_same_command_goes_on_after_the_whole_command_ended(
    single: RunFolder, tiny_heads: str, number: signal.Signals
) -> None:
    name = unique_name("driver")
    arguments = ("train", "--local", *tiny(name, tiny_heads, OUTPUT, *SCHEDULE, "cluster.num_workers=1"))
    with started(*arguments) as process:
        killed_at = wait_for_checkpoint(run_folder(name))
        process.send_signal(number)
        code = process.wait(timeout=60)
    assert code == (-number if number == signal.SIGKILL else 128 + number)
    assert 0 < killed_at < STEPS
    assert run_folder(name).result() is None
    succeed(*arguments)
    assert losses(run_folder(name)) == losses(single)


@contextlib.contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The command line in a process of its own, which does not outlive the block."""
    with subprocess.Popen(
        command(*arguments), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_checkpoint(run: RunFolder) -> int:
    """The step of the first checkpoint, as soon as it is there."""
    for _ in range(3600):
        if (checkpoint := run.latest()) is not None:
            return checkpoint.step
        time.sleep(0.05)
    raise AssertionError("no checkpoint within three minutes")


def signal_a_worker(driver: int, run: RunFolder, number: signal.Signals) -> int:
    """Send it to one Ray Train worker of `driver` after the first checkpoint; the step of that checkpoint."""
    step = wait_for_checkpoint(run)
    for process in psutil.Process(driver).children(recursive=True):
        if "RayTrainWorker" in " ".join(process.cmdline()):
            os.kill(process.pid, number)
            return step
    raise AssertionError("there is no worker to kill")


def test_diverged_training_ends_with_its_reason(tiny_heads: str, store_environment: dict[str, str]) -> None:
    name = unique_name("diverged")
    more = ("generator_optimizer.learning_rate=1e30", "cluster.num_workers=2")
    done = larmor("train", *tiny(name, tiny_heads, OUTPUT, *SCHEDULE, *more))
    assert done.returncode == 1
    assert "training diverged:" in done.stderr
    assert "lower the learning rates" in done.stderr
    assert "Traceback" not in done.stderr
    run = run_folder(name)
    assert run.failure() is not None
    assert run.checkpoints() == []
    assert run.result() is None
