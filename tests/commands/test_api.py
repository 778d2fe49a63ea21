"""What the command line does, from Python: one way through all of it, as a notebook would take it."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import larmor
from larmor.commands.feedback import Feedback
from larmor.commands.models import EvaluateOptions
from larmor.storage.conversion.convert import ConvertOptions
from larmor.storage.examples.phantom import write_phantom
from larmor.storage.objects.errors import InputError
from tests.workbench import TINY, tiny, unique_name

STEPS = ("training.num_steps=2", "training.validate_every=1", "training.checkpoint_every=1", "cluster.num_workers=1")


SIGNATURES = {
    "convert": "(sources, to, options=None, *, subject=None, guide=(), feedback=…)",
    "evaluate": "(model_dirs, url, options=None, *, to=None, device='cpu', feedback=…, trust_code=None)",
    "export": "(model_dir, to, *, size=None, dynamic_size=False, coils=1, overwrite=False, trust_code=None)",
    "history": "(url, after=0)",
    "inspect": "(url, to=None)",
    "load_experiment": "(source, overrides=(), best_of=None, say=…)",
    "load_model": "(place, metric=None, trial=None, device='cpu', prefer=None, trust_code=None)",
    "open_dataset": "(url, split, *, mask=None, crop=None, signal=None, augment=None, shuffle=True, seed=0, "
    "drop_last=False, rank=None, world_size=None, device='cpu', data=None)",
    "push": "(model, url, *, licence=None, overwrite=False, public=False)",
    "pull": "(url, to, metric=None, *, trial=None, prefer=None, full=False, overwrite=False)",
    "reconstruct": "(model_dir, source, to, options=None, *, device='cpu', feedback=…, trust_code=None)",
    "sweep": "(experiment, overrides=(), *, address=None, overwrite=False, feedback=…)",
    "train": "(experiment, overrides=(), *, address=None, local=False, device='cpu', best_of=None, overwrite=False, "
    "feedback=…)",
    "verify": "(url, threads=None, *, feedback=…)",
    "view": "(source, options=None)",
}
"""Of the functions. A name that is here stays; an argument is only added with a default (docs/api.md)."""
FIELDS = {
    "ConvertOptions": "matrix min_foreground held_out overwrite skip_invalid sensitivity_maps num_threads plane",
    "EvaluateOptions": "methods sizes masks ratios noises segmentation every split preset batch_size uncertainty",
    "Evaluated": "tables files",
    "Feedback": "say progress report",
    "Pulled": "run_url checkpoint notes",
    "Pushed": "url notes is_new",
    "ReconstructOptions": "split undersample mask batch_size plane format anonymous field_of_view uncertainty",
    "RunResult": "state step checkpoint metrics warnings",
    "SweepResult": "state metric trials best front",
    "TrialRecord": "id state metrics last steps num_images reason seeds parameters began seconds",
    "VerifyReport": "url num_slices num_shards num_bytes seconds problems",
    "ViewOptions": "model methods split plane port",
    "VolumeReport": "volume subject split kept total left_out plane notes resumed",
}
"""Of the dataclasses: new ones may be added."""


def signature_of(name: str) -> str:
    """Names and defaults of the arguments; objects as …, and no types."""
    parts = []
    for part in inspect.signature(getattr(larmor, name)).parameters.values():
        parts += ["*"] if part.kind is part.KEYWORD_ONLY and "*" not in parts else []
        plain = isinstance(part.default, str | int | tuple | None)
        default = "" if part.default is part.empty else f"={part.default!r}" if plain else "=…"
        parts.append(f"{part.name}{default}")
    return f"({', '.join(parts)})"


def test_signatures_stay() -> None:
    functions = [name for name in larmor.__all__ if inspect.isfunction(getattr(larmor, name))]
    assert {name: signature_of(name) for name in functions} == SIGNATURES


def test_fields_stay() -> None:
    assert {*SIGNATURES, *FIELDS, "InputError"} == set(larmor.__all__)
    for name, fields in FIELDS.items():
        kind = getattr(larmor, name)
        assert dataclasses.is_dataclass(kind)
        assert set(fields.split()) <= {field.name for field in dataclasses.fields(kind)}, name
    assert issubclass(larmor.InputError, ValueError)


def test_documented_names_are_the_public_ones() -> None:
    document = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    assert set(re.findall(r"^::: larmor\.(\w+)$", document, re.MULTILINE)) == set(larmor.__all__)
    assert set(larmor.__all__) <= set(dir(larmor))


def test_every_public_name_is_there_and_says_what_it_raises() -> None:
    for name in SIGNATURES:
        assert "Raises" in (inspect.getdoc(getattr(larmor, name)) or ""), name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        larmor.nothing  # noqa: B018


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A data set and a run in folders, made from Python: their URLs."""
    folder = tmp_path_factory.mktemp("api")
    paths = write_phantom(folder / "heads", num_subjects=3, seed=0)
    held_out = {"validation": ["phantom02"], "test": ["phantom03"]}
    data, output = str(folder / "data"), str(folder / "out")
    options = ConvertOptions(matrix=(64, 64), held_out=held_out)
    assert sum(report.kept for report in larmor.convert(paths, data, options)) > 0
    assert larmor.verify(data).problems == ()
    assert any("phantom01" in line for line in larmor.inspect(data))
    said: list[str] = []
    rows: list[object] = []
    overrides = ["name=mine", f"data.url={data}", f"output_url={output}", *TINY, *STEPS]
    feedback = Feedback(said.append, report=rows.append)
    result = larmor.train("laptop", overrides, local=True, feedback=feedback)
    assert result.state == "finished"
    assert result.metrics.keys() >= {"val/psnr", "val/ssim"}
    assert len(rows) == 2
    assert said == [f"run: {output}/runs/mine"]
    assert larmor.train("laptop", overrides, local=True) == result, "finished already"
    table = larmor.history(f"{output}/runs/mine")
    assert table.step.tolist() == [1, 2]
    assert result.metrics["val/psnr"] in table["val/psnr"].tolist()
    return data, f"{output}/runs/mine"


def test_a_run_becomes_images_and_tables(run: tuple[str, str], tmp_path: Path) -> None:
    data, url = run
    pulled = larmor.pull(url, tmp_path / "model")
    assert pulled.run_url == url
    (report,) = larmor.reconstruct(tmp_path / "model", data, tmp_path / "images")
    assert report.problem == ""
    assert all(path.is_file() for path in report.files)
    assert report.num_slices > 0
    evaluated = larmor.evaluate(tmp_path / "model", data, EvaluateOptions(every=8), to=tmp_path / "tables")
    assert len(evaluated.tables) == 1
    assert (tmp_path / "tables" / "summary.json") in evaluated.files
    assert any(
        "torch.export" in line or "pt2" in line for line in larmor.export(tmp_path / "model", tmp_path / "m.pt2")
    )
    with pytest.raises(InputError, match="already exists"):
        larmor.export(tmp_path / "model", tmp_path / "m.pt2")
    panes = ["target", "zero_filled", "reconstruction"]
    changes = ["change_of_the_measurement", "change_in_k-space"]
    pages = {data: panes[:2], url: [*panes, *changes], "model": [*panes, *changes], "images": [*panes, *changes]}
    pages["tables"] = [*panes[:2], "gan_resnet50"]
    for place, expected in pages.items():
        server = larmor.view(place if place in (data, url) else tmp_path / place)
        try:
            assert server.gallery.content(0)["count"] >= 3
            shown = server.gallery.slice(0, 1)
        finally:
            server.close()
        assert [pane["name"] for pane in shown["panes"]] == expected, place


def test_a_model_is_loaded_where_folders_have_the_names_of_ours(run: tuple[str, str], tmp_path: Path) -> None:
    """A lab's own `recon`, `storage` and `cluster` once hid Larmor's."""
    larmor.pull(run[1], tmp_path / "model")
    for name in ("recon", "storage", "tuning"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the lab\\'s own')\n")
    (tmp_path / "cluster.py").write_text("raise SystemExit('the lab\\'s own')\n")
    program = "from larmor import load_model; print(type(load_model('model')).__name__)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == type(larmor.load_model(tmp_path / "model")).__name__
    assert isinstance(larmor.load_model(run[1]), torch.nn.Module)


@pytest.mark.slow
def test_a_sweep_from_python(tiny_heads: str, store_environment: dict[str, str]) -> None:
    name = unique_name("api")
    more = ("sweep.num_trials=2", "sweep.start_seeds=1", "sweep.overrides={}", *STEPS)
    trials: list[object] = []
    experiment, *overrides = tiny(name, tiny_heads, "s3://larmor", *more)
    result = larmor.sweep(experiment, overrides, feedback=Feedback(report=trials.append))
    assert result.best.state == "finished"
    assert len(trials) == 2
