"""`larmor kubernetes`: valid for Kubernetes, Kueue, Prometheus and Grafana, and in agreement with what Larmor does."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from larmor.cluster.on_ray.rayjob import RayJobOptions
from larmor.cluster.worker.gauges import GAUGES
from larmor.commands.kubernetes import write_kubernetes
from larmor.storage.objects.errors import InputError
from tests.cluster.on_ray.test_rayjob import made, worker

HERE = Path(__file__).parent
SCHEMA = yaml.safe_load((HERE / "kubernetes-schema.yaml").read_text())
ALERTS_TEST = HERE / "alerts-test.yaml"
PROMTOOL = shutil.which("promtool")
OWN_GROUPS = ("kueue.x-k8s.io", "monitoring.coreos.com")
RAY_METRICS = Path(ray.__file__).parent / "dashboard" / "modules" / "reporter" / "reporter_agent.py"

Manifest = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kubernetes") / "larmor"
    write_kubernetes(path)
    return path


def resources(folder: Path) -> list[Path]:
    """The files that kustomize would read, from `folder/kustomization.yaml` on."""
    found: list[Path] = []
    for name in yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]:
        path = folder / name
        found += resources(path) if path.is_dir() else [path]
    return found


@pytest.fixture(scope="module")
def manifests(folder: Path) -> dict[tuple[str, str], Manifest]:
    """(kind, name) → manifest."""
    all_of_them = [item for path in resources(folder) for item in yaml.safe_load_all(path.read_text())]
    found = {(item["kind"], item["metadata"]["name"]): item for item in all_of_them}
    assert len(found) == len(all_of_them)
    return found


@pytest.fixture(scope="module")
def dashboard(folder: Path) -> Manifest:
    content: Manifest = json.loads((folder / "monitoring" / "dashboard.json").read_text())
    return content


def check(manifest: Manifest) -> None:
    if manifest["apiVersion"].split("/")[0] in OWN_GROUPS:
        jsonschema.validate(manifest, SCHEMA)
    else:
        kubernetes_validate.validate(manifest, "1.31", strict=True)


def test_kubernetes_and_the_operators_accept_every_manifest(manifests: dict[tuple[str, str], Manifest]) -> None:
    kinds = {kind for kind, _ in manifests}
    assert kinds >= {"Namespace", "ServiceAccount", "NetworkPolicy", "PriorityClass", "ClusterQueue", "PodMonitor"}
    for manifest in manifests.values():
        check(manifest)


def test_a_misspelt_field_is_refused(manifests: dict[tuple[str, str], Manifest]) -> None:
    for manifest in manifests.values():
        broken = manifest | ({"spec": {**manifest["spec"], "speck": {}}} if "spec" in manifest else {"valeu": 3})
        with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
            check(broken)


def test_kustomize_finds_every_file_and_no_file_is_forgotten(folder: Path) -> None:
    read = {*resources(folder), *folder.rglob("kustomization.yaml")}
    (generated,) = yaml.safe_load((folder / "monitoring" / "kustomization.yaml").read_text())["configMapGenerator"]
    read |= {folder / "monitoring" / name.partition("=")[2] for name in generated["files"]}
    assert read == {path for path in folder.rglob("*") if path.is_file()}
    for path in folder.rglob("kustomization.yaml"):
        content = yaml.safe_load(path.read_text())
        assert (content["apiVersion"], content["kind"]) == ("kustomize.config.k8s.io/v1beta1", "Kustomization")


def test_the_names_are_those_that_jobs_ask_for(manifests: dict[tuple[str, str], Manifest]) -> None:
    options = RayJobOptions("larmor:1", queue="larmor", priority="larmor-high")
    for key in (
        ("ServiceAccount", options.service_account),
        ("LocalQueue", options.queue),
        ("WorkloadPriorityClass", options.priority),
        ("PriorityClass", options.priority),
    ):
        assert key in manifests
    queue = manifests["LocalQueue", "larmor"]
    cluster_queue = manifests["ClusterQueue", queue["spec"]["clusterQueue"]]
    (group,) = cluster_queue["spec"]["resourceGroups"]
    (flavor,) = group["flavors"]
    assert ("ResourceFlavor", flavor["name"]) in manifests
    assert [item["name"] for item in flavor["resources"]] == group["coveredResources"]
    allowed = cluster_queue["spec"]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
    namespaces = {item["metadata"].get("namespace") for item in manifests.values()} - {None}
    assert namespaces == {allowed} == {name for kind, name in manifests if kind == "Namespace"}


def test_the_quota_covers_whatever_a_job_asks_for(manifests: dict[tuple[str, str], Manifest]) -> None:
    """Kueue never admits a job that asks for a resource which its queue does not cover."""
    (group,) = manifests["ClusterQueue", "larmor"]["spec"]["resourceGroups"]
    container = worker(made("cluster.num_workers=2", queue="larmor")[1])["template"]["spec"]["containers"][0]
    assert set(container["resources"]["requests"]) <= set(group["coveredResources"])


def test_pods_that_are_watched_are_those_that_the_network_policy_is_about(
    manifests: dict[tuple[str, str], Manifest],
) -> None:
    policy, monitor = manifests["NetworkPolicy", "larmor-ray"], manifests["PodMonitor", "larmor-ray"]
    assert policy["spec"]["podSelector"] == monitor["spec"]["selector"]
    ports = [{port["port"] for port in rule.get("ports", [])} for rule in policy["spec"]["ingress"]]
    assert ports == [set(), {8265}, {8080}], "all between the pods, the dashboard, the metrics: KubeRay's port of them"


def expressions(dashboard: Manifest, manifests: dict[tuple[str, str], Manifest]) -> Iterator[str]:
    yield from (target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    yield from (item["query"]["query"] for item in dashboard["templating"]["list"] if item["type"] == "query")
    for group in manifests["PrometheusRule", "larmor"]["spec"]["groups"]:
        yield from (rule["expr"] for rule in group["rules"])


def test_only_metrics_that_are_exported_are_asked_for(
    dashboard: Manifest, manifests: dict[tuple[str, str], Manifest]
) -> None:
    ours = {f"ray_{gauge.name}" for gauge in GAUGES}
    of_ray = {f"ray_{name}" for name in re.findall(r'Gauge\(\s*"(\w+)"', RAY_METRICS.read_text())}
    assert "ray_node_cpu_utilization" in of_ray
    asked = {name for text in expressions(dashboard, manifests) for name in re.findall(r"\bray_\w+", text)}
    assert asked <= ours | of_ray
    assert asked >= ours, "a gauge that nobody looks at"


def test_labels_in_queries_are_those_of_the_gauges(
    dashboard: Manifest, manifests: dict[tuple[str, str], Manifest]
) -> None:
    labels = {f"ray_{gauge.name}": {"run", "experiment", gauge.label} for gauge in GAUGES}
    for text in expressions(dashboard, manifests):
        for name, chosen in re.findall(r"\b(ray_larmor_\w+)\{([^}]*)\}", text):
            assert set(re.findall(r"(\w+)\s*[=!]~?", re.sub(r'"[^"]*"', "", chosen))) <= labels[name], text
        for grouped, name in re.findall(r"by \(([\w, ]+)\) \((?:\w+\()?(ray_larmor_\w+)", text):
            assert set(grouped.split(", ")) <= labels[name], text


def lost(given: Any, kept: Any, path: str = "") -> Iterator[str]:
    """Keys of `given` that `kept` lacks or has otherwise."""
    if isinstance(given, dict) and isinstance(kept, dict):
        for key, value in given.items():
            yield from lost(value, kept.get(key), f"{path}.{key}")
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        for number, (one, other) in enumerate(zip(given, kept, strict=True)):
            yield from lost(one, other, f"{path}[{number}]")
    elif given != kept:
        yield path


def test_grafanas_own_model_knows_every_key_of_the_dashboard(dashboard: Manifest) -> None:
    """It leaves out what it does not know."""
    assert list(lost(dashboard, json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard))))) == []
    spoilt = {**dashboard, "panels": [{**dashboard["panels"][0], "titel": "?"}]}
    assert list(lost(spoilt, json.loads(JSONEncoder().encode(Dashboard.from_json(spoilt))))) == [".panels[0].titel"]


def test_panels_lie_beside_each_other(dashboard: Manifest) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


@pytest.mark.skipif(PROMTOOL is None, reason="needs promtool: apt-get install prometheus")
class TestPromtool:
    """Debian's `promtool` on what the PrometheusRule holds, and on the queries of the dashboard."""

    @pytest.fixture
    def rules(self, tmp_path: Path, manifests: dict[tuple[str, str], Manifest]) -> Path:
        path = tmp_path / "rules.yaml"
        path.write_text(yaml.safe_dump(manifests["PrometheusRule", "larmor"]["spec"], sort_keys=False))
        return path

    def run(self, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(PROMTOOL), *arguments], cwd=cwd, capture_output=True, text=True, check=False)

    def test_alerts_are_raised_when_they_should_be_and_not_before(self, rules: Path) -> None:
        shutil.copy(ALERTS_TEST, rules.parent)
        done = self.run("test", "rules", ALERTS_TEST.name, cwd=rules.parent)
        assert done.returncode == 0, done.stdout + done.stderr

    def test_every_alert_has_such_a_test(self, rules: Path) -> None:
        alerts = {rule["alert"] for group in yaml.safe_load(rules.read_text())["groups"] for rule in group["rules"]}
        tests = yaml.safe_load(ALERTS_TEST.read_text())["tests"]
        raised = {each["alertname"] for test in tests for each in test["alert_rule_test"] if "exp_alerts" in each}
        assert raised == alerts

    def test_the_dashboards_queries_are_promql(self, tmp_path: Path, dashboard: Manifest) -> None:
        """As rules of a group: `promtool` reads those."""
        texts = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
        content = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(texts)]
        (tmp_path / "panels.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": content}]}))
        done = self.run("check", "rules", "panels.yaml", cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr


def test_an_edited_folder_is_not_written_over(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"--to {re.escape(str(folder))}: exists and is not an empty folder"):
        write_kubernetes(folder)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="exists and is not an empty folder"):
        write_kubernetes(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    write_kubernetes(tmp_path / "empty")
    assert (tmp_path / "empty" / "kustomization.yaml").is_file()
