"""Weights of another run on Ray: its workers, and those of a sweep, start from them, read from the object store."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load

from larmor.cluster.runs.initial import read_initial
from larmor.cluster.runs.run_folder import RunFolder
from larmor.tuning.search.sweep_folder import SweepFolder
from tests.workbench import succeed, tiny, unique_name

pytestmark = pytest.mark.slow
OUTPUT = "s3://larmor"
SCHEDULE = ("training.num_steps=2", "training.checkpoint_every=2", "training.validate_every=2")
STILL = ("generator_optimizer.learning_rate=1e-60", "critic_optimizer.learning_rate=1e-60")


def weights_of(run: RunFolder) -> dict[str, torch.Tensor]:
    last = run.latest()
    assert last is not None
    return load(run.store.read(f"{last.folder}/generator.safetensors"))


def test_workers_and_trials_start_from_the_weights_of_a_run(tiny_heads: str, store_environment: dict[str, str]) -> None:
    name = unique_name("source")
    source = RunFolder(f"{OUTPUT}/runs/{name}")
    succeed("train", "--local", *tiny(name, tiny_heads, OUTPUT, *SCHEDULE, "cluster.num_workers=1"))
    expected = weights_of(source)
    more = (*SCHEDULE, *STILL, f"init_from={source.url}", "init_from.critics=true", "critic.clip=0.02")

    fine = unique_name("fine")
    zero = ("cluster.num_workers=2", "training.zero_stage=3")
    output = succeed("train", *tiny(fine, tiny_heads, OUTPUT, *more, *zero))
    assert output.count("initial weights: ") == 1
    runs = [RunFolder(f"{OUTPUT}/runs/{fine}")]

    sweep = SweepFolder(f"{OUTPUT}/sweeps/{fine}")
    space = ("space.loss.a=loguniform(1,10)", "sweep.overrides={}", "cluster.num_workers=1", "sweep.start_seeds=1")
    succeed("sweep", *tiny(fine, tiny_heads, OUTPUT, *more, *space), "--trials", "2")
    runs += [sweep.trial_run(trial.id) for trial in sweep.trials()]
    assert len(runs) == 3
    pinned = read_initial(sweep.store)
    assert pinned is not None
    for run in runs:
        found = weights_of(run)
        assert all(torch.equal(found[key], weight) for key, weight in expected.items())
        initial = read_initial(run.store)
        assert initial is not None
        assert initial.sha256 == pinned.sha256
