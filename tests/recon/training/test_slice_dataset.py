"""`larmor.open_dataset`: what a training is fed with, shared out to ranks and workers."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import larmor
from larmor.recon.physics.augment import changes
from larmor.recon.physics.coils import coils_of_split
from larmor.recon.physics.feed import feed
from larmor.recon.physics.samples import Sample, prepare
from larmor.recon.recipe.mask_config import MaskConfig
from larmor.recon.training.slice_dataset import ImageSample, SampleConfig, SliceDataset
from larmor.storage.dataset import layout
from larmor.storage.dataset.writing import remove
from larmor.storage.loading.config import open_loader, open_reader
from larmor.storage.loading.loader import Share
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore
from tests.helpers import coil_scan, random_kspace, write_coil_splits, write_dataset

NUM_SLICES = 45
CROP = (24, 20)
PER_SLICE = {"kind": "gaussian2d", "acceleration": 4, "per_slice": True}
MOVED = {"flip": 0.5, "rotation": 20, "zoom": 0.1, "elastic": 0.01, "contrast": 0.3, "bias": 0.1}
NOISE = {"noise": (0.0, 0.1)}


@pytest.fixture(autouse=True)
def _without_a_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another test of this process has left would say which rank this is."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One coil, shards of nine slices."""
    folder = tmp_path_factory.mktemp("slices") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "SHARD_BYTES", 9 * 8 * 24 * 28)
        write_dataset(ObjectStore(folder), {"train": random_kspace(NUM_SLICES, (1, 24, 28))})
    return folder


@pytest.fixture(scope="module")
def coils(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scans of two and of three coils, of two sizes, with maps."""
    folder = tmp_path_factory.mktemp("coils") / "data"
    scans = [coil_scan(2, 7, 24, 20), coil_scan(3, 6, 20, 28, seed=1), coil_scan(1, 5, 24, 20, seed=2)]
    write_coil_splits(ObjectStore(folder), {"train": scans})
    return folder


def as_trained(dataset: SliceDataset, num_batches: int, batch_size: int = 16) -> Iterator[Sample]:
    """The micro-batches of a training with the data set's configuration (`recon/training/train.py`)."""
    config, cpu = dataset.config, torch.device("cpu")
    move, recolour = changes(config.augment, config.seed)
    with closing(open_reader(config.data, dataset.split, with_maps=config.signal.needs_maps)) as reader:
        batches = open_loader(config.data, reader, Share(0, 1, batch_size, 1), config.seed).batches(0, num_batches)
        compress = coils_of_split(reader, config.signal)
        for batch in feed(batches, cpu):
            found = compress(batch)
            yield prepare(found, config.data.crop, config.mask, cpu, move, config.signal, intensity=recolour)


def assert_as_trained(sample: ImageSample, trained: Sample, row: int) -> None:
    coils = len(sample["kspace"])
    for name in ("zero_filled", "target", "mask"):
        assert torch.equal(sample[name], getattr(trained, name)[row]), name
    assert torch.equal(sample["scale"], trained.scale[row, 1])
    assert torch.equal(sample["kspace"], trained.kspace[row, :coils])
    assert not trained.kspace[row, coils:].any(), "a coil is left out"
    assert ("maps" in sample) == (trained.maps is not None)
    if trained.maps is not None:
        assert torch.equal(sample["maps"], trained.maps[row, :coils])
        assert not trained.maps[row, coils:].any()


class TestValues:
    @pytest.mark.parametrize(
        "sections",
        [
            {"mask": {"kind": "random", "sampling_ratio": 0.3}},
            {"mask": PER_SLICE, "augment": MOVED, "signal": {**NOISE}, "seed": 3},
            {"mask": PER_SLICE, "signal": {"mode": "complex"}},
            {"mask": {"sampling_ratio": {"min": 0.1, "max": 0.5}}},
        ],
    )
    def test_they_are_bit_for_bit_what_a_training_sees_in_its_order(self, heads: Path, sections: Any) -> None:
        dataset = larmor.open_dataset(heads, "train", crop=CROP, **sections)
        trained = [(batch, row) for batch in as_trained(dataset, 6) for row in range(len(batch.samples))]
        for epoch in (0, 1):
            dataset.set_epoch(epoch)
            place = epoch * NUM_SLICES
            for sample, (batch, row) in zip(dataset, trained[place : place + NUM_SLICES], strict=True):
                assert batch.samples[row].tolist() == [epoch, sample["index"]]
                assert_as_trained(sample, batch, row)
        for number in (0, 17, -1):
            (found,) = ((b, row) for b, row in trained[place:] if b.samples[row].tolist() == [1, number % NUM_SLICES])
            assert_as_trained(dataset[number], *found)

    @pytest.mark.parametrize(
        "signal",
        [
            {},
            {"mode": "complex"},
            {"mode": "complex", "coils": "rss"},
            {"mode": "complex", "coils": "all", "num_coils": 2},
        ],
    )
    def test_several_coils(self, coils: Path, signal: Any) -> None:
        dataset = larmor.open_dataset(coils, "train", mask=PER_SLICE, crop=CROP, signal=signal)
        trained = [(batch, row) for batch in as_trained(dataset, 2, 9) for row in range(len(batch.samples))]
        samples = {sample["index"]: sample for sample in dataset}
        assert sorted(samples) == list(range(18))
        for batch, row in trained:
            assert_as_trained(samples[int(batch.samples[row, 1])], batch, row)
        if dataset.config.signal.needs_maps:
            assert {len(sample["maps"]) for sample in samples.values()} == {1, 2, 3}

    def test_fully_sampled_without_a_mask_and_as_large_as_the_largest(self, coils: Path) -> None:
        dataset = larmor.open_dataset(coils, "train", shuffle=False)
        samples = list(dataset)
        assert [sample["index"] for sample in samples] == list(range(18)), "as they are stored"
        assert {tuple(sample["target"].shape) for sample in samples} == {(1, 24, 28)}
        for sample in samples:
            assert sample["mask"].all()
            torch.testing.assert_close(sample["zero_filled"], sample["target"], rtol=0, atol=1e-5)

    def test_a_sample_says_where_it_comes_from(self, heads: Path) -> None:
        dataset = larmor.open_dataset(heads, "train")
        info = dataset.info
        for sample in dataset:
            assert sample["volume"] == info.volumes[info.volume[sample["index"]]]
            assert sample["slice"] == info.index[sample["index"]]
            assert sample["subject"] in info.subjects
        batch = next(iter(DataLoader(dataset, batch_size=4)))
        assert batch["target"].shape == (4, 1, 24, 28)
        assert (len(batch["volume"]), batch["slice"].dtype) == (4, torch.int64)

    def test_a_sample_may_be_changed_in_place(self, heads: Path) -> None:
        dataset = larmor.open_dataset(heads, "train", mask={"kind": "random"})
        first = dataset[0]
        kept = {name: value.clone() for name, value in first.items() if isinstance(value, torch.Tensor)}
        for name in kept:
            first[name].zero_()  # type: ignore[literal-required]
        assert all(torch.equal(value, dataset[0][name]) for name, value in kept.items())  # type: ignore[literal-required]


def indices(samples: Any) -> list[int]:
    return [sample["index"] for sample in samples]


def of_workers(dataset: SliceDataset, num_workers: int, **options: Any) -> list[int]:
    loader: Any = DataLoader(dataset, batch_size=3, num_workers=num_workers, **options)
    return [index for batch in loader for index in batch["index"].tolist()]


class TestShares:
    @pytest.mark.parametrize("shuffle", [True, False])
    @pytest.mark.parametrize("world_size", [1, 2, 7, 64])
    def test_the_ranks_have_every_slice_once(self, heads: Path, world_size: int, shuffle: bool) -> None:
        open_rank = partial(larmor.open_dataset, heads, "train", shuffle=shuffle, world_size=world_size)
        ranks = [open_rank(rank=rank) for rank in range(world_size)]
        parts = [indices(dataset) for dataset in ranks]
        assert [len(part) for part in parts] == [len(dataset) for dataset in ranks]
        whole = indices(larmor.open_dataset(heads, "train", shuffle=shuffle))
        assert [i for row in itertools.zip_longest(*parts) for i in row if i is not None] == whole
        assert sorted(whole) == list(range(NUM_SLICES))

    def test_drop_last_makes_them_equally_long(self, heads: Path) -> None:
        ranks = [larmor.open_dataset(heads, "train", drop_last=True, rank=r, world_size=7) for r in range(7)]
        parts = [indices(dataset) for dataset in ranks]
        assert {len(part) for part in parts} == {6} == {len(dataset) for dataset in ranks}
        assert len({index for part in parts for index in part}) == 42

    def test_workers_have_every_slice_of_their_rank_once_and_see_the_epoch(self, heads: Path) -> None:
        dataset = larmor.open_dataset(heads, "train", mask=PER_SLICE, rank=1, world_size=2)
        mine = indices(dataset)  # opens a reader, whose threads the workers must not inherit
        loader: Any = DataLoader(dataset, batch_size=3, num_workers=2, persistent_workers=True)
        epochs = []
        for epoch in (0, 1, 0):
            dataset.set_epoch(epoch)
            epochs.append([index for batch in loader for index in batch["index"].tolist()])
        assert sorted(epochs[0]) == sorted(mine)
        assert epochs[0] == epochs[2] != epochs[1]
        dataset.set_epoch(1)
        assert sorted(epochs[1]) == sorted(indices(dataset))
        assert of_workers(dataset, 1) == indices(dataset), "one worker changes nothing"

    def test_a_worker_that_is_started_anew_has_the_rank_and_the_values(self, heads: Path) -> None:
        """As `spawn` starts one: the data set is pickled, without threads and without torch.distributed."""
        dataset = larmor.open_dataset(heads, "train", mask=PER_SLICE)
        dataset.set_epoch(4)
        dataset._place = (1, 2)
        with closing(pickle.loads(pickle.dumps(dataset))) as copy:
            assert len(copy) == 22
            for sample, expected in zip(copy, larmor_rank(heads, 4), strict=True):
                assert torch.equal(sample["zero_filled"], expected["zero_filled"])


def larmor_rank(heads: Path, epoch: int) -> SliceDataset:
    dataset = larmor.open_dataset(heads, "train", mask=PER_SLICE, rank=1, world_size=2)
    dataset.set_epoch(epoch)
    return dataset


def test_ranks_are_those_of_torch_distributed(heads: Path, tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(_rank_at_work, (heads, tmp_path), nprocs=2, start_method="spawn")
    parts = [pickle.loads((tmp_path / f"{rank}.pickle").read_bytes()) for rank in range(2)]
    whole = indices(larmor.open_dataset(heads, "train"))
    assert [part["alone"] for part in parts] == [whole[0::2], whole[1::2]]
    for part in parts:
        assert sorted(part["workers"]) == sorted(part["alone"])


def _rank_at_work(rank: int, heads: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(str(folder / "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    dataset = larmor.open_dataset(heads, "train")
    found = {"alone": indices(dataset), "workers": of_workers(dataset, 2)}
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(found))
    torch.distributed.destroy_process_group()


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"mask": {"kind": "gausian1d"}}, "open_dataset: mask.kind='gausian1d': input should be"),
            ({"mask": {"ratio": 0.1}}, "unknown key 'mask.ratio'"),
            ({"mask": {"kind": "random", "acceleration": 0.5}}, "acceleration=0.5"),
            ({"crop": (4, 4)}, "data.crop"),
            ({"seed": -1}, "seed=-1"),
            ({"signal": {"mode": "pet"}}, "signal.mode=pet needs"),
            ({"data": {"url": "s3://other"}}, "data: url cannot be given there"),
            ({"data": {"stack": 2}}, "data.stack=2"),
            ({"data": {"threads": 2}}, "unknown key 'data.threads'"),
            ({"rank": 2, "world_size": 2}, "rank=2 of world_size=2"),
            ({"rank": 0}, "give both"),
            ({"device": "tpu"}, "device 'tpu': is not known"),
            ({"mask": {"kind": "file", "file": "nowhere.npy"}}, "nowhere.npy"),
        ],
    )
    def test_arguments(self, heads: Path, arguments: Any, message: str) -> None:
        with pytest.raises(InputError, match=message):
            larmor.open_dataset(heads, "train", **arguments)

    def test_places(self, heads: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="has no split 'test'; it has train"):
            larmor.open_dataset(heads, "test")
        with pytest.raises(InputError, match="there is no data set here"):
            larmor.open_dataset(tmp_path / "nothing", "train")
        dataset = larmor.open_dataset(heads, "train")
        with pytest.raises(IndexError):
            dataset[NUM_SLICES]
        with pytest.raises(InputError, match="epochs are counted from 0"):
            dataset.set_epoch(-1)

    def test_another_data_set_in_its_place_is_noticed_by_new_workers(self, tmp_path: Path) -> None:
        store = ObjectStore(tmp_path / "data")
        write_dataset(store, {"train": random_kspace(6)})
        dataset = larmor.open_dataset(tmp_path / "data", "train")
        remove(store)
        write_dataset(store, {"train": random_kspace(6, seed=1)})
        with pytest.raises(InputError, match="is not the data set"):
            next(iter(pickle.loads(pickle.dumps(dataset))))

    def test_maps_are_missed(self, tmp_path: Path) -> None:
        write_dataset(ObjectStore(tmp_path / "data"), {"train": random_kspace(4, (2, 16, 12))})
        with pytest.raises(InputError, match="without sensitivity maps"):
            larmor.open_dataset(tmp_path / "data", "train", signal={"mode": "complex"})


def test_configurations_are_taken_as_they_are(heads: Path) -> None:
    mask = MaskConfig(kind="radial", sampling_ratio=0.3)
    dataset = larmor.open_dataset(heads, "train", mask=mask, crop=CROP)
    assert dataset.config.mask is mask
    assert larmor.open_dataset(heads, "train", mask={}).config.mask == MaskConfig()
    assert SampleConfig().mask.sampling_ratio == 1
