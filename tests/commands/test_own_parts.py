"""Networks, losses and masks of one's own: the page's example from training to export, and what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import larmor
from larmor.cli import main
from larmor.cluster.experiments.experiment import Experiment, build, dump_for_workers, dump_yaml
from larmor.cluster.on_ray.attempt import WorkConfig
from larmor.cluster.on_ray.job_package import write_code, write_package
from larmor.cluster.on_ray.jobs import check_places
from larmor.cluster.on_ray.ray_worker import work
from larmor.cluster.runs.origin import metric_of, pinned, record_origin
from larmor.commands.models import EvaluateOptions, ReconstructOptions
from larmor.commands.training import use_own_code
from larmor.commands.view import ViewOptions, view
from larmor.recon.evaluation.evaluate import Evaluation
from larmor.recon.recipe.own_code import CodeConfig, check_code, code_hash, use_pinned_code
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore
from larmor.tuning.report.report import write_report
from larmor.tuning.search.slot import serve
from larmor.tuning.search.slots import SlotConfig
from larmor.tuning.search.sweep import trial_experiment
from larmor.tuning.search.sweep_folder import SweepFolder
from tests.cluster.launch.test_systems import kspace_url  # noqa: F401
from tests.own_lab import write_lab

METRIC = "mylab.parts:largest_error"
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


class Alone(Smaller):
    def __init__(self):
        super().__init__(1)


class ImageAlone(Smaller):
    def forward(self, image):
        return image


def per_image(reconstruction, target):
    return (reconstruction - target).abs().mean(dim=(1, 2, 3))


def constant(reconstruction, target):
    return (target - 1).abs().mean()


def halves(shape, ratio, rng):
    return rng.random((shape[0] // 2, shape[1])) < ratio


number = 3


def no_direction(reconstruction, target):
    return (reconstruction - target).abs().mean()


def map_of_errors(reconstruction, target):
    return (reconstruction - target).abs()


def undefined(reconstruction, target):
    return float("nan")


def one_image(reconstruction):
    return 0.0


for metric in (map_of_errors, undefined, one_image):
    metric.higher_is_better = False
odd = {"networks": {"generator": "unet"}}
flat = {"generator": "unet"}
misspelt = {"generator": {"nam": "unet"}}


def broken():
    raise OSError("no weights")
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
    assert result.metrics[f"val/{METRIC}"] > 0
    larmor.pull("results/runs/own", "model", metric=METRIC)
    assert json.loads((lab / "model" / "metrics.json").read_text())["chosen_by"] == f"val/{METRIC}"
    with pytest.raises(InputError, match=r"runs code that is not Larmor's \(generator.name=mylab.parts:TwoLayers"):
        larmor.load_model("model")
    network = larmor.load_model("model", trust_code=["mylab"])
    assert sum(item.numel() for item in network.parameters()) == 16 * 9 + 16 + 16 * 9 + 1
    few = EvaluateOptions(split="validation", metrics=[METRIC])
    table = larmor.evaluate("model", kspace_url, few, to="tables", trust_code=["mylab"]).tables[0]
    assert table.methods == ("zero_filled", "TwoLayers")
    _check_tables(table, lab / "tables")
    assert "differs from the model" in "".join(larmor.export("model", "model.pt2", trust_code=["mylab"]))
    reports = larmor.reconstruct("model", kspace_url, "images", ReconstructOptions("validation"), trust_code=["mylab"])
    assert all(report.files for report in reports)

    with pytest.raises(InputError, match="runs code that is not Larmor's"):
        view("results/runs/own")
    shown = view("results/runs/own", ViewOptions(trust_code=["mylab"]))
    shown.close()

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
        (["generator.options={depth: 3}"], r"TwoLayers\(channels=1, width=16, depth=3\): TypeError: .*'depth'"),
        (["generator.name=unett", "generator.options={}"], r"generator.name='unett': .*'unet', .* or MODULE:NAME"),
        (
            ["generator.name=unet", "generator.options={width: 16}"],
            r"options=\{'width': 16\} are for a network of your own",
        ),
        (["generator.name=mylab.trouble:Smaller", "generator.options={}"], r"expected an image \[1, 1, 32, 32\]"),
        (["generator.name=mylab.trouble:Nothing", "generator.options={}"], "has no parameters to train"),
        (["generator.name=mylab.trouble:number", "generator.options={}"], "TypeError: 'int' object is not callable"),
        (["loss.content=mylab.trouble:per_image"], r"expected one number .*got a tensor of shape \[1\]"),
        (["loss.content=mylab.trouble:constant"], "has no gradient"),
        (["loss.adversarial=wasserstein", "critic.name=mylab.trouble:Flat"], r"expected scores \[1, 1\], got \[1\]"),
        (["mask.kind=mylab.trouble:halves"], r"expected booleans \(32, 32\) .*got bool \(16, 32\)"),
        (["generator.name=mylab.trouble:Alone"], r"called as Alone\(channels=1\): TypeError"),
        (
            ["generator.name=mylab.trouble:ImageAlone", "generator.data_consistency=none"],
            r"generator.name=mylab.trouble:ImageAlone: called with \[1, 1, 32, 32\].*TypeError: .*positional arguments",
        ),
        (["loss.content=mylab.trouble:one_image"], r"mylab.trouble:one_image: called as .*TypeError"),
        (["mask.kind=mylab.trouble:one_image"], r"mask\(shape, sampling_ratio, rng\): TypeError: one_image"),
        (["training.metrics=[mylab.trouble:no_direction]"], "no_direction: does not say whether higher is better"),
        (["training.metrics=[mylab.trouble:map_of_errors]"], r"one finite number, got Tensor of shape \[32, 32\]"),
        (["training.best_metric=mylab.trouble:undefined"], r"undefined: .*expected one finite number, got nan"),
        (["training.metrics=[mylab.trouble:one_image]"], r"metric\(reconstruction, target\) .*TypeError: one_image"),
        (["training.metrics=[mylab.trouble:number]"], "expected a function, or a class with __call__, got int"),
        (["training.metrics=[sharpness]"], r"training.metrics.*should be MODULE:NAME of your own code"),
        (["training.best_metric=sharpness"], r"'sharpness' is not a validation metric; choose one of psnr, .*MODULE"),
        (["system=mylab.parts:three"], "mylab.parts has no three"),
        (["system=mylab.trouble:number"], "expected a dictionary, or a function that returns one, got int"),
        (["system=mylab.trouble:odd"], r"networks=.* is no section of a system; it may have augment, signal"),
        (["system=mylab.trouble:flat"], r"generator='unet' is no section of a system"),
        (["system=mylab.trouble:misspelt"], r"own.yaml with mylab.trouble:misspelt: unknown key 'generator.nam'; did"),
        (["system=mylab.trouble:broken"], r"called as broken\(\): OSError: no weights"),
        (["system=larmr"], r"system='larmr': .*'larmor', .* or MODULE:NAME of your own code"),
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


def _check_tables(table: Evaluation, folder: Path) -> None:
    """The metric of one's own is a column of each table and of the report, as its own attributes say."""
    assert list(table.metrics)[-1] == METRIC
    assert all(row.metrics[METRIC] > 0 for row in table.slices)
    means = [np.mean([row.metrics[METRIC] for row in table.slices if row.method == name]) for name in table.methods]
    assert [table.mean(name)[METRIC] for name in table.methods] == pytest.approx(means)
    heading = (folder / "tables.md").read_text().splitlines()[2]
    assert "| largest_error |" in heading
    assert METRIC in (folder / "metrics.csv").read_text().splitlines()[0]
    write_report(folder / "report.html", ["results/runs/own"])
    assert "No pictures: " in (folder / "report.html").read_text(), "and no code was run for them"
    write_report(folder / "report.html", ["results/runs/own"], folder, trust_code=["mylab"])
    page = (folder / "report.html").read_text()
    assert "No pictures: " not in page
    assert "Largest absolute error of a pixel. Lower is better." in page
    assert "Validation: largest_error" in page


def test_a_sweep_counts_a_metric_of_ones_own(
    kspace_url: str,  # noqa: F811
    lab: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which of its directions is better is read where the code is, and from the record where it is not."""
    config = larmor.load_experiment("own.yaml", [*FEW, f"data.url={kspace_url}"])
    use_own_code(config)
    trial = trial_experiment(config)
    assert (trial.training.best_metric, trial.training.own_metrics) == ("psnr", (METRIC,))
    folder = SweepFolder(config.sweep_url)
    folder.create(dump_yaml(config))
    record_origin(pinned(trial), folder)
    for name in ("mylab", "mylab.parts"):  # as where a sweep is pulled: the code is not there
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if Path(place) != lab])
    objectives = folder.objectives()
    assert objectives.modes == ["max", "min"]
    found = [{"val/psnr": psnr, f"val/{METRIC}": error} for psnr, error in ((20.0, 0.5), (21.0, 0.4), (22.0, 0.6))]
    assert objectives.front(found) == [1, 2]
    assert objectives.choose(found, objectives.weights(METRIC)) == 1
    with pytest.raises(InputError, match=r"has no metric mylab.parts:other; its own metrics are mylab.parts:largest"):
        metric_of(folder, "mylab.parts:other")


def test_a_sweeps_own_metric_is_tried_first(kspace_url: str, lab: Path) -> None:  # noqa: F811
    with pytest.raises(InputError, match="no_direction: does not say whether higher is better"):
        larmor.sweep("own.yaml", [*FEW, f"data.url={kspace_url}", "sweep.metric=mylab.trouble:no_direction"])


def test_of_a_sweep_no_system_and_no_code_is_taken(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its values may be anybody's, and a system's defaults are read by importing it."""
    for key, value in (("system", "antigravity:fly"), ("code.paths", ["evil"])):
        monkeypatch.setattr("larmor.commands.training.best_parameters", lambda _, key=key, value=value: {key: value})
        with pytest.raises(InputError, match=rf"names code of its own \({key.partition('.')[0]}"):
            larmor.load_experiment("own.yaml", best_of="results/sweeps/other")


def test_a_system_of_ones_own_gives_defaults(lab: Path) -> None:
    found = larmor.load_experiment("own.yaml", ["loss.a=2", "generator.options.width=8"])
    assert (found.system, found.title) == ("mylab.parts:two_layers", "TwoLayers")
    assert (found.generator.name, found.generator.options) == ("mylab.parts:TwoLayers", {"width": 8})
    assert (found.loss.a, found.loss.content, found.loss.adversarial) == (2, "mylab.parts:charbonnier", "none")
    other = larmor.load_experiment("own.yaml", ["generator.name=unet"])
    assert (other.title, other.generator.options) == ("two_layers", {}), "options are another network's"
    with pytest.raises(InputError, match="its defaults are read with an experiment's file"):
        build({"system": "mylab.parts:two_layers"}, Experiment, "here")
    written = lab / "whole.yaml"
    written.write_text(dump_yaml(found))
    assert larmor.load_experiment(str(written)) == found


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

    def test_a_worker_takes_no_other_code_than_the_runs(
        self,
        kspace_url: str,  # noqa: F811
        lab: Path,
    ) -> None:
        """As when it is started again, and the shared disk has been edited since."""
        given = larmor.load_experiment("own.yaml", [*FEW, f"data.url={kspace_url}"])
        use_own_code(given)
        trial = pinned(trial_experiment(given))
        (lab / "mylab" / "parts.py").write_text((lab / "mylab" / "parts.py").read_text() + "\n# edited\n")
        content = dump_for_workers(trial)
        slot = SlotConfig(content, "results/sweeps/own", None, "desk", 1, 1)
        for start in (lambda: work(WorkConfig(content, "results/runs/own", None)), lambda: serve(slot)):
            with pytest.raises(InputError, match=r"mylab: is not the code of this experiment \(SHA-256 .*restore it"):
                start()
        elsewhere = CodeConfig(paths=("/nowhere/otherlab",), sha256="0" * 64)
        with pytest.raises(InputError, match="this worker finds no module otherlab; `larmor train --address`"):
            use_pinned_code(elsewhere)

    @pytest.mark.parametrize(
        "place", ["output_url=results", "data.url=heads", "mask.file=mask.npy", "init_from.url=model"]
    )
    def test_a_job_has_no_relative_places(self, lab: Path, place: str) -> None:
        mask = ["mask.kind=file"] if place.startswith("mask") else []
        config = larmor.load_experiment("laptop", ["output_url=/shared/results", "data.url=s3://a/b", *mask, place])
        with pytest.raises(InputError, match=f"{place}: is relative to a folder of this machine"):
            check_places(config)
        command = ["submit", "laptop", "--address", "http://127.0.0.1:1", "--dry-run", *mask, place]
        result = CliRunner().invoke(main.app, command)
        assert result.exit_code != 0
        assert f"{place}: is relative to a folder of this machine" in str(result.exception or result.output)

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
