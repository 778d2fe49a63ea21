"""A training or a sweep as manifests of Kubernetes: a ConfigMap with the experiment, and the RayJob that runs it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

import yaml

from larmor.cluster.experiments.experiment import Experiment
from larmor.cluster.on_ray.jobs import job_name
from larmor.storage.objects.default_store import EMBEDDED_BUCKET
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.urls import is_remote

Manifest = dict[str, Any]
_NODE_SECONDS = 900  # that a GPU node may take to come
_MOUNT = "/etc/larmor"
_LONGEST_NAME = 47  # KubeRay appends to it
_UNPRIVILEGED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


@dataclass(frozen=True)
class RayJobOptions:
    """What the manifests say beside the experiment.

    `workers`: pods, each for one worker; None: what the experiment asks for. `memory`: of each such pod. `endpoint`: of
    an S3 store that is not AWS. `node_selector`: labels of the nodes that the workers' pods may run on.
    """

    image: str
    queue: str | None = None
    priority: str | None = None
    workers: int | None = None
    memory: str = "32Gi"
    service_account: str = "larmor"
    token_secret: str = "larmor-ray-token"
    region: str | None = None
    endpoint: str | None = None
    node_selector: Mapping[str, str] = field(default_factory=dict)


def rayjob_manifests(
    kind: Literal["train", "sweep"], experiment: Experiment, workers: int, options: RayJobOptions
) -> list[Manifest]:
    """The ConfigMap and the RayJob (ray.io/v1, KubeRay 1.5.1 or newer).

    Raises `InputError` for data or results that a pod cannot reach, code that is not in the image, an image without a
    version, or a name that Kubernetes does not take.
    """
    _check(experiment, options)
    name = _kubernetes_name(job_name(kind, experiment.name))
    waiting = max(experiment.cluster.wait_seconds, _NODE_SECONDS)
    cluster = experiment.cluster.model_copy(update={"wait_seconds": waiting})
    content = experiment.model_copy(update={"cluster": cluster}).model_dump(mode="json")
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name},
        "data": {"experiment.yaml": yaml.safe_dump(content, sort_keys=False)},
    }
    labels = {}
    if options.queue:
        labels["kueue.x-k8s.io/queue-name"] = options.queue
        if options.priority:
            labels["kueue.x-k8s.io/priority-class"] = options.priority
    job = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": name} | ({"labels": labels} if labels else {}),
        "spec": _job_spec(kind, name, experiment, workers, options),
    }
    return [config_map, job]


def _job_spec(kind: str, name: str, experiment: Experiment, workers: int, options: RayJobOptions) -> Manifest:
    submitter = {"name": "submitter", "image": options.image, "resources": _resources("500m", "1Gi")}
    # Kueue starts and stops the whole cluster: it admits a size that is known, so there is no autoscaler
    size = {} if options.queue else _AUTOSCALER
    return {
        "entrypoint": f"python -m larmor {kind} {_MOUNT}/experiment.yaml --address auto",
        **({"suspend": True} if options.queue else {}),
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 600,
        "backoffLimit": 2,  # a new cluster, after the head was lost; the training resumes from its last checkpoint
        "submitterPodTemplate": {"spec": {"restartPolicy": "Never", "containers": [submitter]}},
        "rayClusterSpec": {
            "rayVersion": _installed_ray(),
            "authOptions": {"mode": "token", "secretName": options.token_secret},
            **size,
            "headGroupSpec": {
                "serviceType": "ClusterIP",
                "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
                "template": {"spec": _head(name, options)},
            },
            "workerGroupSpecs": [
                {
                    "groupName": "gpu-worker" if experiment.cluster.use_gpu else "worker",
                    "replicas": workers if options.queue else 0,
                    "minReplicas": workers if options.queue else 0,
                    "maxReplicas": workers,
                    "rayStartParams": {},
                    "template": {"spec": _worker(experiment, options)},
                }
            ],
        },
    }


_AUTOSCALER: Manifest = {
    "enableInTreeAutoscaling": True,
    "autoscalerOptions": {"version": "v2", "idleTimeoutSeconds": 300},
}


def _head(name: str, options: RayJobOptions) -> Manifest:
    container = {
        "name": "ray-head",
        "image": options.image,
        "env": _environment(options),
        "securityContext": _UNPRIVILEGED,
        "resources": _resources("2", "8Gi"),
        "volumeMounts": [{"name": "experiment", "mountPath": _MOUNT, "readOnly": True}],
    }
    volumes = [{"name": "experiment", "configMap": {"name": name}}]
    return _pod(options) | {"containers": [container], "volumes": volumes}


def _worker(experiment: Experiment, options: RayJobOptions) -> Manifest:
    resources = _resources(str(experiment.cluster.cpus_per_worker), options.memory, experiment.cluster.use_gpu)
    container = {
        "name": "ray-worker",
        "image": options.image,
        "env": _environment(options),
        "securityContext": _UNPRIVILEGED,
        "resources": resources,
        "volumeMounts": [{"name": "shared-memory", "mountPath": "/dev/shm"}],
    }
    pod = _pod(options)
    if options.node_selector:
        pod["nodeSelector"] = dict(options.node_selector)
    if experiment.cluster.use_gpu:
        pod["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    return pod | {
        "terminationGracePeriodSeconds": max(120, experiment.cluster.grace_seconds + 30),
        "containers": [container],
        "volumes": [{"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}}],
    }


def _pod(options: RayJobOptions) -> Manifest:
    pod: Manifest = {"serviceAccountName": options.service_account}
    if options.priority and not options.queue:
        pod["priorityClassName"] = options.priority
    return pod


def _environment(options: RayJobOptions) -> list[Manifest]:
    values = {"AWS_REGION": options.region, "AWS_ENDPOINT_URL": options.endpoint}
    return [{"name": name, "value": value} for name, value in values.items() if value]


def _resources(cpu: str, memory: str, gpu: bool = False) -> Manifest:
    amounts = {"cpu": cpu, "memory": memory} | ({"nvidia.com/gpu": "1"} if gpu else {})
    return {"requests": amounts, "limits": dict(amounts)}


def _installed_ray() -> str:
    from importlib.metadata import version

    return version("ray")


def _kubernetes_name(name: str) -> str:
    found = re.sub(r"[._]", "-", name.lower())
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", found) or len(found) > _LONGEST_NAME:
        raise InputError(
            f"name={name}: Kubernetes takes at most {_LONGEST_NAME} letters, digits and '-', a letter first; "
            "choose another name=…"
        )
    return found


def _check(experiment: Experiment, options: RayJobOptions) -> None:
    for key, url in (("data.url", experiment.data.url), ("output_url", experiment.output_url)):
        place = urlsplit(url)
        if not is_remote(url):
            raise InputError(
                f"{key}={url}: a pod does not see this machine's files; name a place in your bucket, s3://…"
            )
        if place.scheme == "s3" and place.netloc == EMBEDDED_BUCKET and not options.endpoint:
            raise InputError(
                f"{key}={url}: the bucket '{EMBEDDED_BUCKET}' is that of the embedded store, which listens on this "
                "machine alone; name your own bucket, or the store that has this one with --endpoint-url"
            )
    if experiment.code.paths:
        raise InputError(
            f"code={[str(path) for path in experiment.code.paths]}: a manifest carries no code; install the package in "
            "the image and leave code out"
        )
    if not re.fullmatch(r"[1-9]\d*(Mi|Gi|Ti|M|G|T)", options.memory):
        raise InputError(f"--memory {options.memory}: expected an amount with its unit, such as 32Gi or 512Mi")
    reference = options.image.rpartition("/")[2]
    version = reference.partition("@")[2] or reference.partition(":")[2]
    if version in ("", "latest"):
        raise InputError(
            f"--image {options.image}: names no version, so that pods may run different ones; write IMAGE:TAG or "
            "IMAGE@sha256:DIGEST"
        )
