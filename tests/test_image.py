"""The Dockerfile and the workflow that builds it, as far as they can be checked without a container engine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
INSTRUCTIONS = [
    re.sub(r"\s*\\\n\s*", " ", text)
    for text in re.findall(r"^[A-Z]+ (?:.*\\\n)*.*$", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.M), re.M)
]
BASE = "python:3.11-slim-bookworm"  # the Python of ray-cluster.yaml


def of(kind: str) -> list[str]:
    """What stands behind the instructions of this kind, one after another."""
    return [text.removeprefix(f"{kind} ") for text in INSTRUCTIONS if text.startswith(f"{kind} ")]


@pytest.fixture(scope="module")
def steps() -> list[str]:
    """The shell commands of the workflow."""
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "image.yml").read_text())
    (job,) = workflow["jobs"].values()
    return [step.get("run") or step["uses"] for step in job["steps"]]


def test_larmor_is_installed_as_the_readme_says() -> None:
    (line,) = [text for text in of("RUN") if " pip install " in text]
    assert "`pip install -c constraints.txt .`" in (ROOT / "README.md").read_text()
    assert re.search(r"pip install --no-cache-dir -c constraints\.txt '\.\[[\w,]+\]'$", line)


def test_it_runs_as_somebody_who_may_nothing() -> None:
    last = INSTRUCTIONS.index(f"FROM {of('FROM')[-1]}")
    users = [text for text in INSTRUCTIONS[last:] if text.startswith("USER ")]
    assert users == ["USER 1000:1000"]  # by number: Kubernetes checks runAsNonRoot by that
    after = INSTRUCTIONS[INSTRUCTIONS.index(users[0]) :]
    assert not [text for text in after if text.startswith(("RUN", "COPY", "ADD"))]
    assert "sudo" not in DOCKERFILE


def test_the_workflow_builds_from_a_digest_and_records_it(steps: list[str]) -> None:
    assert of("ARG")[0] == f"BASE={BASE}"
    assert {text.split()[0] for text in of("FROM")} == {"${BASE}"}
    assert 'org.opencontainers.image.base.digest="${BASE_DIGEST}"' in of("LABEL")[0]
    (look_up,) = [text for text in steps if "imagetools inspect" in text]
    assert 'echo "BASE=$base@$digest" >> "$GITHUB_ENV"' in look_up
    assert "sha256:[0-9a-f]{64}" in look_up
    (build,) = [text for text in steps if "buildx build" in text]
    assert "--build-arg BASE " in build
    assert steps.index(look_up) < steps.index(build)


def test_the_workflow_scans_what_it_has_built(steps: list[str]) -> None:
    (scan,) = [text for text in steps if "trivy" in text]
    assert steps.index(scan) == len(steps) - 1


def test_no_secret_and_nothing_that_is_not_needed_gets_in() -> None:
    assert not re.search(r"(?i)token|password|secret|_key|credential", DOCKERFILE)
    assert not of("ADD")
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", "build", "tests", "**/.env"} <= set(ignored)
    needed = {"larmor", "storage", "recon", "cluster", "tuning", "pyproject.toml", "constraints.txt", "README.md"}
    assert not needed & set(ignored)


def test_what_was_fetched_to_install_is_not_kept() -> None:
    for text in of("RUN"):
        assert ("apt-get install" in text) == ("rm -rf /var/lib/apt/lists/*" in text)
        assert "pip install" not in text or "--no-cache-dir" in text
    assert len(of("FROM")) == 2  # the source and pip's work stay in the first stage
    assert of("COPY")[-1] == "--from=build /opt/larmor /opt/larmor"
