"""What is pulled is used with little installed: `load_model`, and an environment without PyTorch, Ray and DeepSpeed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from larmor import load_model
from larmor.cluster.experiments.experiment import Experiment, dump_yaml
from larmor.cluster.runs.pull import pull_run
from larmor.cluster.runs.run_folder import RunFolder
from larmor.storage.objects.errors import InputError
from tests.helpers import add_checkpoint, contents_of, make_generator, random_images, small_recipe
from tests.workbench import REPOSITORY, succeed, tiny, unique_name

DOCUMENT = (REPOSITORY / "docs" / "pull.md").read_text()


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    from safetensors.torch import save

    recipe = small_recipe()
    run = RunFolder(str(tmp_path / "run"))
    run.create(dump_yaml(Experiment.model_validate({**recipe.model_dump(mode="json"), "name": "mine"})))
    weights = save(make_generator(recipe, seed=5).state_dict())
    add_checkpoint(run, tmp_path / "scratch", 10, {"val/psnr": 1.0}, {"generator.safetensors": weights})
    return run


@torch.no_grad()
def test_a_module_comes_from_a_directory_and_from_a_url(run: RunFolder, tmp_path: Path) -> None:
    pull_run(run, "psnr", tmp_path / "model")
    image, expected = random_images(2, 32, 32), make_generator(small_recipe(), seed=5)
    for place in (tmp_path / "model", str(tmp_path / "model"), run.url):
        generator = load_model(place)
        assert isinstance(generator, torch.nn.Module)
        assert not generator.training
        assert torch.equal(generator(image), expected(image))


def test_the_documents_example_runs(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pull_run(run, "psnr", tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    names: dict[str, torch.Tensor] = {}
    exec(example, names)
    assert names["image"].shape == (1, 1, 128, 256)
    assert torch.isfinite(names["image"]).all()


def test_weights_that_have_changed_are_refused(run: RunFolder, tmp_path: Path) -> None:
    pull_run(run, "psnr", tmp_path / "model")
    weights = tmp_path / "model" / "generator.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(InputError, match=r"has changed since it was pulled .*pull it again"):
        load_model(tmp_path / "model")


def test_a_newer_model_is_refused(run: RunFolder, tmp_path: Path) -> None:
    pull_run(run, "psnr", tmp_path / "model")
    path = tmp_path / "model" / "metrics.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    with pytest.raises(InputError, match=r"has format 2, this Larmor reads up to 1; update Larmor"):
        load_model(tmp_path / "model")


@pytest.mark.slow
def test_an_environment_without_ray_deepspeed_and_pytorch_takes_the_same_bytes(
    tiny_heads: str, store_environment: dict[str, str], tmp_path: Path
) -> None:
    name = unique_name("light")
    steps = ("training.num_steps=4", "training.validate_every=2", "training.checkpoint_every=2")
    succeed("train", "--local", *tiny(name, tiny_heads, "s3://larmor", "cluster.num_workers=1", *steps))
    url = f"s3://larmor/runs/{name}"
    succeed("pull", url, "--to", str(tmp_path / "here"))

    source, venv = tmp_path / "source", tmp_path / "light"
    left_out = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "tests")
    shutil.copytree(REPOSITORY, source, ignore=left_out)
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", str(source)], check=True)
    pins, light = (str(source / name) for name in ("constraints.txt", "requirements-pull.txt"))
    subprocess.run([*pip, "-c", pins, "-r", light], check=True)

    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    look = "import importlib.util as u; print(*[n for n in ('torch', 'ray', 'deepspeed', 's3fs') if u.find_spec(n)])"
    found = subprocess.run([pip[0], "-c", look], env=environment, check=True, capture_output=True, text=True)
    assert found.stdout.split() == ["s3fs"]
    command = [str(venv / "bin" / "larmor"), "pull", url, "--to", str(tmp_path / "there")]
    subprocess.run(command, env=environment, check=True, cwd=tmp_path)
    here, there = contents_of(tmp_path / "here"), contents_of(tmp_path / "there")
    assert set(here) == set(there)
    assert here["generator.safetensors"] == there["generator.safetensors"]
    assert json.loads(here["metrics.json"]) == json.loads(there["metrics.json"])
