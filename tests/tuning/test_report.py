"""What is said of trials whose parameters are numbers, zero, or words; of evaluations, and of the data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.run_folder import RunFolder
from storage import dataset
from storage.errors import InputError
from storage.object_store import ObjectStore
from tests.helpers import random_kspace, write_split
from tuning.report import sweep_charts, write_report
from tuning.sweep import describe_trial


def trial(name: str, psnr: float, **parameters: Any) -> dict[str, Any]:
    return {"id": name, "parameters": parameters, "metrics": {"val/psnr": psnr}, "state": "finished", "seconds": 3.0}


TRIALS = [
    trial("one", 28.0, a=15.0, kind="wasserstein", b=0.0),
    trial("two", 29.0, a=0.123456, kind="bce", b=1.0),
]


def test_a_trial_is_described_whatever_its_values_are() -> None:
    line = describe_trial(TRIALS[1], "psnr")
    assert "a = 0.1235, kind = bce, b = 1 → val/psnr 29.0000" in line


def test_axes_fit_their_values() -> None:
    charts = {chart["title"]: chart["html"] for chart in sweep_charts(TRIALS, "val/psnr")}
    expected = {"a": "log", "kind": "category", "b": "linear"}
    for key, scale in expected.items():
        assert f'"type":"{scale}"' in charts[f"Sweep: val/psnr against {key}"]
    assert '"type":"category"' in charts["Sweep: a × kind"]


def test_the_page_names_the_volumes_of_an_evaluation(tmp_path: Path) -> None:
    mean = {"psnr": 31.25, "ssim": 0.9, "mse": 1e-3, "rmse": 0.03, "nmse": 0.01, "seconds": 0.002}
    summary = {"preset": "fastmri", "definition": "by volume", "split": "test", "volumes": ["ann-1", "ann-2"]}
    mask = {"kind": "radial", "achieved_ratio": 0.25, "sha256": "ab" * 32}
    cell = {"label": "8×8, radial 25 %", "mask": mask, "mean": {"zero_filled": mean, "model": mean}, "figure": "a.png"}
    summary |= {"subjects": ["ann"], "num_slices": 9, "cells": [cell]}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    write_report(tmp_path / "page.html", None, None, tmp_path)
    page = (tmp_path / "page.html").read_text()
    assert "Split <b>test</b>: ann-1, ann-2, 9 slices" in page
    assert "31.250" in page
    assert "25.00 % of k-space" in page
    (tmp_path / "summary.json").write_text(json.dumps({key: value for key, value in summary.items() if key != "cells"}))
    with pytest.raises(InputError, match="older version"):
        write_report(tmp_path / "page.html", None, None, tmp_path)


def test_the_page_names_the_sources_of_the_data(tmp_path: Path) -> None:
    """A volume of one file, and one of several, of the same subject."""
    store, run = ObjectStore(tmp_path / "data"), RunFolder(str(tmp_path / "run"))
    digests = ["ab" * 32, "cd" * 32, "ef" * 32]
    files = [{"file": f"scan{number}.dcm", "sha256": digest} for number, digest in enumerate(digests)]
    sources = [
        {"volume": "ann-1", "subject": "ann", "files": files[:1], "licence": "CC0", "package": "p", "version": "7.1"},
        {"volume": "ann-2", "subject": "ann", "files": files[1:], "licence": "not stated"},
    ]
    dataset.publish(store, {"train": write_split(store, "train", random_kspace(2), 1)}, sources)
    assert run.create(yaml.safe_dump({"data": {"url": store.url}}))
    write_report(tmp_path / "page.html", run.url, None, None)
    page = (tmp_path / "page.html").read_text()
    for text in ("ann-1", "ann-2", "scan0.dcm<", "scan1.dcm, …", "p 7.1", "CC0", "not stated"):
        assert text in page
    assert digests[0][:16] in page
    assert digests[1][:16] in page
