"""The node types of `ray-cluster.yaml`, grown and shrunk by Ray's own autoscaler; only the machines are pretended."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.ray_head import free_port, ray_head
from tests.workbench import REPOSITORY, environment

PROGRAM = Path(__file__).with_name("autoscaled_program.py")


def pretended(cluster: dict, port: int) -> dict:
    """The cluster file with Ray's provider of pretended nodes for AWS, and an idle time of seconds."""
    types = {name: {**kind, "node_config": {}} for name, kind in cluster["available_node_types"].items()}
    head = {**types.pop(cluster["head_node_type"]), "max_workers": 0}
    return {
        "cluster_name": cluster["cluster_name"],
        "max_workers": cluster["max_workers"],
        "idle_timeout_minutes": 0.05,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": f"127.0.0.1:{port}",
            "launch_multiple": True,
            "use_node_id_as_ip": True,  # all of them share this machine's address
        },
        "available_node_types": {**types, "ray.head.default": head},
        "head_node_type": "ray.head.default",
        # nothing is installed on a machine that is not there
        **{key: {} for key in ("auth", "docker", "file_mounts")},
        **{key: [] for key in ("cluster_synced_files", "initialization_commands", "setup_commands")},
        **{f"{node}_{key}": [] for node in ("head", "worker") for key in ("setup_commands", "start_ray_commands")},
    }


@pytest.mark.slow
def test_three_workers_come_when_they_are_asked_for_and_go_when_they_are_idle(tmp_path: Path) -> None:
    cluster = yaml.safe_load((REPOSITORY / "ray-cluster.yaml").read_text())
    port = free_port()
    config = tmp_path / "autoscaling.json"
    config.write_text(json.dumps(pretended(cluster, port)))
    head = cluster["available_node_types"][cluster["head_node_type"]]
    options = (f"--num-cpus={head['resources']['CPU']}", f"--autoscaling-config={config}")
    cpus = str(cluster["available_node_types"]["gpu_worker"]["resources"]["CPU"])
    with ray_head(options, port, RAY_FAKE_CLUSTER="1", AUTOSCALER_UPDATE_INTERVAL_S="1") as ray:
        done = subprocess.run(
            [sys.executable, str(PROGRAM), ray.address, "3", cpus],
            env=environment(**ray.known()),
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.splitlines() == ["before 0", "nodes 3", "after 0"]
