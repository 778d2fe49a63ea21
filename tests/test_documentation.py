"""What README, Makefile and `--help` say is true: commands parse, names and paths exist."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shlex
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from larmor.cli import main
from larmor.cluster.experiments.shipped import shipped_experiments
from larmor.tuning.search.experiment import load_sweep_experiment

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def shell_lines(markdown: str) -> list[str]:
    """The lines of all shell blocks, without their comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```", markdown, re.MULTILINE | re.DOTALL)
    return [line.partition(" #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def recipe_lines(makefile: str) -> list[str]:
    """Calls of `larmor` in the Makefile, variables of make left as words."""
    joined = makefile.replace("\\\n", " ")
    return re.findall(r"^\t\$\(LARMOR\) (.*)$", joined, re.MULTILINE)


def inline_commands(markdown: str) -> list[str]:
    """`larmor …` in running text, also where it is broken over two lines."""
    text = re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL)
    return [" ".join(found.split()) for found in re.findall(r"`larmor ([^`]+)`", text)]


README_COMMANDS = [line.removeprefix("larmor ") for line in shell_lines(README) if line.startswith("larmor ")]
COMMAND_LINES = [*README_COMMANDS, *recipe_lines(MAKEFILE)]


def walk(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every sub-command with its path, such as ("store", "start")."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from walk(command, (*path, name))
        else:
            yield (*path, name), command


GROUP: Any = typer.main.get_command(main.app)
COMMANDS = dict(walk(GROUP))


def resolve(words: Sequence[str]) -> tuple[Any, list[str]]:
    """The sub-command that a command line calls, and its arguments."""
    for length in (1, 2):
        if tuple(words[:length]) in COMMANDS:
            return COMMANDS[tuple(words[:length])], list(words[length:])
    raise AssertionError(f"larmor {' '.join(words)}: no such sub-command")


def parse(line: str) -> dict[str, Any]:
    """The parameters of a command line, as the command would get them; nothing is run."""
    command, arguments = resolve(shlex.split(line.partition(" > ")[0]))
    return dict(command.make_context("larmor", arguments).params)


def test_there_is_something_to_check() -> None:
    assert len(README_COMMANDS) > 12
    assert len(recipe_lines(MAKEFILE)) > 8
    assert {"train", "sweep", "pull", "submit", "evaluate"} <= {line.split()[0] for line in README_COMMANDS}
    assert "store start" in inline_commands(README)


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_a_command_line_parses(line: str) -> None:
    parse(line)


@pytest.mark.parametrize(
    "line", ["trian laptop", "train", "train laptop --adress auto", "convert heads", "pull s3://a/b"]
)
def test_a_command_line_that_is_wrong_would_be_found(line: str) -> None:
    with pytest.raises(BaseException, match=r"no such sub-command|Missing|No such option"):
        parse(line)


@pytest.mark.parametrize("line", [line for line in COMMAND_LINES if "experiment" in parse(line)])
def test_an_experiment_that_is_named_is_shipped_and_takes_the_overrides(line: str) -> None:
    parameters = parse(line)
    assert parameters["experiment"] in shipped_experiments()
    load_sweep_experiment(parameters["experiment"], parameters["overrides"] or [])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_in_running_text_exist(document: Path) -> None:
    for text in inline_commands(document.read_text()):
        words = shlex.split(text)
        if not words[0].isascii():
            continue  # no command, but an arrow
        if len(words) == 1:
            assert words[0] in GROUP.commands, text
            continue
        command, arguments = resolve(words)
        options = {option for parameter in command.params for option in parameter.opts}
        assert [word for word in arguments if word.startswith("--") and word not in options] == [], text


def test_every_shipped_experiment_is_named_and_no_other() -> None:
    named = set(re.findall(r"`(fast|laptop|pet|tigan|paper_\w+)`", README))
    assert named == set(shipped_experiments())
    assert set(re.findall(r"paper_\w+", README)) <= named


def relative_links(markdown: str) -> list[str]:
    links = re.findall(r"\]\(([^)\s]+)\)", markdown)
    return [link.partition("#")[0] for link in links if not re.match(r"\w+:|#", link)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_lead_somewhere(document: Path) -> None:
    missing = [link for link in relative_links(document.read_text()) if not (document.parent / link).exists()]
    assert missing == []


def test_paths_in_the_table_exist() -> None:
    paths = re.findall(r"^\| `([^`]+)` \|", README, re.MULTILINE)
    assert set(paths) >= {"storage/", "recon/", "cluster/", "tuning/"}
    assert [path for path in paths if not (ROOT / path).is_dir()] == []


def test_targets_of_make_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", MAKEFILE, re.MULTILINE))
    named = set(re.findall(r"\bmake ([\w-]+)", "\n".join(shell_lines(README))))
    assert named == {"demo", "test"}, "the two that README promises"
    assert named | set(re.findall(r"`make ([\w-]+)`", README)) <= targets


def test_continuous_integration_runs_the_readmes_test_command() -> None:
    (promised,) = [line for line in shell_lines(README) if line.startswith("make test")]
    script = ROOT / ".ci" / "run"
    lines = [line.strip() for line in script.read_text().splitlines() if line.strip() and not line.startswith("#")]
    assert [line for line in lines if not line.startswith(("set ", "cd "))] == [promised]
    assert os.access(script, os.X_OK)


def test_the_public_workflow_runs_the_same_on_every_python() -> None:
    (job,) = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == ["make test"]
    name = "Programming Language :: Python :: 3."
    versions = [text.removeprefix(name) for text in PROJECT["classifiers"] if text.startswith(name)]
    assert job["strategy"]["matrix"]["python"] == [f"3.{version}" for version in versions]
    assert PROJECT["requires-python"] == f">=3.{versions[0]}"


def test_commit_hooks_run_the_pinned_versions() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    wanted = dict(text.split("==") for hook in repository["hooks"] for text in hook["additional_dependencies"])
    assert wanted["ruff"] == pins["ruff"]


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert citation["abstract"] == PROJECT["description"]


def test_the_changelog_takes_what_is_new() -> None:
    headings = re.findall(r"^## \[?([^\]\s]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"


def test_the_version_is_the_installed_one() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", PROJECT["version"])
    try:
        installed = importlib.metadata.version(PROJECT["name"])
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("larmor is not installed here, only its source is used")
    assert installed == PROJECT["version"]


@pytest.mark.parametrize("path", [(), *sorted({path[:1] for path in COMMANDS} | set(COMMANDS))], ids=" ".join)
def test_help_explains_the_command_and_every_option(path: tuple[str, ...]) -> None:
    command = GROUP
    for name in path:
        command = command.commands[name]
    result = CliRunner().invoke(main.app, [*path, "--help"])
    assert result.exit_code == 0
    printed = "".join(result.output.split())
    assert len((command.help or "").split()) >= 3
    assert "".join(command.help.split("\n")[0].split()) in printed
    for parameter in command.params:
        if parameter.name != "help":
            assert len((parameter.help or "").split()) >= 3, f"{' '.join(path)}: {parameter.name} has no help"
            assert "".join(parameter.help.split()) in printed
            assert all(option in result.output for option in parameter.opts if option.startswith("-"))
