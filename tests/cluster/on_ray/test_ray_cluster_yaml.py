"""`ray-cluster.yaml`: valid for Ray, and as careful as README says."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

FILE = Path(__file__).resolve().parents[3] / "ray-cluster.yaml"


@pytest.fixture(scope="module")
def schema() -> Any:
    """Ray's own description of a cluster file."""
    package = find_spec("ray")
    assert package is not None
    assert package.origin is not None
    return json.loads((Path(package.origin).parent / "autoscaler" / "ray-schema.json").read_text())


@pytest.fixture
def cluster() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text())


def node_types(cluster: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The head's type, and the others."""
    types = dict(cluster["available_node_types"])
    head = types.pop(cluster["head_node_type"])
    return head, list(types.values())


def test_ray_accepts_the_file(schema: Any, cluster: dict[str, Any]) -> None:
    jsonschema.validate(cluster, schema)
    _, workers = node_types(cluster)
    assert workers
    assert cluster["max_workers"] >= max(worker["max_workers"] for worker in workers)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda cluster: cluster.pop("cluster_name"),
        lambda cluster: cluster.update(max_workers="many"),
        lambda cluster: cluster.update(head_start_ray_command=["ray start"]),
        lambda cluster: cluster["provider"].pop("type"),
        lambda cluster: cluster["available_node_types"]["gpu_worker"].update(min_workers="none"),
        lambda cluster: cluster["available_node_types"]["gpu_worker"].update(spot=True),
        lambda cluster: cluster["available_node_types"]["head"].pop("node_config"),
    ],
)
def test_ray_refuses_a_broken_copy(schema: Any, cluster: dict[str, Any], spoil: Callable[[Any], object]) -> None:
    broken = copy.deepcopy(cluster)
    spoil(broken)
    assert broken != cluster
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, schema)


def test_the_head_is_on_demand_and_workers_are_spot_from_zero(cluster: dict[str, Any]) -> None:
    head, workers = node_types(cluster)
    assert "InstanceMarketOptions" not in head["node_config"]
    for worker in workers:
        assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert worker["min_workers"] == 0
        assert worker["max_workers"] > 0
        assert worker["resources"]["GPU"] >= 1


def test_disks_are_encrypted_and_metadata_ask_for_a_session(cluster: dict[str, Any]) -> None:
    head, workers = node_types(cluster)
    for node in (head, *workers):
        config = node["node_config"]
        assert config["MetadataOptions"]["HttpTokens"] == "required"
        assert [disk["Ebs"]["Encrypted"] for disk in config["BlockDeviceMappings"]] == [True]
        assert config["IamInstanceProfile"]["Name"], "access to the bucket by a role, not by keys"


def test_every_node_runs_the_image_of_the_pinned_ray_and_installs_the_pins(cluster: dict[str, Any]) -> None:
    (ray,) = re.findall(r"^ray==(\S+)$", (FILE.parent / "constraints.txt").read_text(), re.MULTILINE)
    assert cluster["docker"]["image"].startswith(f"rayproject/ray:{ray}-py3")
    assert any("-c ~/larmor/constraints.txt ~/larmor" in command for command in cluster["setup_commands"])
    assert cluster["file_mounts"]["/home/ray/larmor"] == "."


def start_commands(cluster: dict[str, Any]) -> list[str]:
    commands = [*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]]
    return [command for command in commands if "ray start" in command]


def test_both_start_with_a_token_and_the_dashboard_on_loopback(cluster: dict[str, Any]) -> None:
    head, worker = start_commands(cluster)
    assert "--head" in head.split()
    assert "--head" not in worker.split()
    for command in (head, worker):
        assert re.search(r"RAY_AUTH_MODE=token \S*ray start", command)
    assert "--dashboard-host=127.0.0.1" in head.split()
    assert "0.0.0.0" not in FILE.read_text()


def secrets_in(text: str) -> list[str]:
    """Things that look like an AWS key, a private key, or a long random string."""
    patterns = [
        r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
        r"PRIVATE KEY",
        r"(?i)secret_?access_?key",
        r"(?i)(?:password|auth_token)\s*[:=]\s*[^\s~/]\S+",
        r"\b[0-9a-fA-F]{32,}\b",
        r"(?<![\w/+])[A-Za-z0-9/+]{40}(?![\w/+])",
    ]
    return [found for pattern in patterns for found in re.findall(pattern, text)]


def test_no_secret_stands_in_the_file() -> None:
    text = FILE.read_text()
    assert secrets_in(text) == []
    for secret in ("AKIAABCDEFGHIJKLMNOP", "auth_token: hunter2", "0123456789abcdef" * 4, "aws_secret_access_key: x"):
        assert secrets_in(f"{text}\n{secret}\n"), "such a one would be found"
