"""The best parameters of a sweep are taken over, and no code that they name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import larmor
from larmor.commands import training
from larmor.storage.objects.errors import InputError


def best(patch: pytest.MonkeyPatch, parameters: dict[str, Any]) -> None:
    patch.setattr(training, "best_parameters", lambda _url: parameters)


@pytest.mark.parametrize("found", [{"generator.name": "nolab:Net"}, {"generator": {"name": "nolab:Net"}}])
def test_a_sweep_brings_no_code(monkeypatch: pytest.MonkeyPatch, found: dict[str, Any]) -> None:
    best(monkeypatch, found)
    with pytest.raises(InputError, match=r"s3://a/b: names code of its own \(generator.name=nolab:Net\)"):
        larmor.load_experiment("laptop", best_of="s3://a/b")
    asked = larmor.load_experiment("laptop", ["generator.name=nolab:Net"], best_of="s3://a/b")
    assert asked.generator.name == "nolab:Net"


def test_options_of_a_network_of_ones_own_are_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    content = {"name": "own", "code": ["./nolab"], "generator": {"name": "nolab:Net", "options": {"width": 4}}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(content))
    best(monkeypatch, {"generator.options.width": 8})
    experiment = larmor.load_experiment(str(tmp_path / "own.yaml"), best_of="s3://a/b")
    assert experiment.generator.options == {"width": 8}
    best(monkeypatch, {"generator.options.width": 8, "code.paths": ["/elsewhere"]})
    with pytest.raises(InputError, match=r"names code of its own \(code\)"):
        larmor.load_experiment(str(tmp_path / "own.yaml"), best_of="s3://a/b")


def test_the_short_form_of_code_takes_overrides_too(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"name": "own", "code": ["./nolab"]}))
    moved = larmor.load_experiment(str(tmp_path / "own.yaml"), ["code.paths=[/elsewhere]"])
    assert moved.code.paths == ("/elsewhere",)
    unpinned = larmor.load_experiment(str(tmp_path / "own.yaml"), ["code.sha256=null"])
    assert (unpinned.code.paths, unpinned.code.sha256) == (("./nolab",), None)
