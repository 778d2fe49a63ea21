"""A run's folder: only whole checkpoints count, and damage never passes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from larmor.cluster.runs.checkpoint import MANIFEST_FORMAT, WEIGHTS, FileEntry, checkpoint_folder, checkpoint_step
from larmor.cluster.runs.run_folder import RunFolder
from larmor.cluster.runs.run_result import RunResult
from larmor.storage.objects.errors import InputError
from tests.helpers import add_checkpoint, contents_of, flip_byte

PSNR = "val/psnr"
FILES = {"generator.safetensors": b"weights", "optimizer/rank0.pt": b"moments", "optimizer/rank1.pt": b"more"}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(str(tmp_path / "run"))


def steps(run: RunFolder) -> list[int]:
    return [checkpoint.step for checkpoint in run.checkpoints()]


def folders(run: RunFolder) -> set[str]:
    return {path.split("/")[1] for path in run.store.list("checkpoints")}


class TestClaim:
    def test_the_first_configuration_stays(self, run: RunFolder) -> None:
        assert run.create("seed: 1")
        assert not run.create("seed: 2")
        assert run.config_yaml() == "seed: 1"

    def test_without_a_run_the_url_is_named(self, run: RunFolder) -> None:
        with pytest.raises(InputError, match=f"{run.url}: there is no run here"):
            run.config_yaml()

    def test_delete_takes_everything(self, run: RunFolder) -> None:
        run.create("seed: 1")
        run.write_history(1, [{"step": 1}])
        run.delete()
        assert run.store.list() == {}

    def test_the_result_is_none_until_the_run_has_finished(self, run: RunFolder) -> None:
        assert run.result() is None
        result = RunResult("finished", 5, "checkpoints/step-00000005-aa", {PSNR: 30.0}, ("one was damaged",))
        run.write_result(result)
        assert run.result() == result

    def test_the_result_lies_in_the_store_as_it_always_did(self, run: RunFolder) -> None:
        run.write_result(RunResult("finished", 5, "checkpoints/step-00000005-aa", {PSNR: 30.0}, ("damaged",)))
        document = {"state": "finished", "step": 5, "checkpoint": "checkpoints/step-00000005-aa"}
        document |= {"metrics": {PSNR: 30.0}, "warnings": ["damaged"]}
        assert run.store.read("result.json").decode() == json.dumps(document, indent=2)

    def test_a_result_of_another_version_is_read_and_what_is_none_is_named(self, run: RunFolder) -> None:
        run.store.write("result.json", b'{"step": 5, "weather": "fine"}')
        assert run.result() == RunResult("finished", 5)
        for content in (b"", b"[]", b'{"step": null}', b'{"state": "new", "step": 5}'):
            run.store.write("result.json", content)
            with pytest.raises(InputError, match=r"result.json: is not the result of a run"):
                run.result()


class TestHistory:
    def rows(self, first: int, last: int, loss: float = 1.0) -> list[dict[str, float]]:
        return [{"step": step, "loss": loss * step} for step in range(first, last + 1)]

    def test_rows_come_in_the_order_of_steps(self, run: RunFolder) -> None:
        assert run.history() == []
        run.write_history(1000, self.rows(21, 1000))
        run.write_history(20, self.rows(1, 20))
        assert [row["step"] for row in run.history()] == list(range(1, 1001))

    def test_a_replayed_step_counts_once(self, run: RunFolder) -> None:
        run.write_history(20, self.rows(1, 20))
        run.write_history(40, self.rows(21, 40))
        before = contents_of(Path(run.url))
        run.write_history(20, self.rows(1, 20))  # resumed from step 0, the same rows
        run.write_history(40, self.rows(21, 40))
        assert contents_of(Path(run.url)) == before
        run.write_history(30, self.rows(11, 30))  # another rhythm of logging
        assert run.history() == self.rows(1, 40)

    def test_figures_of_one_step_are_joined(self, run: RunFolder) -> None:
        run.write_history(2, self.rows(1, 2))
        run.write_history(3, [{"step": 2, PSNR: 30.0}, {"step": 3, "loss": 3.0}])
        assert run.history()[1:] == [{"step": 2, "loss": 2.0, PSNR: 30.0}, {"step": 3, "loss": 3.0}]

    @pytest.mark.parametrize("after", [0, 1, 19, 20, 21, 39, 40, 99])
    def test_only_what_is_new_can_be_asked_for(self, run: RunFolder, after: int) -> None:
        run.write_history(20, self.rows(1, 20))
        run.write_history(40, self.rows(21, 40))
        assert run.history(after) == self.rows(after + 1, 40)


class TestWhole:
    def test_a_checkpoint_comes_back_as_it_was_saved(self, run: RunFolder, tmp_path: Path) -> None:
        saved = add_checkpoint(run, tmp_path, 50, {PSNR: 31.5}, FILES)
        (found,) = run.checkpoints()
        assert found == saved
        assert {name: entry.size for name, entry in found.files.items()} == {
            name: len(content) for name, content in FILES.items()
        }
        run.download(found, tmp_path / "back")
        assert contents_of(tmp_path / "back") == FILES

    def test_parts_of_several_ranks_make_one(self, run: RunFolder, tmp_path: Path) -> None:
        parts = [
            add_checkpoint(run, tmp_path / str(rank), 5, {}, {f"rank{rank}.pt": b"%d" % rank}, publish=False)
            for rank in range(3)
        ]
        assert run.checkpoints() == []
        files = {name: entry for part in parts for name, entry in part.files.items()}
        run.publish(type(parts[0])(parts[0].folder, 5, {}, files))
        run.download(run.checkpoints()[0], tmp_path / "back")
        assert set(contents_of(tmp_path / "back")) == {"rank0.pt", "rank1.pt", "rank2.pt"}

    def test_without_its_manifest_it_does_not_count(self, run: RunFolder, tmp_path: Path) -> None:
        add_checkpoint(run, tmp_path, 10, {PSNR: 1.0})
        add_checkpoint(run, tmp_path, 20, {PSNR: 2.0}, publish=False)
        assert steps(run) == [10]
        assert run.latest().step == 10  # type: ignore[union-attr]

    @pytest.mark.parametrize("name", FILES)
    def test_with_a_missing_or_short_file_it_does_not_count(self, run: RunFolder, tmp_path: Path, name: str) -> None:
        add_checkpoint(run, tmp_path, 10, {PSNR: 1.0}, FILES)
        damaged = add_checkpoint(run, tmp_path, 20, {PSNR: 2.0}, FILES)
        path = f"{damaged.folder}/{name}"
        run.store.write(path, FILES[name][:-1])
        assert steps(run) == [10]
        run.store.write(path, FILES[name])
        assert steps(run) == [10, 20]
        run.store.delete(path)
        assert steps(run) == [10]
        assert run.best(PSNR, True).step == (10 if name == WEIGHTS else 20), "good weights are a model"

    @pytest.mark.parametrize("name", FILES)
    def test_a_changed_byte_is_found_at_the_download(self, run: RunFolder, tmp_path: Path, name: str) -> None:
        checkpoint = add_checkpoint(run, tmp_path, 10, {}, FILES)
        flip_byte(run.store, f"{checkpoint.folder}/{name}", 3)
        with pytest.raises(InputError, match=f"{checkpoint.folder}/{name}: checksum .* does not match"):
            run.download(run.checkpoints()[0], tmp_path / "back")
        assert name not in contents_of(tmp_path / "back"), "the damaged file is not left"

    def test_a_file_lost_since_is_named(self, run: RunFolder, tmp_path: Path) -> None:
        checkpoint = add_checkpoint(run, tmp_path, 10, {}, FILES)
        run.store.delete(f"{checkpoint.folder}/optimizer/rank1.pt")
        with pytest.raises(InputError, match=r"optimizer/rank1.pt: the file is missing"):
            run.download(checkpoint, tmp_path / "back")

    def test_good_files_are_not_downloaded_again_and_wrong_ones_are(self, run: RunFolder, tmp_path: Path) -> None:
        checkpoint = add_checkpoint(run, tmp_path, 10, {}, FILES)
        run.download(checkpoint, tmp_path / "back", ["generator.safetensors", "optimizer/rank0.pt"])
        assert set(contents_of(tmp_path / "back")) == {"generator.safetensors", "optimizer/rank0.pt"}
        run.store.delete(f"{checkpoint.folder}/generator.safetensors")
        (tmp_path / "back" / "optimizer" / "rank0.pt").write_bytes(b"rubbish")
        run.download(checkpoint, tmp_path / "back", ["generator.safetensors", "optimizer/rank0.pt"])
        assert (tmp_path / "back" / "optimizer" / "rank0.pt").read_bytes() == b"moments"

    def test_a_newer_manifest_is_refused(self, run: RunFolder, tmp_path: Path) -> None:
        path = f"{add_checkpoint(run, tmp_path, 10, {}).folder}/manifest.json"
        document = json.loads(run.store.read(path))
        run.store.write(path, json.dumps({**document, "format": MANIFEST_FORMAT + 1}).encode())
        with pytest.raises(InputError, match=r"has manifest format 2, this Larmor reads up to 1; update"):
            run.checkpoints()
        run.store.write(path, json.dumps({"format": MANIFEST_FORMAT + 1, "other": 1}).encode())
        with pytest.raises(InputError, match="update Larmor"):
            run.prune(1, 1, PSNR, True)
        assert run.store.exists(path)

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            (b'{"format": 1, "st', "is not JSON"),
            (b"\xff\xfe\x00", "is not JSON"),
            (b"", "is not JSON"),
            (b"[]", "is not a manifest"),
            (b'{"format": 1, "step": 10}', "is not a manifest"),
            (b'{"format": 1, "step": 10, "metrics": {}, "files": ["a"]}', "is not a manifest"),
            (b'{"format": "one", "step": 10, "metrics": {}, "files": {}}', "is not a manifest"),
        ],
    )
    def test_with_a_damaged_manifest_it_does_not_count(
        self, run: RunFolder, tmp_path: Path, content: bytes, problem: str
    ) -> None:
        add_checkpoint(run, tmp_path, 10, {PSNR: 1.0})
        damaged = add_checkpoint(run, tmp_path, 20, {PSNR: 2.0})
        run.store.write(f"{damaged.folder}/manifest.json", content)
        assert steps(run) == [10]
        assert run.best(PSNR, True).step == 10
        (found,) = [item for item in run.published() if item.problem]
        assert (found.folder, found.step) == (damaged.folder, 20)
        assert f"manifest.json {problem}" in found.problem

    def test_one_that_is_removed_while_we_look_does_not_count(
        self, run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A reader lists while the training prunes."""
        gone, kept = (add_checkpoint(run, tmp_path, step, {PSNR: 1.0}) for step in (10, 20))
        read = run.store.read

        def late(path: str) -> bytes:
            run.store.delete(gone.folder)
            return read(path)

        monkeypatch.setattr(run.store, "read", late)
        assert run.checkpoints() == [kept]

    def test_what_is_no_checkpoint_is_left_alone(self, run: RunFolder, tmp_path: Path) -> None:
        run.store.write("checkpoints/mine/manifest.json", b"precious")
        add_checkpoint(run, tmp_path, 10, {PSNR: 1.0})
        assert steps(run) == [10]
        run.prune(1, 1, PSNR, True)
        assert run.store.read("checkpoints/mine/manifest.json") == b"precious"

    def test_files_lie_in_manifests_as_they_always_did(self, run: RunFolder, tmp_path: Path) -> None:
        """Whatever else a later version may say of a file is ignored."""
        whole = add_checkpoint(run, tmp_path, 10, {PSNR: 1.0})
        path = f"{whole.folder}/manifest.json"
        document = json.loads(run.store.read(path))
        assert document["files"] == {
            name: {"size": entry.size, "sha256": entry.sha256} for name, entry in whole.files.items()
        }
        assert run.store.read(path).decode() == json.dumps(document, indent=1)
        for entry in document["files"].values():
            entry["colour"] = "blue"
        run.store.write(path, json.dumps(document).encode())
        assert run.checkpoints() == [whole]

    def test_parts_count_when_all_ranks_have_put_theirs(self, run: RunFolder) -> None:
        folder, entry = checkpoint_folder(5, "aa"), FileEntry(1, "0")
        assert run.read_parts(folder, 2) is None
        run.write_part(folder, 1, {"one": entry})
        assert run.read_parts(folder, 2) is None
        run.write_part(folder, 0, {"zero": entry})
        assert run.read_parts(folder, 2) == {"zero": entry, "one": entry}

    def test_one_that_was_taken_back_does_not_count(self, run: RunFolder, tmp_path: Path) -> None:
        add_checkpoint(run, tmp_path, 10, {PSNR: 1.0})
        run.unpublish(add_checkpoint(run, tmp_path, 20, {PSNR: 2.0}))
        assert steps(run) == [10]
        run.prune(2, 1, PSNR, True)
        assert len(folders(run)) == 1


class TestChoice:
    def test_the_latest_is_the_highest_step(self, run: RunFolder, tmp_path: Path) -> None:
        assert run.latest() is None
        for step in (90, 1000, 100):
            add_checkpoint(run, tmp_path, step, {})
        assert steps(run) == [90, 100, 1000]
        assert run.latest().step == 1000  # type: ignore[union-attr]

    @pytest.mark.parametrize(
        ("values", "higher", "best"),
        [
            ({10: 1.0, 20: 3.0, 30: 2.0}, True, 20),
            ({10: 2.0, 20: 1.0, 30: 3.0}, False, 20),
            ({10: 1.0, 20: 3.0, 30: 3.0}, True, 20),
            ({10: 1.0, 20: 1.0, 30: 3.0}, False, 10),
            ({10: -5.0, 20: float("-inf"), 30: -4.0}, True, 30),
            ({10: -5.0, 20: math.inf, 30: -4.0}, True, 30),
            ({10: math.nan, 20: -4.0, 30: -math.inf}, False, 20),
        ],
    )
    def test_the_best_follows_the_direction_and_of_equal_ones_the_earliest(
        self, run: RunFolder, tmp_path: Path, values: dict[int, float], higher: bool, best: int
    ) -> None:
        for step in reversed(values):
            add_checkpoint(run, tmp_path, step, {PSNR: values[step]})
        assert run.best(PSNR, higher).step == best

    def test_only_checkpoints_with_the_metric_are_compared(self, run: RunFolder, tmp_path: Path) -> None:
        add_checkpoint(run, tmp_path, 10, {PSNR: 1.0})
        add_checkpoint(run, tmp_path, 20, {"val/ssim": 0.5})
        assert run.best(PSNR, True).step == 10
        with pytest.raises(InputError, match=r"no checkpoint with the metric 'val/mse'; its metrics are val/psnr"):
            run.best("val/mse", False)

    def test_without_a_whole_checkpoint_there_is_no_best(self, run: RunFolder, tmp_path: Path) -> None:
        add_checkpoint(run, tmp_path, 10, {PSNR: 1.0}, publish=False)
        with pytest.raises(InputError, match="it has no whole checkpoint yet"):
            run.best(PSNR, True)


class TestPrune:
    def test_the_newest_and_the_best_stay(self, run: RunFolder, tmp_path: Path) -> None:
        for step, value in ((10, 1.0), (20, 9.0), (30, 2.0), (40, 3.0), (50, 4.0)):
            add_checkpoint(run, tmp_path, step, {PSNR: value})
        run.prune(2, 1, PSNR, True)
        assert steps(run) == [20, 40, 50]
        assert len(folders(run)) == 3, "nothing is left of the others"
        run.prune(1, 1, PSNR, False)
        assert steps(run) == [40, 50], "the best may be the lowest"

    def test_what_stays_is_untouched(self, run: RunFolder, tmp_path: Path) -> None:
        kept = add_checkpoint(run, tmp_path, 20, {PSNR: 1.0}, FILES)
        before = contents_of(Path(run.url))
        add_checkpoint(run, tmp_path, 10, {PSNR: 0.5}, FILES)
        run.prune(1, 1, PSNR, True)
        assert contents_of(Path(run.url)) == before
        run.download(kept, tmp_path / "back")

    @pytest.mark.parametrize("best", range(1, 6))
    @pytest.mark.parametrize("newest", range(1, 6))
    @pytest.mark.parametrize("higher", [True, False])
    def test_the_numbers_of_both_are_kept(
        self, run: RunFolder, tmp_path: Path, newest: int, best: int, higher: bool
    ) -> None:
        values = {10: 3.0, 20: 9.0, 30: math.nan, 40: 9.0, 50: 1.0, 60: -math.inf}
        for step, value in values.items():
            add_checkpoint(run, tmp_path, step, {PSNR: value})
        run.prune(newest, best, PSNR, higher)
        ranked = [20, 40, 10, 50] if higher else [50, 10, 20, 40]
        assert set(steps(run)) == {*list(values)[-newest:], *ranked[:best]}
        assert run.best(PSNR, higher).step == ranked[0]
        assert len(folders(run)) == len(steps(run))

    def test_half_uploaded_ones_go_older_or_newer(self, run: RunFolder, tmp_path: Path) -> None:
        add_checkpoint(run, tmp_path, 10, {}, publish=False)
        add_checkpoint(run, tmp_path, 20, {}, token="aa", publish=False)
        add_checkpoint(run, tmp_path, 20, {PSNR: 1.0}, token="bb")
        add_checkpoint(run, tmp_path, 30, {}, publish=False)
        run.prune(1, 1, PSNR, True)
        assert folders(run) == {"step-00000020-bb"}

    def test_without_a_whole_checkpoint_nothing_goes(self, run: RunFolder, tmp_path: Path) -> None:
        add_checkpoint(run, tmp_path, 10, {}, publish=False)
        run.prune(1, 1, PSNR, True)
        assert folders(run) == {"step-00000010-aa"}

    def test_a_prune_that_is_cut_off_leaves_no_half_checkpoint(
        self, run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for step in (10, 20):
            add_checkpoint(run, tmp_path, step, {PSNR: float(step)}, FILES)

        def cut_off(prefix: str = "", guard: object = None) -> None:
            raise ConnectionResetError

        with monkeypatch.context() as patch:
            patch.setattr(run.store, "delete", cut_off)
            with pytest.raises(ConnectionResetError):
                run.prune(1, 1, PSNR, True)
        assert steps(run) == [20]
        run.prune(1, 1, PSNR, True)
        assert folders(run) == {"step-00000020-aa"}

    @pytest.mark.parametrize("damage", ["file", "manifest"])
    def test_damaged_ones_go_and_do_not_count_as_kept(self, run: RunFolder, tmp_path: Path, damage: str) -> None:
        for step in (10, 20, 30):
            add_checkpoint(run, tmp_path, step, {PSNR: float(step)}, FILES)
        newest = run.checkpoints()[-1]
        run.store.write(f"{newest.folder}/{'manifest.json' if damage == 'manifest' else 'generator.safetensors'}", b"x")
        run.prune(2, 1, PSNR, True)
        assert folders(run) == {"step-00000010-aa", "step-00000020-aa"}

    @pytest.mark.parametrize("name", sorted(set(FILES) - {WEIGHTS}))
    def test_the_best_stays_without_a_file_beside_its_weights(self, run: RunFolder, tmp_path: Path, name: str) -> None:
        for step, value in ((10, 9.0), (20, 1.0), (30, 2.0)):
            add_checkpoint(run, tmp_path, step, {PSNR: value}, FILES)
        before = run.best(PSNR, True)
        run.store.delete(f"{before.folder}/{name}")
        run.prune(1, 1, PSNR, True)
        assert folders(run) == {"step-00000010-aa", "step-00000030-aa"}
        assert steps(run) == [30], "no training goes on from it"
        best = run.best(PSNR, True)
        assert (best.step, best.problem) == (10, f"{name} is missing or cut short")
        run.download(best, tmp_path / "back", [WEIGHTS])

    def test_of_two_equal_ones_the_whole_one_is_the_best(self, run: RunFolder, tmp_path: Path) -> None:
        for token in ("aa", "bb"):
            add_checkpoint(run, tmp_path, 10, {PSNR: 9.0}, FILES, token=token)
        run.store.delete("checkpoints/step-00000010-aa/optimizer/rank0.pt")
        assert run.best(PSNR, True).folder == "checkpoints/step-00000010-bb"
        run.prune(1, 1, PSNR, True)
        assert folders(run) == {"step-00000010-bb"}

    def test_a_best_one_that_goes_for_its_weights_is_told_of(self, run: RunFolder, tmp_path: Path) -> None:
        for step, value in ((10, 9.0), (20, 1.0), (30, 2.0)):
            add_checkpoint(run, tmp_path, step, {PSNR: value}, FILES)
        run.store.write(f"checkpoints/step-00000010-aa/{WEIGHTS}", b"x")
        run.store.write(f"checkpoints/step-00000020-aa/{WEIGHTS}", b"x")
        run.prune(1, 1, PSNR, True)
        assert folders(run) == {"step-00000030-aa"}
        assert run.warnings() == [
            f"checkpoints/step-00000010-aa was removed: {WEIGHTS} is missing or cut short; by {PSNR} (9) it was among "
            "the best 1"
        ]

    def test_metrics_are_not_needed(self, run: RunFolder, tmp_path: Path) -> None:
        for step in (10, 20, 30):
            add_checkpoint(run, tmp_path, step, {})
        run.prune(2, 1, PSNR, True)
        assert steps(run) == [20, 30]


@pytest.mark.parametrize("step", [0, 7, 12345678, 123456789])
def test_a_folders_name_holds_its_step(step: int) -> None:
    assert checkpoint_step(checkpoint_folder(step, "a1b2")) == step
