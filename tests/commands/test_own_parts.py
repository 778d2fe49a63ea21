"""Networks, losses and masks of one's own: the page's example from training to export, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import larmor
from larmor.cluster.experiments.experiment import Experiment
from larmor.cluster.on_ray.job_package import write_code, write_package
from larmor.commands.models import EvaluateOptions, ReconstructOptions
from larmor.recon.recipe.own_code import CodeConfig, check_code, code_hash
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore
from tests.cluster.launch.test_systems import kspace_url  # noqa: F401
from tests.own_lab import write_lab

FEW = (
    "training.num_steps=3",
    "training.global_batch_size=2",
    "training.validate_every=3",
    "training.checkpoint_every=3",
    "training.validation_slices=2",
    "training.backend=plain",
    "training.zero_stage=0",
    "data.crop=[32,32]",
    "output_url=results",
)
TROUBLE = """
from torch import nn


class Smaller(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.net = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, image, *rest):
        return self.net(image)


class Nothing(nn.Module):
    def __init__(self, channels):
        super().__init__()

    def forward(self, image, *rest):
        return image


class Flat(Smaller):
    def forward(self, image):
        return self.net(image).mean(dim=(1, 2, 3))


def per_image(reconstruction, target):
    return (reconstruction - target).abs().mean(dim=(1, 2, 3))


def constant(reconstruction, target):
    return (target - 1).abs().mean()


def halves(shape, ratio, rng):
    return rng.random((shape[0] // 2, shape[1])) < ratio


number = 3
"""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's folder; what was imported from it is forgotten at the end."""
    write_lab(tmp_path)
    (tmp_path / "mylab" / "trouble.py").write_text(TROUBLE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "mylab"]:
        del sys.modules[name]


def test_the_pages_example_is_trained_pulled_used_and_exported(kspace_url: str, lab: Path) -> None:  # noqa: F811
    own = (*FEW, f"data.url={kspace_url}")
    result = larmor.train("own.yaml", own, local=True)
    assert result.state == "finished"
    larmor.pull("results/runs/own", "model")
    with pytest.raises(InputError, match=r"runs code that is not Larmor's \(generator.name=mylab.parts:TwoLayers"):
        larmor.load_model("model")
    network = larmor.load_model("model", trust_code=["mylab"])
    assert sum(item.numel() for item in network.parameters()) == 16 * 9 + 16 + 16 * 9 + 1
    few = EvaluateOptions(split="validation")
    table = larmor.evaluate("model", kspace_url, few, to="tables", trust_code=["mylab"]).tables[0]
    assert table.methods == ("zero_filled", "TwoLayers")
    assert "differs from the model" in "".join(larmor.export("model", "model.pt2", trust_code=["mylab"]))
    reports = larmor.reconstruct("model", kspace_url, "images", ReconstructOptions("validation"), trust_code=["mylab"])
    assert all(report.files for report in reports)

    (lab / "mylab" / "parts.py").write_text((lab / "mylab" / "parts.py").read_text() + "\n# changed\n")
    with pytest.raises(InputError, match=r"was started with another code: your own code in .*mylab has changed"):
        larmor.train("own.yaml", [*own, "training.num_steps=5"], local=True)
    with pytest.raises(InputError, match=r"was trained with other code than that in mylab"):
        larmor.load_model("model", trust_code=["mylab"])
    origin = ObjectStore("results/runs/own").read("origin.json").decode()
    assert '"mask.kind": "mylab.parts:scattered"' in origin


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["generator.name=mylab.parts:Three"], "mylab.parts has no Three; it has torch, nn, TwoLayers"),
        (
            ["generator.name=nolab.nets:Net"],
            r"there is no module nolab; name the folder that holds it.*code=\[./nolab\]",
        ),
        (["generator.options={depth: 3}"], r"TwoLayers\(channels=1, depth=3\): TypeError: .*'depth'"),
        (["generator.name=unett", "generator.options={}"], r"generator.name='unett': .*'unet', .* or MODULE:NAME"),
        (["generator.name=unet"], r"options=\{'width': 16\} are for a network of your own"),
        (["generator.name=mylab.trouble:Smaller", "generator.options={}"], r"expected an image \[1, 1, 32, 32\]"),
        (["generator.name=mylab.trouble:Nothing", "generator.options={}"], "has no parameters to train"),
        (["generator.name=mylab.trouble:number", "generator.options={}"], "TypeError: 'int' object is not callable"),
        (["loss.content=mylab.trouble:per_image"], r"expected one number .*got a tensor of shape \[1\]"),
        (["loss.content=mylab.trouble:constant"], "has no gradient"),
        (["loss.adversarial=wasserstein", "critic.name=mylab.trouble:Flat"], r"expected scores \[1, 1\], got \[1\]"),
        (["mask.kind=mylab.trouble:halves"], r"expected booleans \(32, 32\) .*got bool \(16, 32\)"),
        (["code=[./nolab]"], "code=./nolab: expected the folder of a Python package, or a .py file"),
    ],
)
def test_what_does_not_work_is_said_before_anything_starts(
    kspace_url: str,  # noqa: F811
    lab: Path,
    overrides: list[str],
    message: str,
) -> None:
    with pytest.raises(InputError, match=message):
        larmor.train("own.yaml", [*FEW, f"data.url={kspace_url}", *overrides])
    assert not (lab / "results").exists()


class TestCode:
    def test_the_hash_is_that_of_names_and_contents(self, lab: Path) -> None:
        first = code_hash(["mylab"])
        (lab / "mylab" / "__pycache__").mkdir(exist_ok=True)
        (lab / "mylab" / "__pycache__" / "parts.pyc").write_bytes(b"cache")
        (lab / "mylab" / ".hidden").write_text("notes")
        assert code_hash([lab / "mylab"]) == first, "wherever it lies, and without caches"
        (lab / "mylab" / "__init__.py").write_text("# new\n")
        assert code_hash(["mylab"]) != first
        config = CodeConfig(paths=("mylab",), sha256=first)
        with pytest.raises(InputError, match="is not the code of this experiment"):
            check_code(config)

    def test_a_job_takes_it_along(self, lab: Path, tmp_path: Path) -> None:
        (lab / "nets.py").write_text("import mylab\n")
        content: dict[str, Any] = {"code": [str(lab / "mylab"), "nets.py"], "generator": {"name": "nets:Net"}}
        experiment = Experiment.model_validate(content)
        write_package(tmp_path / "job", experiment)
        there = {path.relative_to(tmp_path / "job").as_posix() for path in (tmp_path / "job").glob("*")}
        assert there == {"larmor", "experiment.yaml", "mylab", "nets.py"}
        packed = larmor.load_experiment(str(tmp_path / "job" / "experiment.yaml"))
        assert packed.code.paths == ("mylab", "nets.py")
        assert code_hash([tmp_path / "job" / "mylab", tmp_path / "job" / "nets.py"]) == code_hash(["mylab", "nets.py"])

    def test_two_of_one_name_are_refused(self, lab: Path) -> None:
        (lab / "other" / "mylab").mkdir(parents=True)
        (lab / "other" / "mylab" / "nets.py").touch()
        with pytest.raises(InputError, match="there are two paths that end in mylab; rename one"):
            code_hash(["mylab", "other/mylab"])

    def test_a_name_of_larmors_own_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "larmor").mkdir()
        (tmp_path / "larmor" / "__init__.py").touch()
        with pytest.raises(InputError, match="larmor is a name of Larmor's own"):
            write_code(tmp_path / "to", [str(tmp_path / "larmor")])


def test_a_mask_of_ones_own_is_reproducible(lab: Path) -> None:
    from larmor.recon.physics.masks import make_mask
    from larmor.recon.recipe.mask_config import MaskConfig
    from larmor.recon.recipe.own_code import make_importable

    make_importable(["mylab"])
    config = MaskConfig(kind="mylab.parts:scattered", sampling_ratio=0.3, per_slice=True)
    first, again, other = (make_mask(config, (32, 48), stream) for stream in ((0, 1), (0, 1), (0, 2)))
    assert first.shape == (32, 48)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_critic_of_ones_own_is_trained(kspace_url: str, lab: Path) -> None:  # noqa: F811
    (lab / "mylab" / "critics.py").write_text(
        TROUBLE.replace("return self.net(image).mean(dim=(1, 2, 3))", "return self.net(image).mean(dim=(2, 3))")
    )
    critic = (
        "loss.adversarial=wasserstein",
        "critic.name=mylab.critics:Flat",
        "critic.steps=1",
        "critic.lipschitz=none",
    )
    larmor.train("own.yaml", [*FEW, f"data.url={kspace_url}", *critic], local=True)
    larmor.pull("results/runs/own", "model", full=True)
    rows = [path for path in (lab / "model").rglob("*") if path.is_file()]
    assert any("critic" in path.as_posix() for path in rows)
    assert torch.isfinite(next(larmor.load_model("model", trust_code=["mylab"]).parameters())).all()
