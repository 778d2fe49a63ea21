"""Training of a decoding: it resumes exactly, learns what is there, and refuses what is of no use to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from larmor.cluster.experiments.experiment import Experiment
from larmor.cluster.runs.run_folder import RunFolder
from larmor.cluster.worker.ranks import Ranks
from larmor.cluster.worker.worker import RunWorker
from larmor.commands.decoding import evaluate
from larmor.commands.models import evaluate as evaluate_reconstruction
from larmor.commands.models import export, pull
from larmor.commands.training import train
from larmor.recon.decoding.order import batch_of_trials
from larmor.recon.decoding.train import train_decoding
from larmor.storage.dataset.trials import Trials, write_trials
from larmor.storage.examples.symbols import category_symbols
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore
from larmor.tuning.search.experiment import load_sweep_experiment
from tests.helpers import random_kspace, small_recipe, write_dataset, write_model
from tests.interrupted import Interrupted, interrupted_after
from tests.workbench import succeed

STEPS = 6


@pytest.fixture(scope="module")
def trials_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Six runs of eight trials: each category has a pattern of its own over voxels and volumes, and noise."""
    rng = np.random.default_rng(0)
    symbols = np.stack(list(category_symbols().values()))[:, None, ::2, ::2]
    patterns = rng.standard_normal((8, 5, 12))
    kinds = np.concatenate([rng.permutation(8) for _ in range(6)])
    bold = patterns[kinds] + 0.5 * rng.standard_normal((48, 5, 12))
    trials = Trials(symbols[kinds], bold.astype(np.float32), np.repeat(np.arange(6), 8))
    url = str(tmp_path_factory.mktemp("data") / "trials")
    write_trials(ObjectStore(url), trials, "ann", [], "symbols")
    return url


def tiny(url: str, *overrides: str) -> Experiment:
    settings = (
        f"data.url={url}",
        "decoding.width=4",
        "decoding.units=16",
        "decoding.code=16",
        "decoding.validation_runs=[4]",
        "decoding.test_runs=[5]",
        "training.global_batch_size=8",
        f"training.num_steps={STEPS}",
        "training.checkpoint_every=2",
        "training.validate_every=2",
        "training.log_every=2",
        "training.backend=plain",
        "training.zero_stage=0",
        *overrides,
    )
    return load_sweep_experiment("tigan", settings).training_part()


def trained(experiment: Experiment, run: RunFolder, worker: type[RunWorker] = RunWorker) -> dict[str, torch.Tensor]:
    with worker(Ranks(), run, experiment.training, torch.device("cpu")) as rank:
        train_decoding(experiment, rank)
    last = run.latest()
    assert last is not None
    return load_file(Path(run.url, last.folder, "generator.safetensors"))


@pytest.mark.parametrize("overrides", [(), ("training.gradient_accumulation=2", "decoding.adversarial=0")], ids=str)
def test_resumed_training_equals_uninterrupted_one(trials_url: str, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    experiment = tiny(trials_url, *overrides)
    whole, parts = (RunFolder(str(tmp_path / name)) for name in ("whole", "parts"))
    expected = trained(experiment, whole)
    with pytest.raises(Interrupted):
        trained(experiment, parts, interrupted_after(2))
    found = trained(experiment, parts)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert [row["loss"] for row in parts.history()] == [row["loss"] for row in whole.history()]
    assert ("critic_loss" in whole.history()[0]) == (not overrides)


def test_deepspeed_trains_as_plain_pytorch(trials_url: str, tmp_path: Path) -> None:
    plain = trained(tiny(trials_url), RunFolder(str(tmp_path / "plain")))
    for stage in (1, 2, 3):
        settings = ("training.backend=deepspeed", f"training.zero_stage={stage}")
        found = trained(tiny(trials_url, *settings), RunFolder(str(tmp_path / str(stage))))
        for name, value in plain.items():
            torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-5)


def test_every_epoch_has_each_trial_once_whatever_the_batch() -> None:
    whole = batch_of_trials(10, 3, 0, 30)
    assert all(sorted(epoch) == list(range(10)) for epoch in whole.reshape(3, 10).tolist())
    parts = [batch_of_trials(10, 3, number, 6) for number in range(5)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert not np.array_equal(whole, batch_of_trials(10, 4, 0, 30))


def test_train_pull_evaluate_and_export(trials_url: str, tmp_path: Path) -> None:
    """Held-out trials are identified, which shuffled ones are not."""
    folds = []
    for fold in (0, 1):
        settings = ("training.num_steps=60", "training.validate_every=30", "training.checkpoint_every=30")
        runs = (f"decoding.test_runs=[{fold}]", f"name=fold{fold}", f"output_url={tmp_path}")
        experiment = tiny(trials_url, *settings, "generator_optimizer.learning_rate=2e-3", *runs)
        train(experiment, local=True)
        folds.append(tmp_path / f"model{fold}")
        pull(experiment.run_url, folds[-1])
    decoded = evaluate(folds, trials_url)
    found = decoded.evaluation.scores
    assert list(found) == ["mean_image", "ridge", "tigan"]
    assert found["mean_image"].identification == pytest.approx(0.5)
    assert found["tigan"].identification > 0.7
    assert found["tigan"].p < 0.01
    assert decoded.lines[0].startswith("Decoding, not reconstruction: pictures from fMRI, 16 held-out trials of 2 runs")
    assert sorted(path.name for path in decoded.files) == ["decoding.json", "decoding.md", "decoding.png"]
    card = (folds[0] / "model-card.md").read_text()
    assert "Decoding, not reconstruction" in card
    assert "undersampled" not in card
    with pytest.raises(InputError, match="both hold run 0 out"):
        evaluate([folds[0], folds[0]], trials_url)
    assert export(folds[0], tmp_path / "model.pt2")[-1].endswith("model.pt2")
    with pytest.raises(
        InputError, match=r"tigan decodes fMRI trials and reconstructs no MRI; .*larmor decode evaluate"
    ):
        evaluate_reconstruction(folds[0], trials_url)


def test_a_model_or_data_of_the_other_modality_are_refused(trials_url: str, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", small_recipe())
    with pytest.raises(
        InputError, match=r"gan_resnet50 reconstructs images and decodes no fMRI; .*Systems that decode: tigan"
    ):
        evaluate(model, trials_url)
    with pytest.raises(InputError, match=r"holds trials of an fMRI experiment.*which system=tigan decodes"):
        evaluate_reconstruction(model, trials_url)
    slices = str(tmp_path / "slices")
    write_dataset(ObjectStore(slices), {"train": random_kspace(4), "validation": random_kspace(2)})
    with pytest.raises(InputError, match=r"holds k-space slices.*needed here are trials"):
        train(tiny(slices, f"output_url={tmp_path}"), local=True)
    laptop = load_sweep_experiment("laptop", [f"data.url={trials_url}", f"output_url={tmp_path}"]).training_part()
    with pytest.raises(InputError, match="holds trials of an fMRI experiment"):
        train(laptop, local=True)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["mask.sampling_ratio=0.2"], "mask: of no use to system=tigan, which decodes and reconstructs nothing"),
        (["generator.width=8"], "its networks and losses are in the section decoding"),
        (["system=unet"], "the section decoding belongs to system=tigan"),
        (["training.best_metric=hfen"], "validated by ssim, psnr, mse, rmse"),
        (["training.ema_decay=0.9"], "ema_decay does not work with system=tigan"),
        (["decoding.test_runs=[4]"], r"runs \[4\] are in validation_runs and in test_runs"),
        (["decoding.content=0", "decoding.adversarial=0"], "nothing to learn from"),
    ],
)
def test_settings_that_make_no_sense_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny("unused", *overrides)


@pytest.mark.parametrize(("runs", "message"), [("[]", "validation_runs is empty"), ("[9]", "no trial is of run 9")])
def test_runs_that_are_not_there_are_named(trials_url: str, tmp_path: Path, runs: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        train(tiny(trials_url, f"decoding.validation_runs={runs}", f"output_url={tmp_path}"), local=True)


@pytest.mark.slow
def test_two_workers_on_ray_train_what_the_command_line_pulls(trials_url: str, tmp_path: Path) -> None:
    settings = ["decoding.validation_runs=[4]", "decoding.test_runs=[5]", "training.num_steps=4"]
    every = ["training.validate_every=2", "training.checkpoint_every=2", "training.global_batch_size=8"]
    sizes = ["decoding.width=4", "cluster.num_workers=2", "training.zero_stage=2"]
    succeed("train", "tigan", f"data.url={trials_url}", f"output_url={tmp_path}", *settings, *every, *sizes)
    succeed("pull", f"{tmp_path}/runs/tigan", "--to", str(tmp_path / "model"))
    found = succeed("decode", "evaluate", str(tmp_path / "model"), trials_url)
    assert "Decoding, not reconstruction" in found
    assert "ridge" in found
    assert "model.onnx" in succeed("export", str(tmp_path / "model"), "--to", str(tmp_path / "model.onnx"))
