"""Asks a cluster for GPU workers as a training does, holds them for a moment, and says where they were.

Arguments: address, number of workers, CPUs of each.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from larmor.cluster.on_ray.ray_cluster import connected, require_resources, worker_bundle


def living_workers() -> int:
    import ray

    return sum(node["Alive"] and "GPU" in node["Resources"] for node in ray.nodes())


def main(address: str, num_workers: int, cpus: int) -> None:
    with connected(address):
        import ray

        print("before", living_workers(), flush=True)
        bundle: dict[str, Any] = worker_bundle(cpus, use_gpu=True)
        require_resources([bundle] * num_workers, wait_seconds=90)

        @ray.remote(num_cpus=bundle["CPU"], num_gpus=bundle["GPU"])
        class Worker:
            def node(self) -> str:
                return ray.get_runtime_context().get_node_id()

        actor: Any = Worker  # what Ray made of the class
        workers = [actor.remote() for _ in range(num_workers)]
        nodes = ray.get([worker.node.remote() for worker in workers], timeout=60)
        print("nodes", len(set(nodes)), flush=True)
        del workers
        for _ in range(600):
            if living_workers() == 0:
                break
            time.sleep(0.1)
        print("after", living_workers(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
