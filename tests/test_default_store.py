"""Python finds the embedded store where the command line finds it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from larmor.storage.objects.embedded_store import EmbeddedStore
from tests.workbench import TINY, environment, unique_name

READ = """
import sys
from larmor.storage.loading.config import DataConfig, open_reader
print(open_reader(DataConfig(url=sys.argv[1], disk_cache_bytes=0, client=sys.argv[2]), "train").info.num_slices)
"""
WRITE = """
import sys
from larmor.storage.objects.object_store import ObjectStore
ObjectStore(sys.argv[1]).write("a", b"content")
print(ObjectStore(sys.argv[1]).read("a").decode())
"""


LOOP = """
import sys
import larmor
from torch.utils.data import DataLoader
data = {"client": sys.argv[2], "disk_cache": sys.argv[3]}
dataset = larmor.open_dataset(sys.argv[1], "train", crop=(48, 48), data=data)
seen = []
for epoch in range(3):
    dataset.set_epoch(epoch)
    for batch in DataLoader(dataset, 8, num_workers=2):
        seen += batch["index"].tolist()
    dataset[0]
assert sorted(seen) == sorted([*range(len(dataset))] * 3)
"""
TRAIN = """
import sys
import larmor
name, *overrides = sys.argv[1:]
result = larmor.train("laptop", [f"name={name}", *overrides], local=True)
print(len(larmor.history(f"s3://larmor/runs/{name}")), result.state)
"""


@pytest.fixture
def home(embedded_store: EmbeddedStore) -> Path:
    """LARMOR_HOME, in which the store that runs is the embedded one."""
    assert embedded_store.root.name == "store"
    return embedded_store.root.parent


def run(program: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    known = {name: value for name, value in environment().items() if not name.startswith("AWS_")}
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], env={**known, **variables}, capture_output=True, text=True
    )


@pytest.mark.parametrize("client", ["s3fs", "http"])
def test_a_data_set_is_opened(tiny_heads: str, home: Path, client: str) -> None:
    done = run(READ, tiny_heads, client, LARMOR_HOME=str(home))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


def test_objects_are_written_and_read(home: Path) -> None:
    done = run(WRITE, f"s3://larmor/{unique_name('python')}", LARMOR_HOME=str(home))
    assert (done.returncode, done.stdout) == (0, "content\n"), done.stderr


@pytest.mark.parametrize("client", ["s3fs", "http"])
def test_workers_of_a_data_loader_read(tiny_heads: str, home: Path, client: str, tmp_path: Path) -> None:
    """They are forked from a process that has read itself, whose connections they must not share."""
    done = run(LOOP, tiny_heads, client, str(tmp_path / "cache"), LARMOR_HOME=str(home))
    assert done.returncode == 0, done.stderr
    assert any((tmp_path / "cache").rglob("0"))


def test_a_training_reads_and_writes(tiny_heads: str, home: Path) -> None:
    steps = ("training.num_steps=2", "training.validate_every=1", "cluster.num_workers=1")
    done = run(TRAIN, unique_name("python"), f"data.url={tiny_heads}", *TINY, *steps, LARMOR_HOME=str(home))
    assert (done.returncode, done.stdout) == (0, "2 finished\n"), done.stderr


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL", "AWS_PROFILE"])
def test_another_store_that_is_named_is_meant(home: Path, name: str) -> None:
    value = "http://127.0.0.1:9" if name == "AWS_ENDPOINT_URL" else "of-another"
    others = {
        "LARMOR_STORE_PATIENCE": "0",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    }
    done = run(WRITE, "s3://larmor/a", LARMOR_HOME=str(home), **{**others, name: value})
    assert done.returncode != 0
    assert "larmor.storage.objects.errors.InputError" in done.stderr or "StoreAway" in done.stderr


def test_the_embedded_stores_bucket_is_never_asked_for_at_aws(tmp_path: Path) -> None:
    done = run(WRITE, "s3://larmor/a", LARMOR_HOME=str(tmp_path), AWS_EC2_METADATA_DISABLED="true")
    assert done.returncode != 0
    assert "s3://larmor/a: the bucket 'larmor' is that of the embedded store, which does not run" in done.stderr
    assert "`larmor store start`" in done.stderr
