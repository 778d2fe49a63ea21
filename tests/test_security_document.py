"""`docs/security.md`: the policy allows what Larmor asks of S3, and nothing else."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from larmor.cluster.on_ray.rayjob import RayJobOptions
from larmor.storage.objects.object_store import ObjectStore
from tests.faulty_proxy import Exchange, FaultyProxy
from tests.workbench import unique_name

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "security.md"


def policy() -> Any:
    (text,) = re.findall(r"^```json\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    return json.loads(text)


def everything(store: ObjectStore, folder: Path) -> None:
    """All that Larmor does with a store; an upload in parts, which fails once, among it."""
    store.check_access()
    store.write("a", b"content")
    assert store.read("a", 2, 5) == b"nte"
    assert store.exists("a")
    assert not store.exists("b")
    assert store.create("c", b"once")
    assert not store.create("c", b"twice")
    with (folder / "large").open("wb") as file:
        file.truncate(101 * 2**20)
    store.upload(folder, "folder")
    store.download("c", folder.parent / "c")
    assert set(store.list()) == {"a", "c", "folder/large"}
    ObjectStore(store.url, client="http").read("a", 2, 5)
    store.delete("a")
    store.delete()


def permission(exchange: Exchange) -> str:
    """What AWS asks for this request (service authorization reference of Amazon S3)."""
    method, query = exchange.method, urlsplit(exchange.path).query
    match method:
        case "GET" if "list-type=2" in query:
            return "s3:ListBucket"
        case "GET" | "HEAD":
            return "s3:GetObject"
        case "POST" if query.startswith("delete"):
            return "s3:DeleteObject"
        case "PUT" | "POST":  # parts of an upload too
            return "s3:PutObject"
        case "DELETE":
            return "s3:AbortMultipartUpload" if "uploadId=" in query else "s3:DeleteObject"
    raise AssertionError(f"{exchange}: which permission does it need?")


def test_the_policy_allows_what_larmor_asks_for_and_nothing_else(faulty_proxy: FaultyProxy, tmp_path: Path) -> None:
    (tmp_path / "up").mkdir()
    faulty_proxy.plan("status", status=500, methods=("PUT",), matches="partNumber", limit=1)
    everything(ObjectStore(f"s3://larmor/{unique_name('policy')}"), tmp_path / "up")
    allowed = {action for statement in policy()["Statement"] for action in statement["Action"]}
    assert allowed == {permission(exchange) for exchange in faulty_proxy.log}


def test_the_policy_is_about_one_bucket_and_gives_listing_alone_for_the_bucket_itself() -> None:
    document = policy()
    assert document["Version"] == "2012-10-17"
    assert {statement["Effect"] for statement in document["Statement"]} == {"Allow"}
    for statement in document["Statement"]:
        (resource,) = statement["Resource"]
        on_bucket = statement["Action"] == ["s3:ListBucket"]
        assert resource == ("arn:aws:s3:::BUCKET" if on_bucket else "arn:aws:s3:::BUCKET/*")
        assert not any("*" in action for action in statement["Action"])


def test_other_files_name_the_role_that_the_policy_is_for() -> None:
    text = DOCUMENT.read_text()
    cluster = yaml.safe_load((ROOT / "ray-cluster.yaml").read_text())
    profiles = {kind["node_config"]["IamInstanceProfile"]["Name"] for kind in cluster["available_node_types"].values()}
    (profile,) = profiles
    assert f"`{profile}` (`ray-cluster.yaml`)" in text
    assert RayJobOptions("image:1").service_account == "larmor"
    assert "service account `larmor` (`larmor rayjob`)" in text


def test_nothing_of_a_run_is_unpickled() -> None:
    """As the document says: no pickle, and PyTorch's own format as plain tensors only."""
    for package in ("recon", "cluster", "tuning", "storage"):
        for path in (ROOT / package).rglob("*.py"):
            for call in ast.walk(ast.parse(path.read_text())):
                if isinstance(call, ast.Call):
                    options = {option.arg: ast.unparse(option.value) for option in call.keywords}
                    assert options.get("allow_pickle", "False") == "False", f"{path}:{call.lineno}"
                    if ast.unparse(call.func) == "torch.load":
                        assert options.get("weights_only") == "True", f"{path}:{call.lineno}"
                assert not (isinstance(call, ast.Attribute) and call.attr == "load_checkpoint"), path
