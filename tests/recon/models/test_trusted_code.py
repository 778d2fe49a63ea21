"""A model of somebody else runs the code that its user names, and none that the model names beside it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from larmor.cluster.experiments.experiment import dump_yaml
from larmor.recon.models.model import load_model
from larmor.recon.networks.networks import build_generator
from larmor.recon.recipe.own_code import code_hash, import_part, make_importable
from larmor.storage.objects.errors import InputError
from tests.helpers import small_recipe

CODE = """
from torch import nn

class Net(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.net = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, image, *rest):
        return self.net(image)
"""
LEAVES_A_FILE = "import pathlib\npathlib.Path(__file__).with_suffix('.ran').touch()\n"


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the module `trusted_net`, which is trusted, and `stranger`, which leaves a file when it runs."""
    (tmp_path / "trusted_net.py").write_text(CODE)
    (tmp_path / "stranger.py").write_text(LEAVES_A_FILE + CODE + "\ndef make(channels):\n    return Net(channels)\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in ("trusted_net", "stranger"):
        sys.modules.pop(name, None)


def write(folder: Path, **sections: Any) -> Path:
    """A model directory whose network has the weights of `trusted_net:Net`."""
    folder.mkdir()
    (folder / "config.yaml").write_text(dump_yaml(small_recipe(**sections)))
    network = torch.nn.Conv2d(1, 1, 3, padding=1)
    save_file(
        {f"network.net.{key}": value for key, value in network.state_dict().items()}, folder / "generator.safetensors"
    )
    return folder


def test_the_trusted_code_alone_runs(lab: Path) -> None:
    model = write(lab / "model", generator={"name": "trusted_net:Net"})
    assert load_model(model, trust_code=[lab / "trusted_net.py"]).recipe.title == "Net"


@pytest.mark.parametrize(
    "sections",
    [
        {"generator": {"name": "stranger:Net"}},
        {"generator": {"name": "trusted_net:Net"}, "mask": {"kind": "stranger:make"}},
    ],
)
def test_code_beside_the_trusted_one_does_not_run(lab: Path, sections: dict[str, Any]) -> None:
    model = write(lab / "model", **sections)
    with pytest.raises(InputError, match=r"runs code that is not in .*trusted_net.py \(\w+.\w+=stranger:\w+\)"):
        load_model(model, trust_code=[lab / "trusted_net.py"])
    assert not (lab / "stranger.ran").exists()


@pytest.mark.parametrize("trusted", [["trusted_net.py"], ["installed"], ["trusted_net.py", "installed"]])
def test_a_function_that_runs_whatever_it_is_told_is_refused(lab: Path, trusted: list[str]) -> None:
    """PyTorch Hub fetches code and runs it; a model's options would say from where."""
    (lab / "hubconf.py").write_text(LEAVES_A_FILE + "def net(channels):\n    raise SystemExit\n")
    options = {"repo_or_dir": str(lab), "model": "net", "source": "local"}
    model = write(lab / "model", generator={"name": "torch.hub:load", "options": options})
    with pytest.raises(InputError, match=r"torch\.hub:load"):
        load_model(model, trust_code=[lab / name if name.endswith(".py") else name for name in trusted])
    assert not (lab / "hubconf.ran").exists()


def test_of_installed_masks_those_that_are_declared_are_allowed(lab: Path) -> None:
    model = write(lab / "model", generator={"name": "trusted_net:Net"}, mask={"kind": "os.path:commonpath"})
    with pytest.raises(
        InputError, match=r"mask\.kind=os\.path:commonpath is no mask that an installed package declares"
    ):
        load_model(model, trust_code=[lab / "trusted_net.py", "installed"])


def test_a_class_of_an_installed_package_needs_to_be_allowed(lab: Path) -> None:
    options = {"in_channels": 1, "out_channels": 1, "kernel_size": 1}
    model = write(lab / "model", generator={"name": "torch.nn:Conv2d", "options": options})
    with pytest.raises(InputError, match="runs code that is not Larmor's"):
        load_model(model)
    with pytest.raises(InputError, match="unexpected keyword argument 'channels'"):
        load_model(model, trust_code=["installed"])


def test_other_code_of_the_same_name_is_not_taken_for_it(lab: Path) -> None:
    other = lab / "other" / "trusted_net.py"
    other.parent.mkdir()
    other.write_text(CODE.replace("3, padding=1", "1"))
    make_importable([other])
    build_generator(small_recipe(generator={"name": "trusted_net:Net"}).generator)
    model = write(
        lab / "model", generator={"name": "trusted_net:Net"}, code={"sha256": code_hash([lab / "trusted_net.py"])}
    )
    with pytest.raises(InputError, match=r"Python finds another module trusted_net, at .*other/trusted_net.py"):
        load_model(model, trust_code=[lab / "trusted_net.py"])


def test_a_copy_of_the_code_is_as_good(lab: Path) -> None:
    """As on the workers of this very machine, where what travelled comes before what it was copied from."""
    copy = lab / "copy" / "trusted_net.py"
    copy.parent.mkdir()
    copy.write_text(CODE)
    make_importable([copy])
    build_generator(small_recipe(generator={"name": "trusted_net:Net"}).generator)
    make_importable([lab / "trusted_net.py"])
    assert import_part("trusted_net:Net").__module__ == "trusted_net"
    assert sys.modules["trusted_net"].__file__ == str(copy.resolve())


def test_code_that_is_edited_is_imported_again(lab: Path) -> None:
    """Within one process, such as a notebook's."""
    recipe = small_recipe(generator={"name": "trusted_net:Net"})
    make_importable([lab / "trusted_net.py"])
    first = build_generator(recipe.generator)
    (lab / "trusted_net.py").write_text(CODE.replace("3, padding=1", "5, padding=2"))
    make_importable([lab / "trusted_net.py"])
    sizes = [
        sum(item.numel() for item in network.parameters()) for network in (first, build_generator(recipe.generator))
    ]
    assert sizes == [9 + 1, 25 + 1]
