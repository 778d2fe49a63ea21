"""`rayjob.yaml`: valid for KubeRay and Kubernetes, pinned like the rest, and without a secret."""

from __future__ import annotations

import copy
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import typer
import yaml

from larmor.cli import main
from larmor.cluster.experiments.experiment import Experiment
from larmor.tuning.search.experiment import load_sweep_experiment

ROOT = Path(__file__).resolve().parents[3]
SCHEMA = yaml.safe_load(Path(__file__).with_name("rayjob-schema.yaml").read_text())


@pytest.fixture
def job() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "rayjob.yaml").read_text())


def pod_specs(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every pod's specification by what it is for."""
    cluster = job["spec"]["rayClusterSpec"]
    templates = {"submitter": job["spec"]["submitterPodTemplate"], "head": cluster["headGroupSpec"]["template"]}
    templates |= {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    return {name: template["spec"] for name, template in templates.items()}


def check(job: dict[str, Any]) -> None:
    """Raises one of two `ValidationError`s: KubeRay's fields by our schema, pods by Kubernetes' own."""
    jsonschema.validate(job, SCHEMA)
    for name, spec in pod_specs(job).items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
        kubernetes_validate.validate(pod, "1.31", strict=True)


def test_kuberay_and_kubernetes_accept_the_file(job: dict[str, Any]) -> None:
    check(job)
    assert list(pod_specs(job)) == ["submitter", "head", "gpu-worker"]


def worker(job: dict[str, Any]) -> Any:
    return job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda job: job.update(kind="RayJobs"),
        lambda job: job["metadata"].update(name="Upper"),
        lambda job: job["spec"].update(entryPoint="python"),
        lambda job: job["spec"].update(backoffLimit="2"),
        lambda job: job["spec"]["rayClusterSpec"].update(auth={"mode": "token"}),
        lambda job: job["spec"]["rayClusterSpec"]["authOptions"].update(mode="Token"),
        lambda job: job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
        lambda job: worker(job).pop("minReplicas"),
        lambda job: worker(job).update(maxReplicas="8"),
        lambda job: worker(job)["template"]["spec"].update(nodeselector={}),
        lambda job: worker(job)["template"]["spec"]["containers"][0].pop("name"),
        lambda job: worker(job)["template"]["spec"]["volumes"][0].update(emptydir={}),
    ],
)
def test_a_broken_copy_is_refused(job: dict[str, Any], spoil: Callable[[Any], object]) -> None:
    broken = copy.deepcopy(job)
    spoil(broken)
    assert broken != job
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check(broken)


def test_every_pod_runs_the_image_of_the_pinned_ray_and_python(job: dict[str, Any]) -> None:
    images = {container["image"] for spec in pod_specs(job).values() for container in spec["containers"]}
    assert len(images) == 1
    assert not images.pop().endswith(":latest")
    (base,) = re.findall(r"^FROM (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert base == yaml.safe_load((ROOT / "ray-cluster.yaml").read_text())["docker"]["image"]
    (ray,) = re.findall(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert re.fullmatch(rf"rayproject/ray:{re.escape(ray)}-py311-gpu", base)
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == ray


def test_workers_come_from_zero_and_hold_what_the_experiment_asks_for(job: dict[str, Any]) -> None:
    program, _, module, command, *arguments = shlex.split(job["spec"]["entrypoint"])
    assert (program, module, command) == ("python", "larmor", "train")
    parameters = typer.main.get_command(main.app).commands["train"].make_context("larmor", arguments).params  # type: ignore[attr-defined]
    experiment: Experiment = load_sweep_experiment(parameters["experiment"], parameters["overrides"])
    assert parameters["address"] == "auto"
    group = worker(job)
    assert (group["replicas"], group["minReplicas"]) == (0, 0)
    assert group["maxReplicas"] >= experiment.cluster.num_workers
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert int(limits["cpu"]) >= experiment.cluster.cpus_per_worker
    assert int(limits["nvidia.com/gpu"]) == 1
    assert experiment.cluster.wait_seconds >= 600, "a node takes minutes to come"
    assert job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_the_token_is_asked_for_and_comes_from_a_secret(job: dict[str, Any]) -> None:
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token", "secretName": "larmor-ray-token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    for spec in pod_specs(job).values():
        names = [variable["name"] for container in spec["containers"] for variable in container.get("env", [])]
        assert [name for name in names if re.search("KEY|TOKEN|SECRET|PASSWORD", name)] == []
