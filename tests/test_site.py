"""The documentation site: every link leads somewhere, the public API is on it, and it needs no network."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import larmor

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="the extra `docs` is not installed")


def build(target: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What `make docs` runs, into another folder."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(target), *arguments]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as `make docs` builds it."""
    target = tmp_path_factory.mktemp("site")
    done = build(target)
    assert done.returncode == 0, done.stderr
    return target


def test_every_document_has_a_page(site: Path) -> None:
    pages = {path.stem for path in site.glob("*.html")}
    assert pages - {"404"} == {path.stem for path in (ROOT / "docs").glob("*.md")}


def test_the_public_api_is_described(site: Path) -> None:
    described = set(re.findall(r'id="larmor\.(\w+)"', (site / "api.html").read_text()))
    assert described == set(larmor.__all__)


def test_pages_load_nothing_from_the_network(site: Path) -> None:
    loading = r"<(?:script|img|iframe)\b[^>]*\bsrc=[\"']?([^\"' >]+)|<link\b[^>]*\bhref=[\"']?([^\"' >]+)"
    for page in site.glob("*.html"):
        loaded = [one or other for one, other in re.findall(loading, page.read_text())]
        assert len(loaded) > 3, "the expression finds what a page loads"
        assert [url for url in loaded if re.match(r"(\w+:)?//", url)] == [], page.name


def test_a_broken_link_ends_the_build(tmp_path: Path) -> None:
    for path in (ROOT / "docs").glob("*.md"):
        (tmp_path / "docs").mkdir(exist_ok=True)
        (tmp_path / "docs" / path.name).write_text(path.read_text())
    with (tmp_path / "docs" / "pull.md").open("a") as file:
        file.write("\n[no page](nowhere.md), [no heading](sweeps.md#nowhere)\n")
    config = tmp_path / "mkdocs.yml"
    config.write_text((ROOT / "mkdocs.yml").read_text().replace("paths: [.]", f"paths: [{ROOT}]"))
    done = build(tmp_path / "site", "--config-file", str(config))
    assert done.returncode != 0
    assert "'nowhere.md'" in done.stderr
    assert "'#nowhere'" in done.stderr
