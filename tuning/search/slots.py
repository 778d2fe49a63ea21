"""The slots of a sweep, as its driver sees them."""

from __future__ import annotations

import threading
import time
from typing import Any

from larmor.cluster.experiments.experiment import Experiment
from larmor.cluster.on_ray.ray_train import fit_workers
from larmor.tuning.search.experiment import SweepConfig
from larmor.tuning.search.sweep_folder import SweepFolder


class Slots:
    """The slots of a sweep, each a Ray Train run in a thread of this process."""

    def __init__(self, base: Experiment, folder: SweepFolder, config: SweepConfig, desk_name: str, count: int) -> None:
        self._base = base
        self._config: dict[str, Any] = {"sweep_url": folder.url, "lease": folder.lease, "desk": desk_name}
        self._config |= {"num_seeds": config.seeds, "start_seeds": config.start_seeds}
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

        from larmor.tuning.search.loss_of_workers import TellDesk

        desk: Any = ray.get_actor(self._desk_name)
        told, reason = TellDesk(self._desk_name, slot), "its workers ended"
        try:
            # what bounds the attempts is the desk, for each trial by itself
            fit_workers(serve, {**self._config, "slot": slot}, self._base.cluster, slot, told, max_failures=-1)
        except Exception as error:
            reason = str(error)[-2000:]
        ray.get(desk.lost.remote(slot, reason))
        with self._lock:
            self._left -= 1
            if not self._left:
                ray.get(desk.give_up.remote(reason))


def serve(config: dict[str, Any]) -> None:
    """What Ray Train runs in each worker process of a slot; imported there, for it imports torch."""
    from larmor.tuning.search import slot

    slot.serve(config)
