"""The notebooks of `docs/notebooks`: each runs from its beginning, and its outputs are kept for the site."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "docs" / "notebooks").glob("*.ipynb"))


def code_cells(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def test_there_are_notebooks() -> None:
    assert {path.stem for path in NOTEBOOKS} == {"own_loop", "own_network", "curves_and_sweeps", "results"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="nb") as folder:  # pytest's own are too deep for Ray's sockets
        monkeypatch.setenv("TMPDIR", folder)  # where a notebook makes its folder
        notebook = nbformat.read(path, as_version=4)
        nbclient.NotebookClient(notebook, timeout=500, kernel_name="python3").execute()  # raises what a cell raises
        assert len(list(Path(folder).glob("tmp*/heads/zarr.json"))) == 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_outputs_are_kept_and_name_no_machine(path: Path) -> None:
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1)), "run from its beginning"
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert outputs
    assert all(output["output_type"] != "error" for output in outputs)
    text = path.read_text()
    assert all(place not in text for place in ("/tmp", "/home", "/root", "site-packages"))
    assert len(text) < 300_000
