"""Every file that the documents for developers name exists, and every function is found in its file."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("larmor", "storage", "recon", "cluster", "tuning", "tests", "benchmarks", "docs", ".github", ".ci")
DOCUMENTS = [ROOT / "docs" / "architecture.md", ROOT / "CONTRIBUTING.md"]


def paragraphs(markdown: str) -> list[list[str]]:
    """The words in backticks of each paragraph, list item and row of a table; blocks of code left out."""
    text = re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL)
    return [re.findall(r"`([^`\n]+)`", part) for part in re.split(r"\n\s*\n|\n(?=\s*(?:\d+\.|-|\|) )", text)]


def is_path(word: str) -> bool:
    return word.split("/")[0] in FOLDERS and "/" in word and " " not in word


def names(markdown: str) -> Iterator[tuple[str, str]]:
    """(file named last before it in its paragraph or "", function) for each `function()`."""
    for words in paragraphs(markdown):
        file = ""
        for word in words:
            if is_path(word):
                file = word
            elif word.endswith("()"):
                yield file, word.removesuffix("()")


@lru_cache
def definitions(path: Path) -> set[str]:
    """Functions and classes of a file, methods also as `Class.method`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = (item for item in node.body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef))
            found.update(f"{node.name}.{item.name}" for item in methods)
    return found


def missing_names(markdown: str) -> list[str]:
    return [
        f"{file}: {name}"
        for file, name in names(markdown)
        if not (file.endswith(".py") and (ROOT / file).is_file() and name in definitions(ROOT / file))
    ]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_are_named_exist(document: Path) -> None:
    paths = [word for words in paragraphs(document.read_text()) for word in words if is_path(word)]
    assert len(paths) > 20
    assert [path for path in paths if not list(ROOT.glob(path))] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_functions_that_are_named_are_in_their_files(document: Path) -> None:
    assert len(list(names(document.read_text()))) > 10
    assert missing_names(document.read_text()) == []


def test_a_wrong_name_would_be_found() -> None:
    text = "`recon/training/losses.py`: `generator_loss()`, `generator_lost()`\n\n- `generator_loss()`\n"
    assert missing_names(text) == ["recon/training/losses.py: generator_lost", ": generator_loss"]
