"""`larmor inspect` prints what a data set holds, and writes a picture of it only where it is told to."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from larmor.cli import main
from larmor.storage.objects.object_store import ObjectStore
from tests.helpers import random_kspace, write_dataset


@pytest.fixture
def data(tmp_path: Path) -> str:
    url = str(tmp_path / "data")
    write_dataset(ObjectStore(url), {split: random_kspace(3) for split in ("train", "validation", "test")})
    return url


def test_nothing_is_written_unless_told(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    result = CliRunner().invoke(main.app, ["inspect", data])
    assert result.exit_code == 0, result.output
    assert "kspace (3, 1, 16, 12)" in result.output.replace("\n", "")
    assert list(here.iterdir()) == []


def test_a_contact_sheet_goes_where_it_is_told(data: str, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    result = CliRunner().invoke(main.app, ["inspect", data, "--to", str(sheet)])
    assert result.exit_code == 0, result.output
    assert sheet.read_bytes().startswith(b"\x89PNG")
