"""Names of files that a store gives never lead out of the folder that they are brought to."""

from __future__ import annotations

import json
import tempfile
import uuid
from pathlib import Path

import pytest

from larmor.cluster.runs.checkpoint import WEIGHTS, Checkpoint, FileEntry
from larmor.cluster.runs.pull import pull_run
from larmor.cluster.runs.run_folder import RunFolder
from larmor.cluster.worker.ranks import Ranks
from larmor.cluster.worker.worker import RunWorker
from larmor.recon.recipe.recipe import TrainingConfig
from larmor.storage.objects.errors import InputError
from tests.helpers import add_checkpoint, contents_of

PSNR = "val/psnr"


@pytest.fixture(params=["../planted", "a/../../../planted", "/ABSOLUTE/planted", "..", "", ".", "a/\0"])
def name(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A path that is not one of a file below a folder."""
    return request.param.replace("/ABSOLUTE", str(tmp_path / "elsewhere"))


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporary folders lie below `tmp_path` too."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """In a store whose names are just names, as those of S3 are."""
    run = RunFolder(f"memory://{uuid.uuid4().hex}")
    run.create("seed: 1\n")
    add_checkpoint(run, tmp_path / "scratch", 10, {PSNR: 20.0})
    return run


def add_foreign(run: RunFolder, scratch: Path, name: str) -> Checkpoint:
    """A better checkpoint whose manifest names such a file, beside good ones; what it names is in the store."""
    checkpoint = add_checkpoint(run, scratch, 20, {PSNR: 30.0})
    path = f"{checkpoint.folder}/manifest.json"
    document = json.loads(run.store.read(path))
    document["files"][name] = document["files"][WEIGHTS]
    run.store.write(path, json.dumps(document).encode())
    content = run.store.read(f"{checkpoint.folder}/{WEIGHTS}")
    run.store.filesystem.pipe_file(f"{run.store.full_path(checkpoint.folder)}/{name}", content)
    return checkpoint


def test_a_manifest_does_not_write_outside_a_pulled_model(run: RunFolder, tmp_path: Path, name: str) -> None:
    foreign = add_foreign(run, tmp_path / "scratch", name)
    before = contents_of(tmp_path)
    pulled = pull_run(run, "psnr", tmp_path / "models" / "mine", full=True)
    new = set(contents_of(tmp_path)) - set(before)
    assert pulled.checkpoint.step == 10
    assert all(path.startswith("models/mine/") for path in new), new
    assert any(f"{foreign.folder} was left out: manifest.json names a file" in note for note in pulled.notes)


def test_a_manifest_does_not_write_outside_a_resumed_worker(run: RunFolder, tmp_path: Path, name: str) -> None:
    import torch

    add_foreign(run, tmp_path / "scratch", name)
    before = contents_of(tmp_path)
    found: list[bytes] = []
    with RunWorker(Ranks(), run, TrainingConfig(), torch.device("cpu")) as worker:
        assert worker.restore(lambda folder: found.append((folder / WEIGHTS).read_bytes()))
    assert found == [b"weights of step 10"]
    assert contents_of(tmp_path) == before


def test_a_checkpoint_is_never_downloaded_outside(run: RunFolder, tmp_path: Path, name: str) -> None:
    """Whatever the caller took for a checkpoint."""
    (whole,) = run.checkpoints()
    foreign = Checkpoint(whole.folder, 10, {}, {name: whole.files[WEIGHTS]})
    with pytest.raises(InputError, match="is not the name of a file below"):
        run.download(foreign, tmp_path / "back")
    assert not (tmp_path / "planted").exists()


def test_a_part_with_such_a_name_is_not_published(run: RunFolder, name: str) -> None:
    run.write_part("checkpoints/step-00000030-aa", 0, {name: FileEntry(1, "0")})
    with pytest.raises(InputError, match="names a file"):
        run.read_parts("checkpoints/step-00000030-aa", 1)


@pytest.mark.parametrize("entry", [{}, {"size": 18}, {"sha256": "0"}, None, "18"])
def test_an_entry_without_size_and_checksum_is_no_manifest(run: RunFolder, tmp_path: Path, entry: object) -> None:
    damaged = add_checkpoint(run, tmp_path / "scratch", 20, {PSNR: 30.0})
    path = f"{damaged.folder}/manifest.json"
    document = json.loads(run.store.read(path))
    run.store.write(path, json.dumps({**document, "files": {WEIGHTS: entry}}).encode())
    assert [item.step for item in run.checkpoints()] == [10]
