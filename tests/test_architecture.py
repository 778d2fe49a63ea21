"""The rules of the house that a reader can rely on, checked in the source."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WINGS = ["storage", "recon", "cluster", "tuning"]  # each may import itself and those before it
ORDER = [*WINGS, "larmor"]
PATHS = {f"larmor.{wing}": ROOT / wing for wing in WINGS} | {"larmor": ROOT / "larmor"}
MAP = ROOT / "docs" / "architecture.md"
SOURCES = sorted(path for folder in PATHS.values() for path in folder.rglob("*.py"))
HOMES = {
    "ray": ("cluster/on_ray/", "tuning/search/"),
    "deepspeed": ("recon/engines/deepspeed_engine.py",),
    "tensorboardX": ("cluster/runs/event_file.py",),
    "zarr": ("storage/",),
    "s3fs": ("storage/",),
    "huggingface_hub": ("storage/objects/hub_files.py",),
    "botocore": ("storage/",),
    "google": ("storage/objects/google_storage.py",),
    "azure": ("storage/objects/azure_blobs.py",),
    "boto3": (),
    "pickle": (),
}
AT_THE_ROOT = {
    *(".dockerignore", ".gitignore", ".pre-commit-config.yaml", "Dockerfile", "Makefile"),
    *("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "README.md"),
    *("constraints.txt", "mkdocs.yml", "pyproject.toml", "ray-cluster.yaml"),
    *("requirements-model.txt", "requirements-pull.txt"),
}
DRIVER = [
    "larmor",
    "larmor.cluster.launch.run",
    "larmor.cluster.on_ray.ray_cluster",
    "larmor.cluster.on_ray.ray_train",
    "larmor.tuning.search.sweep",
    "larmor.tuning.search.slots",
]
PULL = [
    "larmor.cluster.runs.pull",
    "larmor.cluster.runs.push",
    "larmor.cluster.runs.published",
    "larmor.cluster.runs.run_folder",
    "larmor.cluster.runs.runs",
    "larmor.cluster.runs.model_card",
    "larmor.cluster.runs.origin",
    "larmor.commands.model_places",
    "larmor.storage.objects.hub_files",
    "larmor.storage.objects.web_files",
    "larmor.tuning.search.choice",
]


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
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from ((name if name in MODULES else node.module or "", node.lineno) for name in whole)


def module_of(path: Path) -> str:
    """The dotted name under which a file is imported."""
    inside = name_of(path).removesuffix(".py").removesuffix("/__init__").removeprefix("larmor/").replace("/", ".")
    return "larmor" if inside == "larmor" else f"larmor.{inside}"


def wing_of(module: str) -> str:
    """storage, recon, cluster, tuning, or larmor for what lies above them all."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in WINGS else "larmor"


def room_of(module: str) -> str:
    """The folder that a module lies in."""
    return module.rpartition(".")[0] or module


MODULES = {module_of(path): path for path in SOURCES}


def arrows_between_rooms() -> dict[str, set[str]]:
    """Room → the other rooms that its files import, wherever in a file."""
    arrows: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        if path.name != "__init__.py" or module == "larmor":
            found = {room_of(name) for name, _ in imports(path) if name in MODULES}
            arrows.setdefault(room_of(module), set()).update(found - {room_of(module)})
    return arrows


def allowed_arrows() -> dict[str, set[str]]:
    """The same as the map in docs/architecture.md has it: `wing: room, room; wing: room` in the third column."""
    rows = re.findall(r"^\| `([\w/]+)` \|[^|]*\| ([^|]*) \|$", MAP.read_text(), re.MULTILINE)
    allowed: dict[str, set[str]] = {}
    for room, cell in rows:
        groups = [group.split(":") for group in cell.split(";") if ":" in group]
        rooms = (f"{wing.strip()}/{name.strip()}" for wing, names in groups for name in names.split(","))
        allowed[module_of(ROOT / room)] = {module_of(ROOT / name) for name in rooms}
    return allowed


def test_there_is_something_to_check() -> None:
    assert {wing_of(module) for module in MODULES} == set(ORDER)
    everything = {module.split(".")[0] for path in SOURCES for module, _ in imports(path)}
    assert everything >= {"ray", "deepspeed", "zarr", "botocore"}, "the rules below are about something"


def test_what_is_installed_is_what_lies_here() -> None:
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert set(tools["packages"]) == {module for module, path in MODULES.items() if path.name == "__init__.py"}
    assert {f"larmor.{wing}": (ROOT / "larmor" / wing).resolve() for wing in WINGS} | {
        "larmor": ROOT / "larmor"
    } == PATHS


def test_everything_is_imported_by_the_name_that_is_installed() -> None:
    """From the repository's root `import storage` works as well, and would make a second copy of every module."""
    everywhere = [*SOURCES, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "benchmarks").rglob("*.py"))]
    wrong = [
        f"{name_of(path)}:{line}"
        for path in everywhere
        for module, line in imports(path)
        if module.split(".")[0] in WINGS
    ]
    assert wrong == []


def test_nothing_is_kept_at_the_root_that_was_not_meant_to_be() -> None:
    """What a command leaves in the current folder (pictures of people, say) must not slip into a commit."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout: what is tracked cannot be known")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {name for name in listed.splitlines() if "/" not in name} == AT_THE_ROOT


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_run_one_way(path: Path) -> None:
    rank = ORDER.index(wing_of(module_of(path)))
    wrong = [
        f"{name_of(path)}:{line}: {module}"
        for module, line in imports(path)
        if module in MODULES and ORDER.index(wing_of(module)) > rank
    ]
    assert wrong == []


def test_imports_between_rooms_run_one_way() -> None:
    """A room is a folder; whatever two rooms import of each other makes a circle."""
    arrows = arrows_between_rooms()
    done: set[str] = set()
    while ready := [room for room in arrows if room not in done and arrows[room] <= done]:
        done.update(ready)
    assert {room: sorted(arrows[room] - done) for room in arrows if room not in done} == {}


def test_the_map_has_every_room() -> None:
    assert set(allowed_arrows()) == set(arrows_between_rooms())


def test_a_room_imports_what_the_map_allows_and_no_less() -> None:
    used, allowed = arrows_between_rooms(), allowed_arrows()
    forbidden = {room: sorted(used[room] - allowed[room]) for room in used if used[room] - allowed[room]}
    assert forbidden == {}, "docs/architecture.md allows no such import: move the code, or add the room there"
    unused = {room: sorted(allowed[room] - used[room]) for room in used if allowed[room] - used[room]}
    assert unused == {}, "nothing imports that any more: take the room out of docs/architecture.md"


@pytest.mark.parametrize("library", HOMES)
def test_libraries_stay_in_their_homes(library: str) -> None:
    wrong = [
        f"{name_of(path)}:{line}"
        for path in SOURCES
        for module, line in imports(path)
        if module.split(".")[0] == library and not name_of(path).startswith(HOMES[library])
    ]
    assert wrong == []


def test_an_init_holds_a_docstring_only() -> None:
    for module, path in MODULES.items():
        if path.name == "__init__.py" and module != "larmor":  # which is the public API
            tree = ast.parse(path.read_text())
            assert len(tree.body) == 1, module
            assert ast.get_docstring(tree), module


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_are_named_for_their_concept_and_say_what_they_are(path: Path) -> None:
    assert path.stem not in {"utils", "util", "helpers", "common", "misc"}
    assert ast.get_docstring(ast.parse(path.read_text())), f"{name_of(path)} has no docstring"


def test_no_import_at_the_top_of_a_file_closes_a_circle() -> None:
    graph = {name: {module for module, _ in imports(path, at_top=True)} for name, path in MODULES.items()}
    done: set[str] = set()
    while ready := [name for name in MODULES if name not in done and graph[name] & set(MODULES) <= done]:
        done.update(ready)
    assert set(MODULES) - done == set()


def test_an_experiment_is_checked_without_waiting_for_torch() -> None:
    program = f"import sys, {', '.join(DRIVER)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_ray_is_imported_only_where_it_is_used() -> None:
    """It looks for a token when it is imported: who connects has to say where that is before."""
    modules = ", ".join([*DRIVER, "larmor.cluster.on_ray.ray_worker", "larmor.tuning.search.slot"])
    program = f"import sys, {modules}; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_pull_needs_neither_ray_nor_deepspeed_nor_pickled_tensors() -> None:
    """A pulled model comes from other people's stores: nothing on that way may run what it reads."""
    program = f"import sys, {', '.join(PULL)}; print(*sorted(name.split('.')[0] for name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(result.stdout.split())
    assert "larmor" in loaded
    assert loaded.isdisjoint({"ray", "deepspeed", "torch", "scipy", "skimage", "zarr", "pydantic", "optuna"})


@pytest.mark.parametrize("module", [*PULL, "larmor.recon.models.model"])
def test_what_is_pulled_is_never_unpickled(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text())
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert calls.isdisjoint({"torch.load", "pickle.load", "pickle.loads", "np.load", "yaml.load", "eval", "exec"})
