"""Every system of images goes the whole way: trained on a Ray cluster, pulled, used, evaluated and exported."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from larmor.cluster.runs.run_folder import RunFolder
from larmor.recon.recipe.decoding import DECODERS
from larmor.recon.recipe.systems import SYSTEMS
from tests.ray_head import RayHead, ray_head
from tests.workbench import succeed, tiny, unique_name

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
STEPS = 4
OUTPUT = "s3://larmor"
SLABS = "sat_net in slabs"
OWN = {
    SLABS: ("data.stack=4",),
    "idpcnn": ("generator.turns=3",),
    "deepcomplexmri": ("signal.num_coils=4", "generator.cascades=2"),
    "conv_lstm": ("data.stack=4", "generator.cascades=1"),
}


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    with ray_head() as running:
        yield running


@pytest.fixture(scope="module")
def coils(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three synthetic heads as four coils see them."""
    from larmor.storage.examples.phantom import write_phantom

    folder = tmp_path_factory.mktemp("coils")
    heads = write_phantom(folder / "heads", num_subjects=3, seed=0)
    simulated = ("--num-coils", "4", "--matrix", "64", "--to", str(folder / "scans"))
    succeed("simulate", "coils", *map(str, heads), *simulated)
    names = sorted(path.stem for path in (folder / "scans").glob("*.npy"))
    held_out = ("--validation", names[1], "--test", names[2])
    succeed("convert", str(folder / "scans"), "--to", str(folder / "set"), *held_out)
    return str(folder / "set")


@pytest.mark.parametrize("form", [*(system for system in SYSTEMS if system not in DECODERS), SLABS])
def test_it_is_trained_pulled_used_evaluated_and_exported(
    form: str, head: RayHead, tiny_heads: str, coils: str, store_environment: dict[str, str], tmp_path: Path
) -> None:
    system = form.split()[0]
    data = coils if system == "deepcomplexmri" else tiny_heads
    name, known = unique_name(form.replace("_", "-").replace(" ", "-")), head.known()
    schedule = (f"training.num_steps={STEPS}", "training.checkpoint_every=4", "training.validate_every=4")
    own = (f"system={system}", "cluster.num_workers=1", *schedule, *OWN.get(form, ()))
    succeed("train", "--address", head.address, *tiny(name, data, OUTPUT, *own), **known)
    run = RunFolder(f"{OUTPUT}/runs/{name}")
    assert [row["step"] for row in run.history()] == list(range(1, STEPS + 1))

    model = tmp_path / "model"
    succeed("pull", f"{OUTPUT}/runs/{name}", "--to", str(model))
    succeed("reconstruct", str(model), data, "--to", str(tmp_path / "images"))
    images = [np.load(path) for path in (tmp_path / "images").rglob("*.npy")]
    assert images
    assert all(np.isfinite(image).all() and image.any() for image in images)
    succeed("evaluate", str(model), data, "--noise", "0", "--noise", "0.05", "--every", "8")
    summary = json.loads((model / "evaluation" / "summary.json").read_text())
    clean, noisy = (cell["mean"] for cell in summary["cells"])
    assert set(clean) >= {"zero_filled", system}
    assert noisy["zero_filled"]["psnr"] < clean["zero_filled"]["psnr"]
    succeed("export", str(model), "--to", str(tmp_path / "model.onnx"))
    assert (tmp_path / "model.onnx").stat().st_size > 1000
