"""A dry run says what a training would do, and leaves no trace."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from larmor.cli import main
from larmor.commands.planning import plan_sweep, plan_training
from larmor.commands.training import load_experiment
from larmor.recon.training.gan import Gan
from larmor.recon.training.probe import count_parameters
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore
from tests.helpers import contents_of, ellipsoid, write_images, write_model
from tests.workbench import TINY


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    images = ellipsoid((64, 16, 64)).transpose(1, 0, 2)[3:13].astype(np.float32)
    write_images(ObjectStore(str(tmp_path / "data")), {"train": images, "validation": images[:2]})
    return [f"data.url={tmp_path / 'data'}", f"output_url={tmp_path / 'out'}", *TINY, "critic.steps=2", "name=dry"]


def test_a_dry_run_of_a_training_writes_nothing(given: list[str], tmp_path: Path) -> None:
    before = contents_of(tmp_path)
    config = load_experiment("laptop", [*given, "training.num_steps=100", "cluster.num_workers=2"]).training_part()
    facts = plan_training(config)
    assert contents_of(tmp_path) == before
    assert facts["output"] == f"{tmp_path}/out/runs/dry (new)"
    assert facts["resources"] == "2 workers, each 1 CPU"
    assert facts["epoch"] == "10 samples, 1.2 steps"  # of 4 slices for each of two critic steps
    assert facts["steps"] == "100, 80.0 epochs"
    assert int(facts["parameters of generator"].replace(",", "")) > 1000
    assert re.fullmatch(r"requests of \S+ MB, and up to \d+ MiB of batches in .* 2 workers, .*", facts["reading"])
    assert facts.keys() >= {"parameters of critic", "memory", "time", "data", "checkpoints"}


def test_a_dry_run_of_a_sweep_counts_its_trials(given: list[str], tmp_path: Path) -> None:
    before = contents_of(tmp_path)
    space = ["sweep.space={}", "space.loss.a=choice(1,10)", "space.loss.b=choice(1,2,3)", "sweep.sampler=grid"]
    facts = plan_sweep(load_experiment("laptop", [*given, *space]))
    assert contents_of(tmp_path) == before
    assert facts["trainings"] == "6 trials, by grid: loss.a, loss.b"
    assert "one after another" in facts["time"]


def test_a_dry_run_looks_at_the_initial_weights(given: list[str], tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", load_experiment("laptop", given).training_part())
    given += [f"init_from={model}", "training.num_steps=5"]
    before = contents_of(tmp_path)
    assert plan_training(load_experiment("laptop", given).training_part())["initial weights"] == str(model)
    assert contents_of(tmp_path) == before
    with pytest.raises(InputError, match=r"its generator is another network than this one \(generator.width=4 there"):
        plan_training(load_experiment("laptop", [*given, "generator.width=8"]).training_part())


def test_what_a_training_would_refuse_a_dry_run_refuses(given: list[str]) -> None:
    with pytest.raises(InputError, match="does not fit into the slices"):
        plan_training(load_experiment("laptop", [*given, "data.crop=[128,128]"]).training_part())


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("loss.adversarial=none",),
        ("loss.residual_critic=1", "critic.lipschitz=spectral_norm"),
        ("generator.start.method=wavelet", "generator.data_consistency=soft", "generator.cascades=2"),
        ("generator.norm=none", "critic.norm=none", "data.stack=3"),
        ("system=idpcnn", "generator.width=64"),
    ],
)
def test_parameters_are_those_of_the_networks_that_are_trained(given: list[str], overrides: tuple[str, ...]) -> None:
    plain = ("training.backend=plain", "training.zero_stage=0")
    recipe = load_experiment("laptop", [*given, *overrides, *plain]).training_part()
    gan = Gan(recipe, torch.device("cpu"))
    try:
        built = {name: sum(weight.numel() for weight in e.module.parameters()) for name, e in gan.engines.items()}
    finally:
        gan.close()
    assert count_parameters(recipe) == built


@pytest.mark.parametrize(("more", "trainings"), [((), "1"), (("--sweep", "sweep.num_trials=5"), "5 trials")])
def test_a_job_is_described_where_its_store_is_out_of_reach(
    given: list[str], monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...], trainings: str
) -> None:
    """Nor is the cluster asked: nobody listens at its address."""
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
    }.items():
        monkeypatch.setenv(name, value)
    places = ("data.url=s3://away/heads", "output_url=s3://away")
    command = ["submit", "laptop", *given, *places, *more, "--address", "http://127.0.0.1:1", "--dry-run"]
    result = CliRunner().invoke(main.app, command, catch_exceptions=False)
    assert result.exit_code == 0
    told = " ".join(result.output.split())
    assert "data s3://away/heads, which this machine does not reach (s3://away/heads: http://127.0.0.1:1 " in told
    assert f"output {'s3://away/sweeps/dry' if more else 's3://away/runs/dry'} " in told
    assert f"trainings {trainings} " in told
    assert "parameters of generator " in told
