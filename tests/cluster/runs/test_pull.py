"""A model directory appears whole or not at all."""

from __future__ import annotations

import fcntl
import json
import math
import random
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from larmor.cluster.experiments.experiment import Experiment, dump_yaml
from larmor.cluster.launch.run import claimed
from larmor.cluster.runs.origin import record_origin, versions
from larmor.cluster.runs.pull import metric_direction, pull_run
from larmor.cluster.runs.run_folder import RunFolder
from larmor.cluster.runs.run_result import RunResult
from larmor.recon.models.model import load_model
from larmor.recon.recipe.metric import HIGHER_IS_BETTER
from larmor.storage.objects.errors import InputError
from tests.faulty_proxy import FaultyProxy
from tests.helpers import add_checkpoint, contents_of, flip_byte, make_generator, property_test, small_recipe
from tests.workbench import environment

MODEL = {"generator.safetensors", "config.yaml", "metrics.json", "model-card.md"}
FIGURES = {10: (20.0, 0.30), 20: (30.0, 0.10), 30: (25.0, 0.05)}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Three checkpoints: step 20 is the best by PSNR, step 30 by NMSE."""
    run = RunFolder(str(tmp_path / "run"))
    run.create("seed: 1\n")
    for step, (psnr, nmse) in FIGURES.items():
        files = {"generator.safetensors": b"weights of step %d" % step, "training/rank0.pt": b"state"}
        add_checkpoint(run, tmp_path / "scratch", step, {"val/psnr": psnr, "val/nmse": nmse}, files)
    return run


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "models" / "mine"


def beside(target: Path) -> set[str]:
    return {path.name for path in target.parent.iterdir()} if target.parent.exists() else set()


@pytest.mark.parametrize(("metric", "step"), [("psnr", 20), ("val/psnr", 20), ("nmse", 30)])
def test_the_best_checkpoint_arrives_without_anything_else(
    run: RunFolder, target: Path, metric: str, step: int
) -> None:
    pulled = pull_run(run, metric, target)
    assert pulled.checkpoint.step == step
    found = contents_of(target)
    assert set(found) == MODEL
    assert found["generator.safetensors"] == b"weights of step %d" % step
    assert found["config.yaml"] == b"seed: 1\n"
    record = json.loads(found["metrics.json"])
    assert (record["step"], record["chosen_by"]) == (step, f"val/{metric.removeprefix('val/')}")
    assert record["metrics"] == {"val/psnr": FIGURES[step][0], "val/nmse": FIGURES[step][1]}
    assert record["source"].startswith(run.url)
    assert beside(target) == {"mine"}


def test_damaged_weights_leave_nothing(run: RunFolder, target: Path) -> None:
    flip_byte(run.store, f"{run.best('val/psnr', True).folder}/generator.safetensors", 5)
    with pytest.raises(InputError, match=r"generator.safetensors: checksum .* does not match"):
        pull_run(run, "psnr", target)
    assert beside(target) == set()


def test_an_existing_target_is_refused_and_untouched(run: RunFolder, target: Path) -> None:
    target.mkdir(parents=True)
    (target / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=f"{target}: already exists; pass --overwrite"):
        pull_run(run, "psnr", target)
    assert contents_of(target) == {"mine.txt": b"mine"}


def test_overwriting_replaces_all_of_it(run: RunFolder, target: Path) -> None:
    pull_run(run, "psnr", target)
    (target / "old.txt").write_text("old")
    pull_run(run, "nmse", target, overwrite=True)
    assert set(contents_of(target)) == MODEL
    assert (target / "generator.safetensors").read_bytes() == b"weights of step 30"
    assert beside(target) == {"mine"}


def test_overwriting_that_fails_keeps_the_old_one(run: RunFolder, target: Path) -> None:
    pull_run(run, "psnr", target)
    before = contents_of(target)
    flip_byte(run.store, f"{run.best('val/nmse', False).folder}/generator.safetensors", 0)
    with pytest.raises(InputError, match="checksum"):
        pull_run(run, "nmse", target, overwrite=True)
    assert contents_of(target) == before
    assert beside(target) == {"mine"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_is_never_replaced_by_a_directory(run: RunFolder, target: Path, overwrite: bool) -> None:
    target.parent.mkdir()
    target.write_text("mine")
    with pytest.raises(InputError, match=f"{target}: is a file; choose another --to"):
        pull_run(run, "psnr", target, overwrite)
    assert target.read_text() == "mine"


def test_an_unknown_metric_names_the_known_ones(run: RunFolder, target: Path) -> None:
    with pytest.raises(InputError, match="'fid' is not a validation metric; choose one of psnr, ssim, mse, rmse, nmse"):
        pull_run(run, "fid", target)
    with pytest.raises(InputError, match=r"metric 'val/ssim'; its metrics are val/nmse, val/psnr"):
        pull_run(run, "ssim", target)
    assert beside(target) == set()


def test_without_a_run_or_a_checkpoint_nothing_appears(tmp_path: Path, target: Path) -> None:
    empty = RunFolder(str(tmp_path / "empty"))
    with pytest.raises(InputError, match=f"{empty.url}: there is no run here"):
        pull_run(empty, "psnr", target)
    empty.create("seed: 1")
    with pytest.raises(InputError, match="it has no whole checkpoint yet"):
        pull_run(empty, "psnr", target)
    assert beside(target) == set()


@pytest.mark.parametrize("name", HIGHER_IS_BETTER)
def test_every_metric_has_its_direction(name: str, tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path))
    expected = (f"val/{name}", HIGHER_IS_BETTER[name])
    assert metric_direction(run, name) == metric_direction(run, f"val/{name}") == expected


@torch.no_grad()
def test_what_is_pulled_is_a_model(tmp_path: Path, target: Path) -> None:
    recipe = small_recipe(mask={"sampling_ratio": 0.4})
    experiment = Experiment.model_validate({**recipe.model_dump(mode="json"), "name": "mine"})
    generator = make_generator(recipe, seed=5)
    run = RunFolder(str(tmp_path / "run"))
    run.create(dump_yaml(experiment))
    weights = save(generator.state_dict())
    add_checkpoint(run, tmp_path / "scratch", 10, {"val/psnr": 1.0}, {"generator.safetensors": weights})
    pull_run(run, "psnr", target)
    model = load_model(target)
    assert model.recipe == recipe
    assert model.record["step"] == 10
    image = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.generator(image), generator(image))


def test_of_equal_checkpoints_the_earliest_is_taken(run: RunFolder, tmp_path: Path, target: Path) -> None:
    add_checkpoint(run, tmp_path / "scratch", 40, {"val/psnr": 30.0, "val/nmse": 0.01})
    assert pull_run(run, "psnr", target).checkpoint.step == 20


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_the_next_best_is_not_taken_for_the_best(run: RunFolder, target: Path, damage: str) -> None:
    weights = f"{run.best('val/psnr', True).folder}/generator.safetensors"
    content = run.store.read(weights)
    run.store.delete(weights)
    if damage == "cut":
        run.store.write(weights, content[:-1])
    with pytest.raises(InputError, match=f"{weights} is missing or cut short, and this checkpoint is the best"):
        pull_run(run, "psnr", target)
    assert beside(target) == set()
    assert pull_run(run, "nmse", target).checkpoint.step == 30, "another one is whole"


def test_the_best_is_brought_without_a_file_that_only_the_training_needs(run: RunFolder, target: Path) -> None:
    best = run.best("val/psnr", True)
    run.store.delete(f"{best.folder}/training/rank0.pt")
    pulled = pull_run(run, "psnr", target)
    assert pulled.checkpoint.step == 20
    assert any("training/rank0.pt is missing or cut short" in note for note in pulled.notes)
    with pytest.raises(InputError, match=r"training/rank0.pt: the file is missing"):
        pull_run(run, "psnr", target, overwrite=True, full=True)
    assert (target / "generator.safetensors").read_bytes() == b"weights of step 20"


def test_a_best_one_that_was_lost_is_told_of(run: RunFolder, target: Path) -> None:
    folder = run.best("val/psnr", True).folder
    run.store.delete(f"{folder}/generator.safetensors")
    run.prune(9, 1, "val/psnr", True)
    pulled = pull_run(run, "psnr", target)
    assert pulled.checkpoint.step == 30
    assert any(f"{folder} was removed: generator.safetensors is missing" in note for note in pulled.notes)


def test_a_best_checkpoint_that_is_gone_is_named(run: RunFolder, target: Path) -> None:
    best = run.best("val/psnr", True)
    run.write_result(RunResult("finished", 20, best.folder))
    run.store.delete(best.folder)
    pulled = pull_run(run, "psnr", target)
    assert pulled.checkpoint.step == 30
    assert any(f"result names another checkpoint, {best.folder}" in note for note in pulled.notes)


def test_a_newer_manifest_is_refused(run: RunFolder, target: Path) -> None:
    path = f"{run.best('val/psnr', True).folder}/manifest.json"
    run.store.write(path, json.dumps({**json.loads(run.store.read(path)), "format": 9}).encode())
    with pytest.raises(InputError, match=r"has manifest format 9, this Larmor reads up to 1; update Larmor"):
        pull_run(run, "psnr", target)
    assert beside(target) == set()


def test_a_run_that_goes_on_gives_its_best_so_far_and_says_so(run: RunFolder, target: Path) -> None:
    assert "the run has not finished: the best so far" in pull_run(run, "psnr", target).notes
    assert "has not finished" in (target / "model-card.md").read_text()
    run.write_failure("the critic diverged at step 31")
    assert "the run ended early (the critic diverged at step 31)" in pull_run(run, "psnr", target, True).notes
    run.clear_failure()
    run.write_result(RunResult("finished", 20, run.best("val/psnr", True).folder))
    assert pull_run(run, "psnr", target, True).notes == ()
    (note,) = pull_run(run, "nmse", target, True).notes
    assert "keeps its best checkpoint by val/psnr: by val/nmse" in note


def test_a_checkpoint_that_is_replaced_while_it_is_pulled(
    run: RunFolder, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run finds a better one after we have looked, and retention removes what we were about to read."""
    look = RunFolder.download

    def late(self: RunFolder, *arguments: object, **options: object) -> None:
        monkeypatch.setattr(RunFolder, "download", look)
        add_checkpoint(run, tmp_path / "scratch", 40, {"val/psnr": 31.0})
        run.prune(1, 1, "val/psnr", True)
        look(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(RunFolder, "download", late)
    assert pull_run(run, "psnr", target).checkpoint.step == 40
    assert (target / "generator.safetensors").read_bytes() == b"weights of step 40"
    assert beside(target) == {"mine"}


def test_full_brings_every_file_of_the_checkpoint(run: RunFolder, target: Path) -> None:
    pull_run(run, "psnr", target, full=True)
    state = {"checkpoint/generator.safetensors", "checkpoint/training/rank0.pt"}
    found = contents_of(target)
    assert set(found) == MODEL | state
    assert found["checkpoint/training/rank0.pt"] == b"state"
    assert found["checkpoint/generator.safetensors"] == found["generator.safetensors"] == b"weights of step 20"
    flip_byte(run.store, f"{run.best('val/psnr', True).folder}/training/rank0.pt", 2)
    with pytest.raises(InputError, match=r"rank0.pt: checksum .* does not match"):
        pull_run(run, "psnr", target, overwrite=True, full=True)
    assert contents_of(target) == found


def test_two_pulls_do_not_write_to_one_place(run: RunFolder, target: Path) -> None:
    partial = target.with_name("mine.partial")
    partial.mkdir(parents=True)
    with (partial / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match=f"{target}: another `larmor pull` is writing to it"):
            pull_run(run, "psnr", target)
    pull_run(run, "psnr", target)
    assert beside(target) == {"mine"}


@pytest.mark.parametrize("planted", ["lock", "folder"])
def test_a_planted_link_is_not_followed(run: RunFolder, target: Path, tmp_path: Path, planted: str) -> None:
    """Models are often pulled to a temporary folder, and what lies beside them has a name that others know."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "lock").write_text("precious")
    partial = target.with_name("mine.partial")
    partial.parent.mkdir(parents=True)
    if planted == "folder":
        partial.symlink_to(mine)
    else:
        partial.mkdir()
        (partial / "lock").symlink_to(mine / "lock")
    with pytest.raises(InputError, match=r"mine\.partial.* is a link; remove it"):
        pull_run(run, "psnr", target)
    assert contents_of(mine) == {"lock": b"precious"}


class TestBrokenDownload:
    SIZE = 20_000_000  # more than two blocks

    @pytest.fixture
    def far(self, faulty_proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
        """A run in a real store, whose weights take several requests."""
        monkeypatch.setenv("LARMOR_STORE_PATIENCE", "1")
        run = RunFolder(f"s3://larmor/{tmp_path.name}")
        run.create("seed: 1\n")
        files = {"generator.safetensors": random.Random(0).randbytes(self.SIZE)}
        add_checkpoint(run, tmp_path / "scratch", 10, {"val/psnr": 30.0}, files)
        return run

    def ranges(self, proxy: FaultyProxy) -> list[str | None]:
        """The ranges of the weights that were asked for."""
        return [item.range for item in proxy.log if item.method == "GET" and "generator.safetensors" in item.path]

    def kill_after_a_block(self, far: RunFolder, proxy: FaultyProxy, target: Path) -> int:
        """Kill a pull when its first block has arrived; the bytes that it leaves."""
        begun = target.with_name("mine.partial") / "model" / "generator.safetensors.partial"
        proxy.plan("slow", matches="generator.safetensors", seconds=1)
        program = "import sys; from larmor.cli.main import main; sys.argv[0] = 'larmor'; main()"
        arguments = ("pull", far.url, "--to", str(target))
        process = subprocess.Popen([sys.executable, "-c", program, *arguments], env=environment())
        while not begun.is_file() or not begun.stat().st_size:
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
        process.wait()
        proxy.clear()
        return begun.stat().st_size

    def test_killed_it_goes_on_where_it_stopped(self, far: RunFolder, faulty_proxy: FaultyProxy, target: Path) -> None:
        left = self.kill_after_a_block(far, faulty_proxy, target)
        assert 0 < left < self.SIZE
        assert not target.exists()
        before = len(self.ranges(faulty_proxy))
        pull_run(far, "psnr", target)
        asked = self.ranges(faulty_proxy)[before:]
        assert next(text.split("-")[0] for text in asked if text) == f"bytes={left}"
        assert (target / "generator.safetensors").read_bytes() == random.Random(0).randbytes(self.SIZE)
        assert beside(target) == {"mine"}

    def test_what_was_begun_of_another_checkpoint_is_not_used(
        self, far: RunFolder, faulty_proxy: FaultyProxy, target: Path, tmp_path: Path
    ) -> None:
        self.kill_after_a_block(far, faulty_proxy, target)
        better = random.Random(1).randbytes(self.SIZE)
        add_checkpoint(far, tmp_path / "scratch", 20, {"val/psnr": 31.0}, {"generator.safetensors": better})
        pull_run(far, "psnr", target)
        assert (target / "generator.safetensors").read_bytes() == better

    def test_a_store_that_goes_away_leaves_what_has_arrived(
        self, far: RunFolder, faulty_proxy: FaultyProxy, target: Path
    ) -> None:
        left = self.kill_after_a_block(far, faulty_proxy, target)
        faulty_proxy.plan("status", matches="generator.safetensors")
        with pytest.raises(InputError, match="kept failing for 1 s"):
            pull_run(far, "psnr", target)
        assert (target.with_name("mine.partial") / "model" / "generator.safetensors.partial").stat().st_size >= left

    def test_damage_on_the_way_is_found_and_nothing_of_it_stays(
        self, far: RunFolder, faulty_proxy: FaultyProxy, target: Path
    ) -> None:
        faulty_proxy.plan("flip", matches="generator.safetensors", limit=1)
        with pytest.raises(InputError, match="checksum"):
            pull_run(far, "psnr", target)
        assert beside(target) == set()
        pull_run(far, "psnr", target)


class TestOrigin:
    @pytest.fixture
    def begun(self, tmp_path: Path, tiny_heads: str, store_environment: dict[str, str]) -> tuple[Experiment, RunFolder]:
        sections = {
            "data": {"url": tiny_heads, "crop": [64, 64]},
            "mask": {"kind": "gaussian2d", "sampling_ratio": 0.3},
        }
        experiment = Experiment.model_validate({**sections, "name": "mine", "output_url": str(tmp_path / "results")})
        run = RunFolder(experiment.run_url)
        with claimed(experiment, run, overwrite=False, say=print):
            pass
        return experiment, run

    def test_data_mask_and_versions_come_from_the_runs_own_record(
        self, begun: tuple[Experiment, RunFolder], target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _, run = begun
        trained_with = versions()
        monkeypatch.setattr("larmor.cluster.runs.origin.versions", lambda: {"larmor": "9.9", "torch": "of the puller"})
        add_checkpoint(run, tmp_path / "scratch", 10, {"val/psnr": 30.0})
        pull_run(run, "psnr", target)
        origin = json.loads((target / "metrics.json").read_text())["origin"]
        assert [environment["versions"] for environment in origin["environments"]] == [trained_with]
        assert origin["data"]["splits"]["test"]["subjects"] == ["phantom03"]
        assert origin["mask"]["achieved_ratio"] == pytest.approx(0.3, rel=0.01)
        card = (target / "model-card.md").read_text()
        source = origin["data"]["sources"][0]
        facts = (source["licence"], source["files"][0]["sha256"], "phantom03", origin["mask"]["sha256"], "30.000 dB")
        for fact in (*facts, trained_with["torch"], "not a medical device", "preset `paper`", origin["data"]["sha256"]):
            assert fact in card
        assert "of the puller" not in card

    def test_the_card_of_a_model_of_many_ratios_says_so(
        self, target: Path, tmp_path: Path, tiny_heads: str, store_environment: dict[str, str]
    ) -> None:
        mask = {"kind": "gaussian2d", "sampling_ratio": {"min": 0.1, "max": 0.5}}
        sections = {"data": {"url": tiny_heads, "crop": [64, 64]}, "mask": mask, "name": "many"}
        experiment = Experiment.model_validate({**sections, "output_url": str(tmp_path / "results")})
        run = RunFolder(experiment.run_url)
        with claimed(experiment, run, overwrite=False, say=print):
            pass
        add_checkpoint(run, tmp_path / "scratch", 10, {"val/psnr": 30.0})
        pull_run(run, "psnr", target)
        card = (target / "model-card.md").read_text()
        assert "`gaussian2d`, 10 to 50 % of k-space measured, a ratio drawn for each sample, fully" in card
        assert "a separate mask for every slice" in card

    def test_another_environment_is_added_and_the_first_record_stays(
        self, begun: tuple[Experiment, RunFolder], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        experiment, run = begun
        before = run.store.read("origin.json")
        record_origin(experiment, run)
        assert len(run.store.list("environments")) == 1, "the same one"
        monkeypatch.setattr("larmor.cluster.runs.origin.versions", lambda: {"torch": "99"})
        record_origin(experiment, run)
        assert len(run.store.list("environments")) == 2
        assert run.store.read("origin.json") == before


@property_test
@given(
    figures=st.lists(st.integers(0, 4).map(float) | st.just(math.nan), min_size=1, max_size=9),
    keep=st.integers(1, 3),
    pruned=st.data(),
)
def test_retention_never_removes_the_best_whenever_it_runs_and_wherever_a_trial_is_stopped(
    figures: list[float], keep: int, pruned: st.DataObject
) -> None:
    """Of equal ones the earliest stays. A trial may be stopped after any checkpoint, or while it writes one."""
    run = RunFolder(f"memory://{uuid.uuid4().hex}")
    first: dict[float, Any] = {}
    for step, value in enumerate(figures, start=1):
        with tempfile.TemporaryDirectory() as scratch:
            whole = pruned.draw(st.booleans(), "published")
            checkpoint = add_checkpoint(run, Path(scratch), step, {"val/psnr": value}, publish=whole)
        if whole and not math.isnan(value):
            first.setdefault(value, checkpoint)
        if pruned.draw(st.booleans(), "pruned"):
            run.prune(keep, 1, "val/psnr", True)
        if first:
            best = run.best("val/psnr", True)
            assert (best.step, best.files) == (first[max(first)].step, first[max(first)].files)
            assert run.store.read(f"{best.folder}/generator.safetensors") == b"weights of step %d" % best.step
