"""The slots of a sweep, as its driver sees them."""

from __future__ import annotations

import tempfile
import threading
import time
from typing import Any

from cluster.experiment import Experiment
from cluster.ray_cluster import worker_bundle
from tuning.sweep_folder import SweepFolder


class Slots:
    """The slots of a sweep, each a Ray Train run in a thread of this process."""

    def __init__(self, base: Experiment, folder: SweepFolder, num_seeds: int, desk_name: str, count: int) -> None:
        self._base = base
        self._config: dict[str, Any] = {"sweep_url": folder.url, "lease": folder.lease, "num_seeds": num_seeds}
        self._config["desk"] = desk_name
        self._desk_name = desk_name
        self._config["experiment"] = base.model_dump(mode="json", include=set(Experiment.model_fields))
        self._left, self._lock = count, threading.Lock()
        names = [f"slot-{number}" for number in range(count)]
        self._threads = [threading.Thread(target=self._run, args=(name,), name=name, daemon=True) for name in names]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self, seconds: float) -> None:
        """Give the slots time to leave; what is left ends with the connection to the cluster."""
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self, slot: str) -> None:
        import ray
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        from tuning.loss_of_workers import TellDesk
        from tuning.slot import serve

        told: Any = TellDesk(self._desk_name, slot)
        cluster, desk = self._base.cluster, ray.get_actor(self._desk_name)
        reason = "its workers ended"
        with tempfile.TemporaryDirectory(prefix="larmor-ray-") as scratch:
            trainer = TorchTrainer(
                serve,
                train_loop_config={**self._config, "slot": slot},
                scaling_config=ScalingConfig(
                    num_workers=cluster.num_workers,
                    use_gpu=cluster.use_gpu,
                    resources_per_worker=worker_bundle(cluster.cpus_per_worker, cluster.use_gpu),
                ),
                torch_config=TorchConfig(backend="nccl" if cluster.use_gpu else "gloo"),
                run_config=RunConfig(
                    name=slot,
                    storage_path=scratch,
                    # what bounds the attempts is the desk, for each trial by itself
                    failure_config=FailureConfig(max_failures=-1),
                    callbacks=[told],
                ),
            )
            try:
                trainer.fit()
            except Exception as error:
                reason = str(error)[-2000:]
        ray.get(desk.lost.remote(slot, reason))
        with self._lock:
            self._left -= 1
            if not self._left:
                ray.get(desk.give_up.remote(reason))
