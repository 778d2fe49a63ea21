"""Sweeps that share a cluster, and trials of several workers: nothing waits for ever, and the order is as stated.

python -m pytest -m slow tests/tuning/search/test_shared_cluster.py
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator

import pytest

from larmor.tuning.search.records import TrialRecord
from larmor.tuning.search.sweep_folder import SweepFolder
from tests.ray_head import RayHead, ray_head
from tests.workbench import larmor_process, succeed, tiny, unique_name

OUTPUT = "s3://larmor"
SCHEDULE = (
    "training.checkpoint_every=3",
    "training.validate_every=3",
    "training.zero_stage=1",
    "sweep.overrides={}",
    "sweep.metric=psnr",
    "sweep.start_seeds=1",
)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    """Room for four workers."""
    with ray_head(("--num-cpus=4",)) as head:
        yield head


class Sweep:
    """One `larmor sweep` on the cluster."""

    def __init__(self, head: RayHead, data_url: str, *settings: str) -> None:
        name = unique_name("shared")
        self.folder = SweepFolder(f"{OUTPUT}/sweeps/{name}")
        self.arguments = ("sweep", *tiny(name, data_url, OUTPUT, *SCHEDULE, *settings), "--address", head.address)
        self.environment = head.known()

    def running(self) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
        return larmor_process(*self.arguments, **self.environment)

    def run(self) -> str:
        return succeed(*self.arguments, timeout=400, **self.environment)

    def trials(self) -> list[TrialRecord]:
        """Of the finished sweep, in the order in which they began."""
        result = self.folder.result()
        assert result is not None
        assert {trial.state for trial in result.trials} == {"finished"}
        return sorted(result.trials, key=lambda trial: trial.began)


def end(trial: TrialRecord) -> float:
    return trial.began + (trial.seconds or 0)


def test_sweeps_take_what_is_free_and_wait_for_the_rest(
    head: RayHead, tiny_heads: str, store_environment: dict[str, str]
) -> None:
    """The first takes two places, the second the two that are left, the third waits until one of them has ended."""
    first, second, third = (
        Sweep(head, tiny_heads, "cluster.num_workers=1", f"training.num_steps={steps}", "sweep.num_trials=4", places)
        for steps, places in (
            (120, "sweep.concurrent_trials=2"),
            (120, "sweep.concurrent_trials=null"),
            (3, "sweep.concurrent_trials=2"),
        )
    )
    with first.running() as one:
        wait_until_trials_began(first, 2)
        with second.running() as two:
            wait_until_trials_began(second, 2)
            with third.running() as three:
                outputs = [process.communicate(timeout=600) for process in (one, two, three)]
            for process, (_, errors) in zip((one, two, three), outputs, strict=True):
                assert process.returncode == 0, errors[-4000:]
    assert "the cluster is busy" in outputs[2][0]
    a, b, c = (sweep.trials() for sweep in (first, second, third))
    for trials in (a, b):
        assert len(trials) == 4
        assert trials[1].began < end(trials[0]), "two at once"
        assert trials[2].began >= min(end(trials[0]), end(trials[1])), "and no more than two"
    assert b[0].began < max(end(trial) for trial in a), "side by side"
    assert c[0].began >= min(max(end(trial) for trial in trials) for trials in (a, b)), "one had to end first"


def test_trials_of_two_workers_fill_the_cluster(
    head: RayHead, tiny_heads: str, store_environment: dict[str, str]
) -> None:
    sweep = Sweep(head, tiny_heads, "cluster.num_workers=2", "training.num_steps=9", "sweep.num_trials=4")
    sweep.run()
    trials = sweep.trials()
    assert len(trials) == 4
    assert trials[1].began < end(trials[0]), "two at once"
    assert trials[2].began >= min(end(trials[0]), end(trials[1])), "four places hold two trials of two"
    for trial in trials:
        (files,) = [item.files for item in sweep.folder.trial_run(trial.id).checkpoints() if item.step == 9]
        assert any("00001-of-00002" in name for name in files), sorted(files)


def test_a_grid_with_seeds_teaches_a_later_sweep(
    head: RayHead, tiny_heads: str, store_environment: dict[str, str]
) -> None:
    common = ("cluster.num_workers=1", "training.num_steps=3", "sweep.space={loss.a: 'choice(1.0, 15.0, 40.0)'}")
    grid = Sweep(head, tiny_heads, *common, "sweep.sampler=grid", "sweep.seeds=2")
    grid.run()
    trials = grid.trials()
    assert sorted(trial.parameters["loss.a"] for trial in trials) == [1.0, 15.0, 40.0]
    for trial in trials:
        seeds = grid.folder.store.list(f"trials/{trial.id}/seeds")
        assert seeds, "the second training of the point"
        assert trial.num_images == 2 * 3 * 4
    later = Sweep(head, tiny_heads, *common, "sweep.num_trials=1", f"sweep.warm_start={grid.folder.url}")
    later.run()
    assert len(later.trials()) == 1


def wait_until_trials_began(sweep: Sweep, count: int) -> None:
    for _ in range(2400):
        if sum(path.endswith("/begun.json") for path in sweep.folder.store.list("trials")) >= count:
            return
        time.sleep(0.1)
    raise AssertionError(f"{sweep.folder.url}: {count} trials have not begun within four minutes")
