"""Faults of a Ray cluster: its workers, nodes, head and driver. Each: (training, random source) → what was done."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psutil
import requests

from larmor.cluster.runs.checkpoint import Checkpoint
from tests.faults.scene import Broken, Scene, Training, moment
from tests.ray_head import RAY, RayHead, another_node, ray_head
from tests.workbench import environment


class RayCluster:
    """A head without processors and two nodes with one each, all of which can be lost and come again."""

    def __init__(self) -> None:
        self._undo = contextlib.ExitStack()
        self._nodes: list[contextlib.ExitStack] = []

    def __enter__(self) -> RayCluster:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        self.head: RayHead = self._undo.enter_context(ray_head(("--num-cpus=0",)))
        while len(self.nodes()) < 1:
            time.sleep(0.5)
        for _ in range(2):
            self.add_node()

    def stop(self) -> None:
        """Everything at once, the head too."""
        self._undo.close()
        while self._nodes:
            self._nodes.pop().close()

    def add_node(self) -> None:
        """Returns when it is there. Raylets of one machine may take each other's ports: then once more."""
        wanted = len(self._nodes) + 2  # with the head
        for _ in range(3):
            node = contextlib.ExitStack()
            node.enter_context(another_node(self.head, "--num-cpus=1"))
            for _ in range(120):
                if len(self.nodes()) >= wanted:
                    self._nodes.append(node)
                    return
                time.sleep(0.5)
            node.close()
        raise Broken("a node did not come")

    def nodes(self) -> list[str]:
        """Ids of the nodes that Ray takes for alive, the head first."""
        token = {"Authorization": f"Bearer {self.head.token.read_text()}"}
        answer = requests.get(f"{self.head.dashboard}/nodes?view=summary", headers=token, timeout=10).json()
        alive = [node["raylet"] for node in answer["data"]["summary"] if node["raylet"].get("state") == "ALIVE"]
        return [node["nodeId"] for node in sorted(alive, key=lambda node: not node["isHeadNode"])]

    def lose_node(self) -> None:
        """All its processes at once, as if the power had gone. Returns when Ray has noticed."""
        self._nodes.pop().close()
        while len(self.nodes()) > len(self._nodes) + 1:
            time.sleep(0.2)

    @property
    def variables(self) -> dict[str, str]:
        return self.head.known()

    def workers(self) -> list[psutil.Process]:
        """The processes that train, of all nodes."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if "RayTrainWorker" in " ".join(process.cmdline()) and self._is_ours(process):
                    found.append(process)
        return sorted(found, key=lambda process: process.pid)

    def _is_ours(self, process: psutil.Process) -> bool:
        return process.environ().get("RAY_AUTH_TOKEN_PATH") == str(self.head.token)


Fault = Callable[[RayCluster, Training, random.Random], str]


def ray_training(scene: Scene, cluster: RayCluster, name: str, workers: str = "2", *more: str) -> Training:
    arguments = (f"cluster.num_workers={workers}", *more, "--address", cluster.head.address, "cluster.wait_seconds=120")
    return scene.training(name, *arguments, **cluster.variables)


def worker_killed(cluster: RayCluster, training: Training, source: random.Random) -> str:
    with training.attempt() as process:
        step = training.wait_for_step(moment(source), process)
        time.sleep(source.uniform(0, 0.3))
        source.choice(cluster.workers()).kill()
        training.wait_for_end(process)
    return f"kill -9 of a worker after step {step}"


def worker_frozen(cluster: RayCluster, training: Training, source: random.Random) -> str:
    with training.attempt() as process:
        step = training.wait_for_step(moment(source), process)
        frozen = source.choice(cluster.workers())
        frozen.send_signal(signal.SIGSTOP)
        training.wait_for_end(process)
    reasons = [text for text in training.run.warnings() if f"process {frozen.pid} on" in text]
    if not any("no sign of life" in text for text in reasons):
        raise Broken(f"the frozen process {frozen.pid} was not named: {training.run.warnings()}")
    return f"SIGSTOP of a worker after step {step}: named"


def worker_told_to_stop(cluster: RayCluster, training: Training, source: random.Random) -> str:
    with training.attempt() as process:
        step = training.wait_for_step(moment(source), process)
        source.choice(cluster.workers()).terminate()
        training.wait_for_end(process)
    if "resuming as soon as there is room" not in training.log():
        raise Broken(f"it did not stop and go on: {training.end_of_log()}")
    return f"SIGTERM to a worker after step {step}"


def node_drained(cluster: RayCluster, training: Training, source: random.Random) -> str:
    """Ray's own notice that a node is to be taken away; it goes, and another one comes."""
    with training.attempt() as process:
        step = training.wait_for_step(moment(source, last=20), process)
        node = source.choice(cluster.nodes()[1:])
        options = ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot", "--deadline-remaining-seconds=60"]
        drain = [RAY, "drain-node", f"--address={cluster.head.address}", f"--node-id={node}", *options]
        subprocess.run(drain, env=environment(**cluster.variables), check=True, capture_output=True, timeout=60)
        cluster.add_node()
        training.wait_for_end(process)
    if "Ray takes the nodes of ranks" not in training.log():
        raise Broken(f"the notice was not heard: {training.end_of_log()}")
    return f"node drained after step {step}"


def node_lost(cluster: RayCluster, training: Training, source: random.Random) -> str:
    """The run waits for a node to come again."""
    with training.attempt() as process:
        step = training.wait_for_step(moment(source), process)
        cluster.lose_node()
        time.sleep(source.uniform(0, 5))
        cluster.add_node()
        training.wait_for_end(process)
    return f"node lost after step {step}, and added again"


def node_lost_and_found(cluster: RayCluster, training: Training, source: random.Random) -> str:
    """With a range of workers: goes on with one, and again with two when there is room."""
    with training.attempt() as process:
        step = training.wait_for_step(moment(source, first=9, last=14), process)
        cluster.lose_node()
        alone = training.wait_for_step(step + 4, process)
        cluster.add_node()
        training.wait_for_end(process)
    sizes = [_num_writers(item) for item in training.run.checkpoints()]
    if sizes[-1] != 2 or 1 not in sizes:
        raise Broken(f"the checkpoints were written by {sizes} workers: {training.end_of_log()}")
    return f"node lost after step {step}, added again after step {alone}"


def _num_writers(checkpoint: Checkpoint) -> int:
    return sum("generator/state-" in name for name in checkpoint.files)


def driver_killed(cluster: RayCluster, training: Training, source: random.Random) -> str:
    with training.attempt() as process:
        step = training.wait_for_step(moment(source), process)
        process.kill()
    training.finish()
    return f"kill -9 of the driver after step {step}"


def driver_told_to_stop(cluster: RayCluster, training: Training, source: random.Random) -> str:
    with training.attempt() as process:
        step = training.wait_for_step(moment(source, last=24), process)
        process.terminate()
        training.wait_for_end(process, [128 + signal.SIGTERM])
    latest = training.run.latest()
    if latest is None or latest.step < step or latest.step != len(training.run.history()):
        raise Broken(f"stopped after step {step} or later, but the checkpoint is {latest}")
    training.finish()
    return f"SIGTERM to the driver after step {step}, saved step {latest.step}"


def head_lost(cluster: RayCluster, training: Training, source: random.Random) -> str:
    """The whole cluster goes, another one comes, and the same command goes on there."""
    with training.attempt() as process:
        step = training.wait_for_step(moment(source), process)
        cluster.stop()
        process.kill()  # Ray would look for its head for minutes
    cluster.start()
    moved = ray_training(training.scene, cluster, training.name)
    training.arguments, training.variables = moved.arguments, moved.variables
    training.finish()
    return f"head and nodes lost after step {step}, started anew"


@dataclass(frozen=True)
class Plan:
    """How a fault is run: `workers` is what the experiment says, `more` what else it says."""

    inject: Fault
    seeds: tuple[int, ...]
    workers: str = "2"
    more: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether the number of workers stays the same."""
        return self.workers == "2"


# the step takes longer, so that there is something left to do when the second node is back
RANGE = ("{min: 1, max: 2}", ("training.global_batch_size=64",))

RAY_FAULTS: dict[str, Plan] = {
    "worker killed": Plan(worker_killed, (21, 22, 23)),
    "worker frozen": Plan(worker_frozen, (24, 25)),
    "worker told to stop (SIGTERM)": Plan(worker_told_to_stop, (26, 27)),
    "node drained (Ray's notice)": Plan(node_drained, (28,)),
    "node lost, comes again": Plan(node_lost, (29,)),
    "node lost, one worker, two again": Plan(node_lost_and_found, (30, 31), *RANGE),
    "driver killed": Plan(driver_killed, (32, 33)),
    "driver told to stop (SIGTERM)": Plan(driver_told_to_stop, (34,)),
    "head restarted": Plan(head_lost, (35,)),
}


@contextlib.contextmanager
def ray_cluster() -> Iterator[RayCluster]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with RayCluster() as cluster:
        yield cluster
