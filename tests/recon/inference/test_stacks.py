"""Stacks in use: one scale and one motion for their images, masks of their own, and every image counted once."""

from __future__ import annotations

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, cast

import nibabel
import numpy as np
import pytest
import torch
from torch import nn

from larmor.recon.evaluation.evaluate import evaluate
from larmor.recon.evaluation.evaluation_file import load_evaluation, save_evaluation
from larmor.recon.evaluation.methods import standing_methods, table_cells
from larmor.recon.evaluation.tables import caption, slug
from larmor.recon.inference.inference import Physics, reconstruct_split
from larmor.recon.models.model import Model
from larmor.recon.models.reconstruct import reconstruct_scans
from larmor.recon.models.scans import open_scans
from larmor.recon.physics.augment import augment
from larmor.recon.physics.samples import Sample, normalize, prepare
from larmor.recon.recipe.mask_config import MaskConfig
from larmor.recon.recipe.recipe import Recipe
from larmor.recon.recipe.settings import AugmentConfig
from larmor.recon.recipe.signal import SignalConfig
from larmor.recon.training.validate import validate, validation_stacks
from larmor.recon.training.worker import Worker
from larmor.storage.formats.volumes import image_to_kspace
from larmor.storage.loading.config import DataConfig, open_reader
from larmor.storage.loading.loader import Batch
from larmor.storage.loading.reader import SliceReader
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore
from tests.helpers import ellipsoid, make_generator, small_recipe, write_images

CPU, CROP, STACK = torch.device("cpu"), (24, 24), 4
EACH = MaskConfig(kind="gaussian1d", sampling_ratio=0.3, per_slice=True)


def frames(count: int, seed: int = 0) -> np.ndarray:
    """(count, 24, 24): a head whose brightness falls from frame to frame."""
    head = ellipsoid((24, 3, 24), seed)[:, 1].T
    return np.stack([head * (1 - 0.08 * number) for number in range(count)])


def batch_of(count: int) -> Batch:
    return Batch.of(image_to_kspace(frames(count))[:, None], np.array([(3, 20 + number) for number in range(count)]))


class TestSamples:
    def test_the_images_of_a_stack_share_their_scale(self) -> None:
        """Brightness that changes over time is kept."""
        full = MaskConfig(sampling_ratio=1.0)
        sample = prepare(batch_of(8), CROP, full, CPU, stack=STACK)
        heights = sample.target.amax(dim=(1, 2, 3))
        torch.testing.assert_close(heights[1:4] / heights[0], torch.tensor([0.92, 0.84, 0.76]), rtol=1e-4, atol=0)
        assert len(sample.scale.unique(dim=0)) == 2, "two stacks"
        alone = prepare(batch_of(8), CROP, full, CPU)
        torch.testing.assert_close(alone.target.amax(dim=(1, 2, 3)), torch.ones(8))
        intensities = sample.target * sample.scale[:, 1].view(-1, 1, 1, 1)
        torch.testing.assert_close(intensities, alone.target * alone.scale[:, 1].view(-1, 1, 1, 1))

    def test_the_frames_of_a_stack_have_one_ratio_of_a_range(self) -> None:
        mask = MaskConfig(sampling_ratio={"min": 0.2, "max": 0.8}, per_slice=True)
        measured = prepare(batch_of(8), CROP, mask, CPU, stack=STACK).mask
        assert len(measured.flatten(1).unique(dim=0)) == 8
        counts = measured.flatten(1).sum(dim=1)
        assert counts.tolist() == [int(counts[0])] * STACK + [int(counts[STACK])] * STACK
        assert counts[0] != counts[STACK]

    def test_each_frame_has_a_mask_of_its_own_and_the_same_motion(self) -> None:
        config = AugmentConfig(flip=0.5, rotation=30, shift=0.2, zoom=0.2)
        change = partial(augment, config=config, seed=1)
        sample = prepare(batch_of(8), CROP, EACH, CPU, change, stack=STACK)
        assert len(sample.mask.flatten(1).unique(dim=0)) == 8
        for stack in sample.target.split(STACK):
            for number in range(1, STACK):  # the frames differ in brightness alone
                torch.testing.assert_close(stack[number], stack[0] * (stack[number].max() / stack[0].max()))
        first, second = sample.target[0], sample.target[STACK]
        assert (first / first.max() - second / second.max()).abs().max() > 0.1, "another stack, another motion"

    def test_a_stack_of_one_changes_nothing(self) -> None:
        change = partial(augment, config=AugmentConfig(rotation=30), seed=1)
        one = prepare(batch_of(5), CROP, EACH, CPU, change)
        other = prepare(batch_of(5), CROP, EACH, CPU, change, stack=1)
        for name in ("target", "zero_filled", "kspace", "mask", "scale"):
            assert torch.equal(getattr(one, name), getattr(other, name))

    def test_evaluation_has_the_range_of_the_stack(self) -> None:
        images = torch.from_numpy(frames(8))[:, None]
        normal, scale = normalize(images, STACK)
        assert torch.equal(normal.unflatten(0, (2, STACK)).amax(dim=(1, 2, 3, 4)), torch.ones(2))
        assert torch.equal(scale[0], scale[3])
        assert not torch.equal(scale[0], scale[4])


@pytest.fixture
def reader(tmp_path: Path) -> SliceReader:
    """One series of 10 frames in each split: two stacks of 4, and a last one that reaches back."""
    write_images(
        ObjectStore(tmp_path / "data"), {split: frames(10, seed) for seed, split in enumerate(("train", "test"))}
    )
    return open_reader(DataConfig(url=str(tmp_path / "data"), memory_cache_bytes=0), "test")


def place_in_stack(sample: Sample) -> torch.Tensor:
    """A method whose error tells where in its stack an image was."""
    place = torch.arange(len(sample.target)) % sample.stack
    return sample.target * (1 + 0.1 * place.view(-1, 1, 1, 1))


class TestSplits:
    @pytest.mark.parametrize("batch_size", [1, 4, 8, 12, 100])
    def test_a_slice_that_is_in_two_stacks_is_given_once(self, reader: SliceReader, batch_size: int) -> None:
        flat = [*range(8), 6, 7, 8, 9]
        methods = {"place": place_in_stack}
        found = list(reconstruct_split(methods, reader, flat, Physics(CROP, EACH, stack=STACK), batch_size, CPU))
        assert [index for batch in found for index in batch.indices] == list(range(10))
        ratio = np.concatenate(
            [batch.images["place"].max(axis=(1, 2)) / batch.target.max(axis=(1, 2)) for batch in found]
        )
        np.testing.assert_allclose(ratio, 1 + 0.1 * np.array([0, 1, 2, 3, 0, 1, 2, 3, 2, 3]), rtol=1e-5)

    def test_a_table_counts_each_frame_once_and_says_that_there_are_stacks(
        self, reader: SliceReader, tmp_path: Path
    ) -> None:
        physics = Physics(CROP, EACH, stack=STACK)
        table = evaluate({"place": place_in_stack}, physics, reader, "paper", 8, lambda *_: None)
        assert [row.slice_index for row in table.slices if row.method == "place"] == list(range(10))
        assert "stacks of 4" in caption(table)
        assert slug(physics) != slug(Physics(CROP, EACH))
        save_evaluation(table, tmp_path / "table.json", {})
        assert load_evaluation(tmp_path / "table.json").physics == physics
        some = evaluate({"place": place_in_stack}, physics, reader, "paper", 8, lambda *_: None, every=2)
        assert {row.slice_index for row in some.slices} == {0, 1, 2, 3, 6, 7, 8, 9}
        assert "one stack in 2" in caption(some)

    def test_every_table_of_stacks_has_what_is_hard_to_beat(self, reader: SliceReader) -> None:
        model = stack_model(EACH)
        (cell,) = table_cells({"model": model}, [])
        assert list(cell.methods) == ["view_sharing", "temporal_mean", "model"]
        table = evaluate(cell.methods, cell.physics, reader, "paper", 8, lambda *_: None)
        assert table.methods == ("zero_filled", "view_sharing", "temporal_mean", "model")
        psnr = {method: table.mean(method)["psnr"] for method in table.methods}
        assert psnr["view_sharing"] > psnr["zero_filled"] + 3, "frames differ in brightness alone"
        assert psnr["model"] == pytest.approx(psnr["zero_filled"]), "it changes nothing"
        alone = dataclasses.replace(model, physics=dataclasses.replace(model.physics, stack=1))
        (single,) = table_cells({"model": alone}, [])
        assert list(single.methods) == ["model"]

    @pytest.mark.parametrize("mode", ["magnitude", "complex"])
    def test_what_stands_still_is_found_where_it_was_measured_at_all(self, mode: str) -> None:
        """Every frame measures other columns, and all of them together measure all: both rows are exact."""
        still = Batch.of(np.repeat(batch_of(1).groups[0].kspace, 24, axis=0), np.array([(0, n) for n in range(24)]))
        signal = SignalConfig.model_validate({"mode": mode})
        physics = Physics(CROP, stack=24, mask=EACH, signal=signal)
        mask = MaskConfig(kind="random1d", sampling_ratio=0.3, per_slice=True)
        sample = prepare(still, CROP, mask, CPU, signal=signal, stack=24)
        assert sample.mask.any(dim=0).all()
        for method in standing_methods(physics).values():
            torch.testing.assert_close(method(sample), sample.target, rtol=0, atol=1e-5)

    def test_a_stack_longer_than_the_series_is_refused(self, reader: SliceReader) -> None:
        with pytest.raises(InputError, match=r"data.stack=11 is more than the 10 slices or frames of test0"):
            evaluate({}, Physics(CROP, EACH, stack=11), reader, "paper", 8, lambda *_: None)

    @pytest.mark.parametrize("wanted", [None, 4, 8])
    @pytest.mark.parametrize("ratio", [0.3, {"min": 0.2, "max": 0.6}])
    def test_validation_gives_the_same_whatever_the_number_of_ranks(
        self, reader: SliceReader, wanted: int | None, ratio: Any
    ) -> None:
        recipe = small_recipe(
            data={"url": "unused", "crop": CROP, "stack": STACK},
            mask={**EACH.model_dump(), "sampling_ratio": ratio},
            training={"global_batch_size": 6, "validation_slices": wanted},
        )
        generator = make_generator(recipe)
        assert len(validation_stacks(reader.info, wanted, STACK)) == {None: 3, 4: 1, 8: 2}[wanted]
        found = [validated(generator, reader, recipe, world_size) for world_size in (1, 2, 3)]
        for other in found[1:]:
            assert other == pytest.approx(found[0], rel=1e-5)


class Rank:
    """As much of a `Worker` as a validation needs; the ranks are threads that meet at a barrier."""

    def __init__(self, rank: int, shared: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.world_size, self.device = rank, len(shared), CPU
        self._shared, self._barrier = shared, barrier

    def progress(self, *_: object) -> None:
        pass

    def show(self, picture: np.ndarray) -> None:
        self.picture = picture

    def gather(self, value: Any) -> list[Any]:
        self._shared[self.rank] = value
        self._barrier.wait(60)
        return list(self._shared)


def validated(generator: nn.Module, reader: SliceReader, recipe: Recipe, world_size: int) -> dict[str, float]:
    """What all ranks find."""
    shared: list[Any] = [None] * world_size
    barrier = threading.Barrier(world_size)

    def work(rank: int) -> dict[str, float]:
        return validate(generator, reader, recipe, cast(Worker, Rank(rank, shared, barrier)), 0)

    with ThreadPoolExecutor(world_size) as pool:
        first, *others = pool.map(work, range(world_size))
    assert all(other == first for other in others)
    return first


def test_a_model_of_stacks_reconstructs_a_series_to_a_series(tmp_path: Path) -> None:
    """With everything measured the frames come back, each once, as a 4-D NIfTI in its place."""
    data = np.rint(frames(6).transpose(2, 1, 0)[:, ::-1, None]).astype(np.int16)
    image: Any = nibabel.Nifti1Image(data, np.diag([2.0, 2.0, 4.0, 1.0]))
    image.header["pixdim"][4] = 1.5
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, tmp_path / "series.nii.gz")
    model = stack_model(MaskConfig(sampling_ratio=1.0))
    with open_scans(str(tmp_path / "series.nii.gz"), model.physics, plane="native") as scans:
        (report,) = reconstruct_scans(model, scans, tmp_path / "out", 8)
    assert not report.problem
    assert report.files[0].name == "series_slice000-reconstruction.nii.gz"
    written: Any = nibabel.load(report.files[0])
    assert written.shape == (24, 24, 1, 6)
    np.testing.assert_allclose(written.header.get_zooms(), (2, 2, 4, 1.5), rtol=1e-6)
    np.testing.assert_allclose(written.affine, image.affine, atol=1e-5)
    np.testing.assert_allclose(np.asarray(written.dataobj), data, atol=0.5)


def test_a_scan_that_is_shorter_than_a_stack_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "short.npy", image_to_kspace(frames(3))[:, None])
    model = stack_model(EACH)
    with open_scans(str(tmp_path / "short.npy"), model.physics) as scans:
        (report,) = reconstruct_scans(model, scans, tmp_path / "out", 8)
    assert report.problem.startswith("short: has 3 slices or frames, and the model sees 4 together (data.stack)")


def stack_model(mask: MaskConfig) -> Model:
    """A generator that changes nothing, of stacks."""
    recipe = small_recipe(data={"url": "unused", "crop": CROP, "stack": STACK}, mask=mask.model_dump())
    return Model(make_generator(recipe, trained=False), Physics(CROP, mask, stack=STACK), recipe, {}, Path("model"))
