"""The wheel: one name at the top of site-packages, typed, with its data files."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from larmor.cluster.on_ray.job_package import write_source
from tests.helpers import contents_of

ROOT = Path(__file__).resolve().parents[1]


def test_the_wheel_installs_one_name_and_what_a_job_takes_along(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77", reason="the project's build tool")
    source = tmp_path / "source"
    source.mkdir()
    for path in FILES:
        copy = shutil.copytree if path.is_dir() else shutil.copy
        copy(path, source / path.name)
    build = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = (source / "dist").glob("larmor_mri-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
    information = next(name for name in files if name.endswith("top_level.txt"))
    assert files[information].decode().split() == ["larmor"]
    folders = {name.split("/")[0] for name in files}
    assert folders == {"larmor", information.split("/")[0]}
    packed = contents_of(write_source(tmp_path))
    installed = {name.removeprefix("larmor/"): data for name, data in files.items() if name.startswith("larmor/")}
    assert {
        name: data for name, data in installed.items() if "niivue" not in name and "/shipped/" not in name
    } == packed
    assert set(installed) >= DATA


DATA = {
    "py.typed",
    "tuning/report/report.html",
    "cluster/experiments/laptop.yaml",
    "cluster/on_ray/kubernetes/base/network-policy.yaml",
    "cluster/on_ray/kubernetes/monitoring/dashboard.json",
    "recon/inference/slices.js",
    "recon/inference/slices.css",
    "recon/viewing/niivue.umd.js.gz",
    "recon/viewing/niivue.LICENSE",
    "recon/models/shipped/small/generator.safetensors",
    "recon/models/shipped/small/model.json",
}
FILES = [ROOT / name for name in ("pyproject.toml", "README.md", "LICENSE", "larmor")]  # its links are followed
