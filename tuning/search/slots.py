"""The slots of a sweep, as its driver sees them."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from larmor.cluster.experiments.experiment import Experiment, dump_for_workers
from larmor.cluster.on_ray.ray_train import fit_workers
from larmor.tuning.search.experiment import SweepConfig
from larmor.tuning.search.sweep_folder import SweepFolder


@dataclass(frozen=True)
class SlotConfig:
    """What the workers of a slot need to know. `desk` is the name of an actor, `experiment` is dumped for JSON."""

    experiment: Mapping[str, Any]
    sweep_url: str
    lease: int | None
    desk: str
    num_seeds: int
    start_seeds: int
    slot: str = ""


class Slots:
    """The slots of a sweep, each a Ray Train run in a thread of this process."""

    def __init__(self, base: Experiment, folder: SweepFolder, config: SweepConfig, desk_name: str, count: int) -> None:
        self._base = base
        content = dump_for_workers(base)
        self._config = SlotConfig(content, folder.url, folder.lease, desk_name, config.seeds, config.start_seeds)
        self._desk_name = desk_name
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
            fit_workers(
                serve, dataclasses.replace(self._config, slot=slot), self._base.cluster, slot, told, max_failures=-1
            )
        except Exception as error:
            reason = str(error)[-2000:]
        ray.get(desk.lost.remote(slot, reason))
        with self._lock:
            self._left -= 1
            if not self._left:
                ray.get(desk.give_up.remote(reason))


def serve(config: SlotConfig) -> None:
    """What Ray Train runs in each worker process of a slot; imported there, for it imports torch."""
    from larmor.tuning.search import slot

    slot.serve(config)
