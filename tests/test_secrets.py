"""No key and no token is left in what a local training writes; tests/cluster/on_ray/test_jobs.py asks it of a job."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from larmor.cluster.runs.run_folder import RunFolder
from larmor.storage.objects.embedded_store import EmbeddedStore
from tests.leaks import contents, leaks, store_keys
from tests.workbench import larmor, tiny, unique_name

OUTPUT = "s3://larmor"
SCHEDULE = ("training.num_steps=4", "training.checkpoint_every=4", "training.validate_every=4")


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Where Ray keeps its session; sockets lie below it: the path has to be short."""
    folder = Path(tempfile.mkdtemp(prefix="lrm-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_a_training_its_model_and_its_report_hold_no_secret(
    embedded_store: EmbeddedStore, tiny_heads: str, store_environment: object, ray_folder: Path, tmp_path: Path
) -> None:
    name = unique_name("secrets")
    keys = store_keys(embedded_store)
    variables: dict[str, Any] = {**keys, "LARMOR_HOME": str(tmp_path / "home"), "RAY_TMPDIR": str(ray_folder)}
    url = f"{OUTPUT}/runs/{name}"
    commands = (
        ("train", *tiny(name, tiny_heads, OUTPUT, *SCHEDULE, "cluster.num_workers=2", "training.zero_stage=1")),
        ("pull", url, "--to", str(tmp_path / "out" / "model")),
        ("report", url, "--to", str(tmp_path / "out" / "report.html")),
    )
    texts = {}
    for arguments in commands:
        done = larmor(*arguments, **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        texts[arguments[0]] = done.stdout + done.stderr
    token = (tmp_path / "home" / "ray-token").read_text()
    secrets = [keys["AWS_ACCESS_KEY_ID"], keys["AWS_SECRET_ACCESS_KEY"], token]
    run = RunFolder(url)
    assert leaks(secrets, [ray_folder, tmp_path / "out", run.store], texts) == []
    assert leaks(secrets, [tmp_path / "home"], {}) == [str(tmp_path / "home" / "ray-token")], "where it belongs"
    assert any(path.endswith(".pt") for path, _ in contents(run.store)), "the pickles were searched"
    assert any("raylet" in path for path, _ in contents(ray_folder)), "Ray's notes were searched"
