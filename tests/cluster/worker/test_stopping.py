"""A notice to stop: once it asks, twice it insists, and the training that heard it goes on exactly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from larmor.cluster.experiments.experiment import dump_yaml
from larmor.cluster.launch.run_locally import train_locally
from larmor.cluster.runs.run_folder import RunFolder
from larmor.cluster.worker.ranks import Ranks
from larmor.cluster.worker.stopping import Stopped, StopRequest, order_stop, stop_order, withdraw_stop_order
from larmor.cluster.worker.worker import RunWorker
from larmor.recon.recipe.recipe import TrainingConfig
from larmor.recon.training.train import train
from larmor.storage.objects.object_store import ObjectStore
from tests.cluster.launch.test_systems import kspace_url, tiny, trained  # noqa: F401
from tests.workbench import environment, unique_name


@pytest.fixture
def heard() -> list[int]:
    return []


def test_the_first_signal_asks_and_the_second_does_what_it_did_before(heard: list[int]) -> None:
    before = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    said: list[str] = []
    try:
        with StopRequest(grace_seconds=60).listening(signal.SIGUSR1, say=said.append) as request:
            assert request.reason is None
            os.kill(os.getpid(), signal.SIGUSR1)
            assert request.reason == f"SIGUSR1 to process {os.getpid()} on {os.uname().nodename}"
            assert len(said) == 1
            assert "within 60 s" in said[0]
            assert heard == []
            os.kill(os.getpid(), signal.SIGUSR1)
            assert heard == [signal.SIGUSR1]
        os.kill(os.getpid(), signal.SIGUSR1)
        assert heard == [signal.SIGUSR1] * 2, "afterwards nobody listens any more"
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_request_that_was_closed_elsewhere_hears_nothing(heard: list[int]) -> None:
    """Under Ray the training's thread closes it, and Ray's own handler of SIGTERM must work again."""
    before = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    try:
        request = StopRequest(grace_seconds=60)
        request.listen(signal.SIGUSR1)
        closing = threading.Thread(target=request.close)
        closing.start()
        closing.join()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert (request.reason, heard) == (None, [signal.SIGUSR1])
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_outside_the_main_thread_there_is_nothing_to_listen_to() -> None:
    errors: list[Exception] = []

    def listen() -> None:
        try:
            with StopRequest(grace_seconds=60).listening(signal.SIGUSR1):
                pass
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert errors == []


def test_a_process_that_does_not_come_to_an_end_is_ended() -> None:
    program = (
        "import os, signal, time\nfrom larmor.cluster.worker.stopping import StopRequest\n"
        "with StopRequest(grace_seconds=0.5).listening(signal.SIGTERM):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], env=environment(), timeout=30, check=False)
    assert done.returncode == 128 + signal.SIGTERM


def test_an_order_lies_in_the_runs_folder(tmp_path: Path) -> None:
    store = ObjectStore(str(tmp_path))
    assert stop_order(store) is None
    order_stop(store, "because")
    assert stop_order(store) == "because"
    withdraw_stop_order(store)
    withdraw_stop_order(store)
    assert stop_order(store) is None


def test_stopped_is_no_failure() -> None:
    stopped = Stopped("stopped after step 3", signal.SIGINT)
    assert not isinstance(stopped, Exception), "a sweep would record it as a failed trial"
    assert (stopped.code, str(stopped)) == (130, "stopped after step 3")


class AskedWorker(RunWorker):
    """Is asked to stop during step 3."""

    def progress(self, step: int, phase: str) -> None:
        super().progress(step, phase)
        if (step, phase) == (2, "generator"):
            self.request.ask("a test")


def test_a_notice_is_asked_for_now_and_then_and_becomes_the_reason(tmp_path: Path) -> None:
    answers = ["the node goes away"]
    worker = RunWorker(
        Ranks(), RunFolder(str(tmp_path)), TrainingConfig(), torch.device("cpu"), notice=lambda: answers.pop()
    )
    with worker:
        assert worker.should_stop()
        assert worker.request.reason == "the node goes away"
        assert worker.should_stop(), "it stays so, and nobody asks again"
    assert answers == []


def test_stopped_training_goes_on_exactly(kspace_url: str, tmp_path: Path) -> None:  # noqa: F811
    torch.set_num_threads(1)
    experiment = tiny(kspace_url, "training.num_steps=6", "training.log_every=4", "training.validate_every=4")
    whole = trained(experiment, RunFolder(str(tmp_path / "whole")))
    broken = RunFolder(str(tmp_path / "broken"))
    with AskedWorker(Ranks(), broken, experiment.training, torch.device("cpu")) as asked:
        assert train(experiment, asked) is False
    latest = broken.latest()
    assert latest is not None
    assert latest.step == 3
    assert [row["step"] for row in broken.history()] == [1, 2, 3]
    assert not any(name.startswith("val/") for name in latest.metrics), "there is no time to validate"
    with RunWorker(Ranks(), broken, experiment.training, torch.device("cpu")) as worker:
        assert train(experiment, worker) is True
    assert broken.history() == whole.history()
    assert all(np.isfinite(row["loss"]) for row in broken.history())


def test_an_order_ends_a_local_training(kspace_url: str, tmp_path: Path) -> None:  # noqa: F811
    experiment = tiny(kspace_url, "training.num_steps=100000", "training.validate_every=100000")
    run = RunFolder(str(tmp_path / unique_name("ordered")))

    def order() -> None:
        while not run.store.list("heartbeats"):  # it has begun, and withdrawn what was left of earlier orders
            time.sleep(0.05)
        order_stop(run.store, "an order")

    thread = threading.Thread(target=order)
    thread.start()
    with pytest.raises(Stopped, match=r"stopped after step \d+ \(an order\); the same command resumes it"):
        train_locally(experiment, run, "cpu")
    thread.join()
    latest = run.latest()
    assert latest is not None
    assert latest.step == len(run.history())


def test_all_ranks_stop_at_one_step_and_one_rank_goes_on(kspace_url: str, tmp_path: Path) -> None:  # noqa: F811
    """Only the last of two ranks is asked. Then a single one takes the training over, ZeRO state and all.

    The content term outweighs the critic, whose scores depend on the rounding of the first steps.
    """
    torch.set_num_threads(1)
    engine = ("training.backend=deepspeed", "training.zero_stage=2", "critic_optimizer.name=rmsprop", "loss.a=10000")
    schedule = ("training.num_steps=12", "training.log_every=4", "training.validate_every=12")
    experiment = tiny(kspace_url, *engine, *schedule, "training.checkpoint_every=12")
    whole = trained(experiment, RunFolder(str(tmp_path / "whole")))
    broken = RunFolder(str(tmp_path / "broken"))
    (tmp_path / "experiment.yaml").write_text(dump_yaml(experiment))
    program = [sys.executable, str(Path(__file__).with_name("ranks_program.py"))]
    settings = [str(tmp_path / "rendezvous"), str(tmp_path / "experiment.yaml"), broken.url, "5"]
    ranks = [
        subprocess.Popen(
            [*program, str(rank), "2", *settings],
            env=environment(OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for rank, process in enumerate(ranks):
        output, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors[-4000:]
        # asked during step 5, told to the others at its end, known to all at the end of the next
        assert f"rank {rank} finished=False after step 6" in output
    latest = broken.latest()
    assert latest is not None
    assert latest.step == 6
    assert [row["step"] for row in broken.history()] == list(range(1, 7))
    with RunWorker(Ranks(), broken, experiment.training, torch.device("cpu")) as worker:
        assert train(experiment, worker) is True
    ours, theirs = ([row["normalized_root_mse"] for row in run.history()] for run in (broken, whole))
    assert len(ours) == len(theirs) == 12
    assert ours != theirs, "sums over two ranks are rounded in another order"
    assert ours == pytest.approx(theirs, rel=1e-3)
