"""What people expect of any command line: -h, completion, version, levels of messages; and its environment."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from larmor.cli import main
from larmor.storage.formats.provenance import larmor_version

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def as_before() -> object:
    logger = logging.getLogger("larmor")
    level, handlers = logger.level, list(logging.root.handlers)
    yield
    logger.setLevel(level)
    logging.root.handlers[:] = handlers


@pytest.mark.parametrize("path", [[], ["train"], ["store"], ["store", "start"], ["benchmark", "tables"]], ids=" ".join)
def test_h_is_help(path: list[str]) -> None:
    short, long = (CliRunner().invoke(main.app, [*path, option]) for option in ("-h", "--help"))
    assert short.exit_code == 0
    assert short.output == long.output


def test_version_is_a_command_too() -> None:
    assert CliRunner().invoke(main.app, ["version"]).output == f"larmor {larmor_version()}\n"


@pytest.mark.parametrize(("typed", "offered"), [("larmor tr", "train"), ("larmor store st", "start")])
def test_a_shell_completes_commands(typed: str, offered: str) -> None:
    words = str(len(typed.split()) - 1)
    environment = {"_LARMOR_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": words}
    output = CliRunner().invoke(main.app, prog_name="larmor", env=environment).output
    assert offered in output.split()


def test_a_level_is_of_larmors_messages_alone() -> None:
    before = logging.root.level
    assert CliRunner().invoke(main.app, ["--log-level", "debug", "version"]).exit_code == 0
    assert logging.getLogger("larmor").level == logging.DEBUG
    assert logging.root.level == before


def test_a_level_that_is_none_is_refused_with_those_there_are() -> None:
    result = CliRunner().invoke(main.app, ["--log-level", "loud", "version"])
    assert result.exit_code == 2
    for level in ("debug", "info", "warning", "error"):
        assert level in result.output


def test_every_variable_that_is_read_is_documented() -> None:
    page = (ROOT / "docs" / "environment.md").read_text()
    sources = [
        path for wing in ("storage", "recon", "cluster", "tuning", "larmor") for path in (ROOT / wing).rglob("*.py")
    ]
    read = {name for path in sources for name in re.findall(r"\bLARMOR_[A-Z_]+\b", path.read_text())}
    assert len(read) >= 5
    assert read == set(re.findall(r"`(LARMOR_[A-Z_]+)`", page))


def test_choices_stand_in_the_help() -> None:
    output = CliRunner().invoke(main.app, ["--help"]).output
    assert "debug|info|warning|error" in output
