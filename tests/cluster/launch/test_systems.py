"""Every system of the comparison trains, goes on exactly after an interruption, and stops for its own reasons."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from larmor.cluster.experiments.experiment import Experiment
from larmor.cluster.runs.run_folder import RunFolder
from larmor.cluster.worker.ranks import Ranks
from larmor.cluster.worker.worker import RunWorker
from larmor.recon.evaluation.evaluate import evaluate
from larmor.recon.evaluation.methods import table_cells
from larmor.recon.inference.inference import Physics
from larmor.recon.models.model import Model
from larmor.recon.networks.networks import build_generator
from larmor.recon.recipe.metric import HIGHER_IS_BETTER
from larmor.recon.recipe.systems import SYSTEMS
from larmor.recon.training.history import TrainingDiverged
from larmor.recon.training.train import EarlyStop, train
from larmor.storage.examples.cine import cine_frames, draw_heart
from larmor.storage.loading.config import DataConfig, open_reader
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore
from larmor.tuning.search.experiment import load_sweep_experiment
from tests.helpers import coil_scan, ellipsoid, random_kspace, write_coil_splits, write_dataset, write_images
from tests.interrupted import Interrupted, interrupted_after
from tests.workbench import TINY, unique_name

STEPS = 4
# a tiny critic on images of a few pixels is chaotic: 1e-6 of its first weights is all of its score after four steps, so
# that trainings which round differently are compared without one (tests/recon/engines/test_parity.py compares critics)
STEADY = "loss.adversarial=none"


class PoisonedWorker(RunWorker):
    """Its averaged weights, which validation rates, are NaN; training itself goes on with good ones."""

    def restore(self, read: Callable[[Path], None]) -> bool:
        def poisoned(folder: Path) -> None:
            weights = load_file(folder / "generator.safetensors")
            save_file({name: value * np.nan for name, value in weights.items()}, folder / "generator.safetensors")
            read(folder)

        return super().restore(poisoned)


@pytest.fixture(scope="module")
def kspace_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data") / "set"
    splits = {"train": random_kspace(12, (1, 32, 40)), "validation": random_kspace(4, (1, 32, 40), 1)}
    write_dataset(ObjectStore(str(folder)), splits)
    return str(folder)


@pytest.fixture(scope="module")
def coils_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data") / "coils"
    scans = [coil_scan(coils, 8, 32, 40, seed=seed) for seed, coils in enumerate((4, 3, 4))]
    write_coil_splits(ObjectStore(str(folder)), {"train": scans[:2], "validation": scans[2:]})
    return str(folder)


def tiny(url: str, *overrides: str) -> Experiment:
    settings = (
        *TINY,
        f"data.url={url}",
        "data.crop=[32,40]",
        f"training.num_steps={STEPS}",
        "training.checkpoint_every=2",
        "training.validate_every=2",
        "training.log_every=2",
        "training.backend=plain",
        "training.zero_stage=0",
        "cluster.num_workers=1",
        *overrides,
    )
    return load_sweep_experiment("laptop", settings).training_part()


def run_in(folder: Path) -> RunFolder:
    return RunFolder(str(folder / unique_name("run")))


def trained(experiment: Experiment, run: RunFolder, worker: type[RunWorker] = RunWorker) -> RunFolder:
    torch.set_num_threads(1)
    with worker(Ranks(), run, experiment.training, torch.device("cpu")) as rank:
        train(experiment, rank)
    return run


CASES = [
    *([f"system={system}", *(["data.stack=2"] if "data" in content else [])] for system, content in SYSTEMS.items()),
    ["system=sat_net", "data.stack=2", "augment.rotation=10", "mask.per_slice=true"],
    ["system=larmor", "mask.sampling_ratio={min: 0.1, max: 0.5}", "augment.elastic=0.01", "augment.contrast=0.3"],
    ["critic.lipschitz=gradient_penalty"],
    ["critic.lipschitz=spectral_norm"],
    ["generator.subbands=wavelet", "generator.data_consistency=soft"],
    ["signal.mode=complex", "generator.data_consistency=hard"],
    ["signal.mode=complex", "signal.coils=rss"],
    ["training.dtype=bfloat16", "training.channels_last=true", "training.schedule=halving", "training.halve_every=1"],
]


@pytest.mark.parametrize("overrides", CASES, ids=" ".join)
def test_resumed_training_equals_uninterrupted_one(kspace_url: str, tmp_path: Path, overrides: list[str]) -> None:
    assert_resumes(kspace_url, tmp_path, overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["generator.data_consistency=hard", "augment.flip=0.5", "augment.rotation=10", "augment.bias=0.1"],
        ["generator.data_consistency=soft", "critic.lipschitz=gradient_penalty"],
        ["system=unet"],
        ["system=deepcomplexmri", "signal.num_coils=3", "generator.cascades=2"],
        ["system=unet", "signal.coils=all", "signal.num_coils=4", "augment.flip=0.5"],
    ],
    ids=" ".join,
)
def test_resumed_training_of_coils_with_maps_too(coils_url: str, tmp_path: Path, overrides: list[str]) -> None:
    assert_resumes(coils_url, tmp_path, ["signal.mode=complex", *overrides])


def test_training_with_maps_learns_and_every_method_stands_in_the_table(coils_url: str, tmp_path: Path) -> None:
    overrides = ["signal.mode=complex", "system=unet", "training.num_steps=100", "training.validate_every=100"]
    experiment = tiny(coils_url, "generator.data_consistency=soft", *overrides)
    run = trained(experiment, run_in(tmp_path))
    losses = [row["loss"] for row in run.history()]
    assert np.mean(losses[-20:]) < 0.7 * np.mean(losses[:5])
    last = run.latest()
    assert last is not None
    generator = build_generator(experiment.generator, experiment.signal.channels).eval()
    generator.load_state_dict(load_file(Path(run.url, last.folder, "generator.safetensors")))
    physics = Physics(experiment.data.crop, experiment.mask, experiment.signal)
    (cell,) = table_cells(
        {"unet": Model(generator, physics, experiment, {}, Path("model"))}, ["wavelet", "total_variation"]
    )
    with contextlib.closing(open_reader(DataConfig(url=coils_url), "validation", with_maps=True)) as reader:
        result = evaluate(cell.methods, cell.physics, reader, "paper", 4, lambda *_: None)
    means = {method: result.mean(method) for method in result.methods}
    assert set(means) == {"zero_filled", "wavelet", "total_variation", "unet"}
    for method, mean in means.items():
        assert np.isfinite(list(mean.values())).all()
        if method != "zero_filled":
            assert mean["psnr"] > means["zero_filled"]["psnr"] + 1


def assert_resumes(url: str, tmp_path: Path, overrides: list[str]) -> None:
    experiment = tiny(url, "training.ema_decay=0.5", *overrides)
    whole, broken = trained(experiment, run_in(tmp_path)), run_in(tmp_path)
    with pytest.raises(Interrupted):
        trained(experiment, broken, interrupted_after(2))
    trained(experiment, broken)
    assert len(whole.history()) == STEPS
    assert broken.history() == whole.history()
    assert all(np.isfinite(list(row.values())).all() for row in whole.history())
    final = [run.latest() for run in (whole, broken)]
    assert final[0] is not None
    assert final[1] is not None
    assert final[0].files["generator.safetensors"] == final[1].files["generator.safetensors"]


def assert_the_same_with_deepspeed(url: str, folder: Path, zero_stage: int, *overrides: str) -> None:
    """Every figure of every step, within the rounding of one engine or the other."""
    plain = trained(tiny(url, *overrides), run_in(folder)).history()
    found = trained(tiny(url, *overrides, *deepspeed(zero_stage)), run_in(folder)).history()
    for row, expected in zip(found, plain, strict=True):
        assert row == pytest.approx(expected, rel=2e-4, abs=1e-6)


def deepspeed(zero_stage: int) -> tuple[str, str]:
    return "training.backend=deepspeed", f"training.zero_stage={zero_stage}"


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
@pytest.mark.parametrize("lipschitz", ["gradient_penalty", "spectral_norm"])
def test_lipschitz_constraints_are_the_same_with_deepspeed(
    kspace_url: str, tmp_path: Path, lipschitz: str, zero_stage: int
) -> None:
    overrides = (f"critic.lipschitz={lipschitz}", "training.gradient_accumulation=2")
    assert_the_same_with_deepspeed(kspace_url, tmp_path, zero_stage, *overrides)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_iterations_are_the_same_with_deepspeed(kspace_url: str, tmp_path: Path, zero_stage: int) -> None:
    """Each weight is used several times before its gradient is whole."""
    overrides = ("system=gan_resnet50_modl", "training.gradient_accumulation=2", STEADY)
    assert_the_same_with_deepspeed(kspace_url, tmp_path, zero_stage, *overrides)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_complex_convolutions_are_the_same_with_deepspeed(coils_url: str, tmp_path: Path, zero_stage: int) -> None:
    """Kernels that are put together of several parameters; scans of three coils among those of four."""
    overrides = ("system=deepcomplexmri", "signal.num_coils=4", "generator.cascades=2")
    assert_the_same_with_deepspeed(coils_url, tmp_path, zero_stage, *overrides)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("system", ["conv_lstm", "sat_net"])
def test_stacks_are_the_same_with_deepspeed(kspace_url: str, tmp_path: Path, system: str, zero_stage: int) -> None:
    """A kernel that is used for every frame; attention whose γ begins at 0."""
    overrides = (f"system={system}", "data.stack=2", "training.gradient_accumulation=2", "training.num_steps=2")
    assert_the_same_with_deepspeed(kspace_url, tmp_path, zero_stage, *overrides)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_larmor_is_the_same_with_deepspeed(kspace_url: str, tmp_path: Path, zero_stage: int) -> None:
    """A start without a gradient, cascades with weights of their own."""
    overrides = ["system=larmor", "generator.cascades=2", "training.gradient_accumulation=2", "mask.per_slice=false"]
    assert_the_same_with_deepspeed(kspace_url, tmp_path, zero_stage, *overrides, STEADY)
    with_critic = trained(tiny(kspace_url, *overrides, *deepspeed(zero_stage)), run_in(tmp_path)).history()
    shares = [with_critic[-1][f"share/{name}"] for name in ("adversarial", "content", "frequency")]
    assert sum(shares) == pytest.approx(1)
    assert min(shares) > 0
    assert {"score/real", "score/fake", "score/slope"} <= set(with_critic[-1])


@pytest.mark.parametrize("overrides", [["system=larmor"], ["system=larmor", "signal.mode=complex"]], ids=" ".join)
def test_larmor_is_above_its_start(kspace_url: str, tmp_path: Path, overrides: list[str]) -> None:
    longer = ["training.num_steps=60", "training.validate_every=60", "loss.adversarial=none", "mask.per_slice=false"]
    experiment = tiny(kspace_url, *overrides, *longer)
    rated = []
    for steps in (1, 60):
        shorter = experiment.model_copy(
            update={"training": experiment.training.model_copy(update={"num_steps": steps, "validate_every": steps})}
        )
        rated.append(trained(shorter, run_in(tmp_path)).history()[-1]["val/psnr"])
    assert rated[1] > rated[0]


def test_a_start_without_the_measured_kspace_is_refused(coils_url: str) -> None:
    with pytest.raises(InputError, match=r"which signal.coils=rss has lost; set signal.coils=sense"):
        tiny(coils_url, "system=larmor", "signal.mode=complex", "signal.coils=rss")
    with pytest.raises(
        InputError, match=r"generator\.start\.method=alternating solves for the image .*start\.method=none"
    ):
        tiny(
            coils_url,
            "system=larmor",
            "generator.data_consistency=none",
            "signal.mode=complex",
            "signal.coils=rss",
        )


def test_the_average_is_what_is_pulled(kspace_url: str, tmp_path: Path) -> None:
    runs = [trained(tiny(kspace_url, f"training.ema_decay={decay}"), run_in(tmp_path)) for decay in (0.0, 0.999)]
    last, averaged = (run.history()[-1]["val/psnr"] for run in runs)
    assert [row["loss"] for row in runs[0].history()] == [row["loss"] for row in runs[1].history()], (
        "training is not changed"
    )
    assert last != averaged


def test_no_progress_ends_a_training_early(kspace_url: str, tmp_path: Path) -> None:
    overrides = ["generator_optimizer.learning_rate=1e-30", "training.early_stop=2", "training.num_steps=20"]
    run = trained(tiny(kspace_url, *overrides), run_in(tmp_path))
    latest = run.latest()
    assert latest is not None
    assert latest.step == len(run.history()) == 6, "validations at 2, 4 and 6: two of them no better than the first"
    assert len(trained(tiny(kspace_url, *overrides), run).history()) == 6, "and it stays ended"


def test_early_stop_counts_validations_in_vain(kspace_url: str) -> None:
    stop = EarlyStop(tiny(kspace_url, "training.early_stop=2", "training.best_metric=nmse").training)
    for value, reached in ((0.5, False), (0.6, False), (0.4, False), (0.4, False), (0.41, True)):
        stop.add({"val/nmse": value})
        assert stop.reached is reached


def test_values_that_are_not_finite_name_their_slice(tmp_path: Path) -> None:
    kspace = random_kspace(12, (1, 32, 40))
    kspace[7, 0, 3, 5] = np.nan
    store = ObjectStore(str(tmp_path / "set"))
    write_dataset(store, {"train": kspace, "validation": kspace[:3]})
    run = run_in(tmp_path)
    with pytest.raises(InputError, match=r"not finite in slice 7 of train1 of .*larmor verify"):
        trained(tiny(store.url), run)


def strictly(content: bytes) -> object:
    """JSON as the standard has it: without NaN and Infinity. Raises `ValueError`."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    return json.loads(content, parse_constant=refuse)


@pytest.mark.parametrize("metric", ["psnr", "ssim", "nmse"])
def test_a_validation_that_is_not_finite_is_a_divergence(kspace_url: str, tmp_path: Path, metric: str) -> None:
    experiment = tiny(kspace_url, "training.ema_decay=0.5", f"training.best_metric={metric}")
    run = run_in(tmp_path)
    with pytest.raises(Interrupted):
        trained(experiment, run, interrupted_after(2))
    before = run.best(f"val/{metric}", HIGHER_IS_BETTER[metric])
    with pytest.raises(TrainingDiverged, match=r"diverged: val/.* is nan at step 4.*checkpoints before this step"):
        trained(experiment, run, PoisonedWorker)
    assert [item.step for item in run.checkpoints()] == [2]
    assert run.best(f"val/{metric}", HIGHER_IS_BETTER[metric]) == before
    for path in run.store.list():
        if path.endswith(".json"):
            strictly(run.store.read(path))
    assert trained(experiment, run).history() == trained(experiment, run_in(tmp_path)).history()


def test_an_early_stop_forgets_a_best_that_is_no_number(kspace_url: str) -> None:
    stop = EarlyStop(tiny(kspace_url, "training.early_stop=2").training)
    for kept, in_vain in ((float("nan"), 1), (float("inf"), 1), (None, 0)):
        stop.load({"best": kept, "validations_in_vain": in_vain})
        stop.add({"val/psnr": 20.0})
        assert (stop.best, stop.in_vain) == (20.0, 0)


@pytest.mark.parametrize("system", ["gan_resnet50", "unet_dssim"])
def test_constant_slices_do_not_count(tmp_path: Path, system: str) -> None:
    """Five empty slices among the others change no digit: neither of the losses nor of the validation."""
    images = ellipsoid((40, 12, 32))[:, 3:10].transpose(1, 2, 0)
    empty = np.zeros((2, *images.shape[1:]), np.float32)
    stores = [ObjectStore(str(tmp_path / name)) for name in ("with", "without")]
    write_images(stores[0], {name: np.concatenate([empty, images, empty + 3]) for name in ("train", "validation")})
    write_images(stores[1], dict.fromkeys(("train", "validation"), images))
    found, expected = (trained(tiny(store.url, f"system={system}"), run_in(tmp_path)).history() for store in stores)
    assert found == expected
    assert all(row["loss"] < 1e3 for row in found)


def test_a_slice_that_is_constant_within_the_crop_does_not_count(tmp_path: Path) -> None:
    """The data set cannot know the crop: such a slice neither drives the loss up nor has a figure."""
    images = ellipsoid((80, 12, 64))[:, 3:10].transpose(1, 2, 0)
    images[[1, 4]] = 0
    images[[1, 4], 2, 3] = 90  # outside the crop
    store = ObjectStore(str(tmp_path / "set"))
    write_images(store, {"train": images, "validation": images})
    rows = trained(tiny(store.url), run_in(tmp_path)).history()
    assert all(row["normalized_root_mse"] < 10 for row in rows)
    validated = [row for row in rows if "val/psnr" in row]
    assert validated
    assert all(5 < row["val/psnr"] < 60 for row in validated)
    write_images(ObjectStore(str(tmp_path / "empty")), {"train": images, "validation": images[[1, 4]]})
    with pytest.raises(InputError, match=r"validation: none of its 2 slices shows anything within 32×40"):
        trained(tiny(str(tmp_path / "empty")), run_in(tmp_path))


def test_a_critic_that_runs_away_stops_the_training(kspace_url: str, tmp_path: Path) -> None:
    overrides = ["critic.lipschitz=none", "critic_optimizer.learning_rate=0.5", "training.num_steps=40"]
    run = run_in(tmp_path)
    with pytest.raises(TrainingDiverged, match=r"critic diverged: critic_loss is .*largest_critic_loss=10000"):
        trained(tiny(kspace_url, *overrides, "generator_optimizer.learning_rate=1e-9"), run)
    kept = run.latest()
    if kept is not None:
        assert all(np.isfinite(list(kept.metrics.values())))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["training.ema_decay=0.9", "training.backend=deepspeed", "training.zero_stage=3"],
            ["ema_decay", "2 or lower"],
        ),
        (["critic.lipschitz=gradient_penalty", "training.zero_stage=3"], ["gradient_penalty", "2 or lower"]),
        (["signal.mode=complex", "signal.coils=rss", "generator.data_consistency=hard"], ["signal.coils=sense"]),
        (["critic.lipschitz=gradient_penalty", "training.compile=true"], ["training.compile=false"]),
        (["generator.name=unet", "generator.subbands=wavelet"], ["subbands=wavelet", "gan_resnet50"]),
        (["loss.adversarial=none", "loss.a=0", "loss.b=0"], ["nothing to minimise"]),
        (["system=conv_lstm", "data.stack=1"], ["data.stack=1 leaves each alone", "set data.stack=8"]),
        (["generator.start.method=view_sharing"], ["view_sharing", "set data.stack=8"]),
        (["system=vae"], ["system='vae'", "wdagan"]),
    ],
)
def test_parts_that_do_not_fit_are_refused(kspace_url: str, overrides: list[str], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        tiny(kspace_url, *overrides)
    for word in words:
        assert word in str(caught.value)


def test_a_critic_that_nothing_holds_may_be_partitioned(kspace_url: str) -> None:
    assert tiny(kspace_url, "system=dagan", "training.zero_stage=3").critic.lipschitz == "none"


def test_a_system_is_a_set_of_defaults(kspace_url: str) -> None:
    experiment = tiny(kspace_url, "system=dagan", "loss.a=3")
    assert experiment.loss.adversarial == "bce"
    assert experiment.loss.a == 3
    assert experiment.critic.applied_clip is None
    assert experiment.generator.width == 4, "what the file says counts"
    again = type(experiment).model_validate(experiment.model_dump(mode="json"))
    assert again == experiment


@pytest.mark.slow
def test_frames_together_are_above_shared_views(tmp_path: Path) -> None:
    """On hearts that beat, after 300 steps."""
    hearts = [cine_frames(draw_heart(np.random.default_rng([0, number])))[:, 32:96, 32:96] for number in range(10)]
    contents = {"train": np.concatenate(hearts[:8]), "validation": hearts[8], "test": hearts[9]}
    write_images(ObjectStore(tmp_path / "data"), {name: images.astype(np.float32) for name, images in contents.items()})
    series = ["system=conv_lstm", "data.crop=[64,64]", "data.stack=8", "generator.width=8"]
    longer = ["training.num_steps=300", "training.validate_every=300", "training.global_batch_size=1"]
    mask = ["mask.kind=gaussian1d", "mask.sampling_ratio=0.25"]
    experiment = tiny(str(tmp_path / "data"), *series, *longer, *mask, "training.validation_slices=24")
    run = trained(experiment, run_in(tmp_path))
    last = run.latest()
    assert last is not None
    generator = build_generator(experiment.generator, stack=8).eval()
    generator.load_state_dict(load_file(Path(run.url, last.folder, "generator.safetensors")))
    physics = Physics(experiment.data.crop, experiment.mask, stack=8)
    (cell,) = table_cells({"model": Model(generator, physics, experiment, {}, Path("model"))}, [])
    with contextlib.closing(open_reader(DataConfig(url=str(tmp_path / "data")), "test")) as reader:
        table = evaluate(cell.methods, cell.physics, reader, "paper", 8, lambda *_: None)
    psnr = {method: table.mean(method)["psnr"] for method in table.methods}
    assert psnr["model"] > psnr["view_sharing"] + 0.3
    assert psnr["view_sharing"] > psnr["temporal_mean"] > psnr["zero_filled"]
