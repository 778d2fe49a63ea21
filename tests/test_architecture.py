"""The rules of the house that a reader can rely on, checked in the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ORDER = ["storage", "recon", "cluster", "tuning", "larmor"]  # each may import itself and those before it
SOURCES = [ROOT / "larmor.py", *sorted(path for package in ORDER[:-1] for path in (ROOT / package).rglob("*.py"))]
HOMES = {
    "ray": ("cluster/", "tuning/"),
    "deepspeed": ("recon/engine.py",),
    "tensorboardX": ("cluster/event_file.py",),
    "zarr": ("storage/",),
    "s3fs": ("storage/",),
    "botocore": ("storage/",),
    "boto3": (),
    "pickle": (),
}
AT_THE_ROOT = {
    *(".dockerignore", ".gitignore", "Dockerfile", "Makefile"),
    *("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md"),
    *("constraints.txt", "larmor.py", "pyproject.toml", "ray-cluster.yaml", "rayjob.yaml"),
    *("requirements-model.txt", "requirements-pull.txt"),
}
DRIVER = ["larmor", "cluster.run", "cluster.ray_cluster", "cluster.ray_train", "tuning.sweep", "tuning.slots"]
PULL = ["cluster.pull", "cluster.run_folder", "cluster.runs", "cluster.model_card", "cluster.origin", "tuning.choice"]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path, at_top: bool = False) -> Iterator[tuple[str, int]]:
    """Every imported module with its line, wherever the import stands, or at the top of the file only."""
    tree = ast.parse(path.read_text())
    for node in tree.body if at_top else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: a relative import"
            yield node.module or "", node.lineno


def test_there_is_something_to_check() -> None:
    found = {name_of(path).split("/")[0].removesuffix(".py") for path in SOURCES}
    assert found == set(ORDER)
    everything = {module.split(".")[0] for path in SOURCES for module, _ in imports(path)}
    assert everything >= {"ray", "deepspeed", "zarr", "botocore"}, "the rules below are about something"


def test_nothing_is_kept_at_the_root_that_was_not_meant_to_be() -> None:
    """What a command leaves in the current folder (pictures of people, say) must not slip into a commit."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout: what is tracked cannot be known")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {name for name in listed.splitlines() if "/" not in name} == AT_THE_ROOT


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_run_one_way(path: Path) -> None:
    rank = ORDER.index(name_of(path).split("/")[0].removesuffix(".py"))
    wrong = [
        f"{name_of(path)}:{line}: {module}"
        for module, line in imports(path)
        if module.split(".")[0] in ORDER and ORDER.index(module.split(".")[0]) > rank
    ]
    assert wrong == []


@pytest.mark.parametrize("library", HOMES)
def test_libraries_stay_in_their_homes(library: str) -> None:
    wrong = [
        f"{name_of(path)}:{line}"
        for path in SOURCES
        for module, line in imports(path)
        if module.split(".")[0] == library and not name_of(path).startswith(HOMES[library])
    ]
    assert wrong == []


@pytest.mark.parametrize("package", ORDER[:-1])
def test_a_packages_init_holds_a_docstring_only(package: str) -> None:
    tree = ast.parse((ROOT / package / "__init__.py").read_text())
    assert len(tree.body) == 1
    assert ast.get_docstring(tree)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_are_named_for_their_concept_and_say_what_they_are(path: Path) -> None:
    assert path.stem not in {"utils", "util", "helpers", "common", "misc"}
    assert ast.get_docstring(ast.parse(path.read_text())), f"{name_of(path)} has no docstring"


def test_no_import_at_the_top_of_a_file_closes_a_circle() -> None:
    modules = {name_of(path).removesuffix(".py").replace("/", "."): path for path in SOURCES}
    graph = {name: {module for module, _ in imports(path, at_top=True)} for name, path in modules.items()}
    done: set[str] = set()
    while ready := [name for name in modules if name not in done and graph[name] & set(modules) <= done]:
        done.update(ready)
    assert set(modules) - done == set()


def test_an_experiment_is_checked_without_waiting_for_torch() -> None:
    program = f"import sys, {', '.join(DRIVER)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_ray_is_imported_only_where_it_is_used() -> None:
    """It looks for a token when it is imported: who connects has to say where that is before."""
    program = f"import sys, {', '.join([*DRIVER, 'cluster.ray_worker', 'tuning.slot'])}; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_pull_needs_neither_ray_nor_deepspeed_nor_pickled_tensors() -> None:
    """A pulled model comes from other people's stores: nothing on that way may run what it reads."""
    program = f"import sys, {', '.join(PULL)}; print(*sorted(name.split('.')[0] for name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(result.stdout.split())
    assert loaded >= {"cluster", "tuning", "storage"}
    assert loaded.isdisjoint({"ray", "deepspeed", "torch", "scipy", "skimage", "zarr", "pydantic", "optuna"})


@pytest.mark.parametrize("module", [*PULL, "recon.model"])
def test_what_is_pulled_is_never_unpickled(module: str) -> None:
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert calls.isdisjoint({"torch.load", "pickle.load", "pickle.loads", "np.load", "yaml.load", "eval", "exec"})
