"""`larmor rayjob`, and `larmor kubernetes`, which writes what belongs beside it."""

from __future__ import annotations

import importlib.resources
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import yaml

from larmor.cluster.on_ray.jobs import check_places
from larmor.cluster.on_ray.rayjob import RayJobOptions, rayjob_manifests
from larmor.commands.training import load_experiment
from larmor.storage.objects.errors import InputError

_HEADER = """\
# `{command}` as a RayJob of KubeRay (1.5.1 or newer){queue}.
# `kubectl apply -f` this file: it makes a cluster, {what}, and removes the cluster. Applied again after
# `kubectl delete rayjob {job}`, it resumes.
# It needs the secret of Ray's token, once:
#   kubectl create secret generic {secret} --from-literal=auth_token=$(openssl rand -hex 32)
# and a service account '{account}' that may use the bucket (docs/security.md has the policy); `larmor kubernetes`
# writes one, with what else belongs beside the job. No key is in this file.
"""


def rayjob_yaml(experiment: str, overrides: Sequence[str], run_sweep: bool, options: RayJobOptions) -> str:
    """The manifests of an experiment's training or sweep as YAML, with a header that says what they need.

    Raises `InputError` as `load_experiment`, `check_places` and `rayjob_manifests`.
    """
    config = load_experiment(experiment, overrides)
    check_places(config)
    at_once = (config.sweep.concurrent_trials or config.sweep.num_trials) if run_sweep else 1
    workers = options.workers or config.cluster.most_workers * at_once
    kind: Literal["train", "sweep"] = "sweep" if run_sweep else "train"
    manifests = rayjob_manifests(kind, config if run_sweep else config.training_part(), workers, options)
    header = _HEADER.format(
        job=manifests[1]["metadata"]["name"],
        command=f"larmor {kind} {config.name}",
        queue=f", in Kueue's queue '{options.queue}'" if options.queue else "",
        what="searches" if run_sweep else "trains",
        secret=options.token_secret,
        account=options.service_account,
    )
    return header + "---\n".join(yaml.dump(each, Dumper=_Plain, sort_keys=False, width=120) for each in manifests)


def write_kubernetes(folder: Path) -> None:
    """Write a base for kustomize: namespace, account, network policy, queues of Kueue, monitoring with a dashboard.

    Raises `InputError` if `folder` is there and not empty: it may hold somebody's own quotas.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"--to {folder}: exists and is not an empty folder; name a new one, or remove it first")
    with importlib.resources.as_file(importlib.resources.files("larmor.cluster.on_ray") / "kubernetes") as source:
        shutil.copytree(source, folder, dirs_exist_ok=True)


def labels(pairs: Sequence[str]) -> dict[str, str]:
    """`LABEL=VALUE`, … → a dictionary. Raises `InputError` for anything else."""
    for pair in pairs:
        if not pair.partition("=")[0] or not pair.partition("=")[2]:
            raise InputError(f"--node-selector {pair}: expected LABEL=VALUE, such as karpenter.sh/capacity-type=spot")
    return {pair.partition("=")[0]: pair.partition("=")[2] for pair in pairs}


class _Plain(yaml.SafeDumper):
    """Long texts as blocks, to be read; no anchors."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Plain.add_representer(str, _text)
