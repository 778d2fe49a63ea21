"""`larmor rayjob`: valid for KubeRay and Kubernetes, pinned like the rest, and without a secret."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from larmor.cluster.on_ray.rayjob import RayJobOptions
from larmor.commands.kubernetes import labels, rayjob_yaml
from larmor.storage.objects.errors import InputError
from larmor.tuning.search.experiment import load_sweep_experiment

ROOT = Path(__file__).resolve().parents[3]
SCHEMA = yaml.safe_load(Path(__file__).with_name("rayjob-schema.yaml").read_text())
IMAGE = "registry.example/larmor@sha256:" + "0" * 64
BUCKET = ("data.url=s3://hospital/heads", "output_url=s3://hospital")


def made(
    *overrides: str, name: str = "paper_256x256", sweep: bool = False, image: str = IMAGE, **options: Any
) -> list[dict[str, Any]]:
    """The ConfigMap and the RayJob that `kubectl apply` would read."""
    text = rayjob_yaml(name, [*BUCKET, *overrides], sweep, RayJobOptions(image, **options))
    return list(yaml.safe_load_all(text))


@pytest.fixture
def job() -> dict[str, Any]:
    return made("cluster.num_workers=8", region="eu-central-1", node_selector={"spot": "true"})[1]


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


@pytest.mark.parametrize(
    "options", [{}, {"queue": "research"}, {"priority": "high"}, {"endpoint": "http://minio:9000"}]
)
@pytest.mark.parametrize("sweep", [False, True])
def test_every_choice_gives_manifests_that_are_accepted(options: dict[str, str], sweep: bool) -> None:
    config_map, job = made(sweep=sweep, name="laptop", **options)
    check(job)
    kubernetes_validate.validate(config_map, "1.31", strict=True)
    (volume,) = pod_specs(job)["head"]["volumes"]
    assert volume["configMap"]["name"] == config_map["metadata"]["name"] == job["metadata"]["name"]


def test_the_experiment_arrives_whole(tmp_path: Path) -> None:
    """What the job reads is what was asked for, but for the time that a node may take to come."""
    config_map, job = made("loss.a=7", "name=Half.Dose_2", name="laptop", sweep=True)
    assert job["metadata"]["name"] == "sweep-half-dose-2"
    assert job["spec"]["entrypoint"] == "python -m larmor sweep /etc/larmor/experiment.yaml --address auto"
    mount = pod_specs(job)["head"]["containers"][0]["volumeMounts"][0]["mountPath"]
    assert mount == "/etc/larmor"
    file = tmp_path / "experiment.yaml"
    file.write_text(config_map["data"]["experiment.yaml"])
    asked = load_sweep_experiment("laptop", [*BUCKET, "loss.a=7", "name=Half.Dose_2", "cluster.wait_seconds=900"])
    assert load_sweep_experiment(str(file), []) == asked


def test_every_pod_runs_the_image_with_the_ray_and_python_that_are_pinned(job: dict[str, Any]) -> None:
    images = {container["image"] for spec in pod_specs(job).values() for container in spec["containers"]}
    assert images == {IMAGE}
    (ray,) = re.findall(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    base = yaml.safe_load((ROOT / "ray-cluster.yaml").read_text())["docker"]["image"]
    assert base == f"rayproject/ray:{ray}-py311-gpu"  # tests/test_image.py has the image of the pods
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == ray


def test_workers_come_from_zero_and_hold_what_the_experiment_asks_for(job: dict[str, Any]) -> None:
    experiment = load_sweep_experiment("paper_256x256", [])
    group = worker(job)
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (0, 0, 8)
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert int(limits["cpu"]) == experiment.cluster.cpus_per_worker
    assert limits["nvidia.com/gpu"] == "1"
    assert group["template"]["spec"]["nodeSelector"] == {"spot": "true"}
    assert job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    on_cpus = worker(made(name="laptop")[1])["template"]["spec"]
    assert "nvidia.com/gpu" not in on_cpus["containers"][0]["resources"]["limits"]


def test_a_sweep_has_room_for_the_trials_that_run_at_once() -> None:
    asked = ("cluster.num_workers={min: 1, max: 2}", "sweep.concurrent_trials=3")
    assert worker(made(*asked, name="laptop", sweep=True)[1])["maxReplicas"] == 6
    assert worker(made(*asked, name="laptop", sweep=True, workers=4)[1])["maxReplicas"] == 4


def test_kueue_admits_a_cluster_of_a_known_size() -> None:
    _, job = made("cluster.num_workers=4", queue="research", priority="high")
    assert job["spec"]["suspend"] is True
    assert job["metadata"]["labels"] == {
        "kueue.x-k8s.io/queue-name": "research",
        "kueue.x-k8s.io/priority-class": "high",
    }
    group = worker(job)
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (4, 4, 4)
    assert "enableInTreeAutoscaling" not in job["spec"]["rayClusterSpec"]
    _, without = made(priority="high")
    assert {spec.get("priorityClassName") for name, spec in pod_specs(without).items() if name != "submitter"} == {
        "high"
    }
    assert "suspend" not in without["spec"]


@pytest.mark.parametrize(
    ("overrides", "options", "said"),
    [
        (["output_url=/results"], {}, "output_url=/results: a pod does not see this machine's files"),
        (["output_url=s3://larmor"], {}, "the bucket 'larmor' is that of the embedded store"),
        (["name=x" + "x" * 60], {}, "at most 47"),
        (["name=0day"], {}, "a letter first"),
        ([], {"image": "registry:5000/larmor"}, "names no version"),
        ([], {"image": "larmor:latest"}, "names no version"),
        ([], {"memory": "32"}, "--memory 32: expected an amount with its unit"),
        (["code=[./mylab]"], {}, "a manifest carries no code"),
    ],
)
def test_what_cannot_run_there_is_refused(overrides: list[str], options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        made(*overrides, **options)


def test_with_an_endpoint_the_bucket_may_have_any_name() -> None:
    _, job = made("output_url=s3://larmor", endpoint="http://minio:9000")
    for name in ("head", "gpu-worker"):
        variables = pod_specs(job)[name]["containers"][0]["env"]
        assert {"name": "AWS_ENDPOINT_URL", "value": "http://minio:9000"} in variables


def test_a_node_selector_is_a_label_with_its_value() -> None:
    assert labels(["karpenter.sh/capacity-type=spot"]) == {"karpenter.sh/capacity-type": "spot"}
    with pytest.raises(InputError, match="--node-selector spot: expected LABEL=VALUE"):
        labels(["spot"])


def test_the_token_is_asked_for_and_comes_from_a_secret(job: dict[str, Any]) -> None:
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token", "secretName": "larmor-ray-token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    for spec in pod_specs(job).values():
        names = [variable["name"] for container in spec["containers"] for variable in container.get("env", [])]
        assert [name for name in names if re.search("KEY|TOKEN|SECRET|PASSWORD", name)] == []
