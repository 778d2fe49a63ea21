"""Starts are kept only where every epoch has the same, and then they are the same bit for bit."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from larmor.recon.networks.data_consistency import ConsistentGenerator
from larmor.recon.networks.networks import build_generator
from larmor.recon.physics.samples import Sample, prepare
from larmor.recon.recipe.recipe import Recipe
from larmor.recon.training.starts import Starts
from larmor.storage.loading.loader import Batch
from tests.helpers import random_kspace

SIZE = (32, 48)


class Counting(ConsistentGenerator):
    """Counts the slices that it makes a start of."""

    made = 0

    def start(self, *measurement: Any) -> torch.Tensor:
        Counting.made += len(measurement[0])
        return super().start(*measurement)


def recipe(**sections: Any) -> Recipe:
    start = {"method": "wavelet", "iterations": 4, **sections.pop("start", {})}
    generator = {"name": "residual_unet", "width": 4, "start": start, "data_consistency": "hard"}
    return Recipe.model_validate({"data": {"crop": SIZE}, "generator": generator, **sections})


def sample(found: Recipe, epoch: int, indices: list[int]) -> Sample:
    slices = random_kspace(8, (1, *SIZE))[indices]
    batch = Batch.of(slices, np.array([(epoch, index) for index in indices]))
    return prepare(batch, found.data.crop, found.mask, torch.device("cpu"), signal=found.signal)


def counted(found: Recipe, identity: str = "", folder: Path | None = None) -> Starts:
    generator = build_generator(found.generator)
    generator.__class__ = Counting
    Counting.made = 0
    identity = identity or uuid.uuid4().hex  # another split each time, unless it is said
    return Starts(generator, found, identity, folder)


def test_a_slice_is_made_once_and_is_the_same_in_any_company() -> None:
    found = recipe()
    starts = counted(found)
    first = starts.add(sample(found, 0, [0, 1, 2])).start
    again = starts.add(sample(found, 1, [2, 5, 0])).start
    assert Counting.made == 4
    fresh = counted(found).add(sample(found, 1, [2, 5, 0])).start
    assert first is not None
    assert again is not None
    assert fresh is not None
    assert torch.equal(again, fresh)
    assert torch.equal(again[0], first[2])


def test_nothing_is_kept_where_epochs_differ_or_memory_ends() -> None:
    for sections, made in (
        ({"mask": {"per_slice": True}}, 6),
        ({"mask": {"sampling_ratio": {"min": 0.2, "max": 0.5}}}, 6),
        ({"augment": {"flip": 0.5}}, 6),
        ({"augment": {"contrast": 0.5}}, 6),
        ({"start": {"cache_bytes": 0}}, 6),
        ({"start": {"cache_bytes": 2 * 4 * SIZE[0] * SIZE[1]}}, 4),  # two of three
    ):
        found = recipe(**sections)
        starts = counted(found)
        for epoch in range(2):
            starts.add(sample(found, epoch, [0, 1, 2]))
        assert Counting.made == made, sections


def test_the_next_training_of_a_process_finds_what_the_last_one_kept() -> None:
    found = recipe()
    counted(found, "heads").add(sample(found, 0, [0, 1]))
    counted(found, "heads").add(sample(found, 0, [0, 1]))
    assert Counting.made == 0
    counted(found, "knees").add(sample(found, 0, [0, 1]))
    assert Counting.made == 2, "of other data nothing is taken"
    other = recipe(mask={"seed": 1})
    counted(other, "knees").add(sample(other, 0, [0, 1]))
    assert Counting.made == 2, "nor of another mask"


def in_a_new_process(found: Recipe, folder: Path, identity: str = "heads") -> Starts:
    counted(recipe())  # of other data: what this process kept in memory is gone
    return counted(found, identity, folder)


def test_another_process_finds_the_starts_on_disk_bit_for_bit(tmp_path: Path) -> None:
    found = recipe()
    made = in_a_new_process(found, tmp_path).add(sample(found, 0, [0, 1, 2])).start
    read = in_a_new_process(found, tmp_path).add(sample(found, 3, [2, 5, 0])).start
    assert Counting.made == 1, "slice 5 alone"
    assert made is not None
    assert read is not None
    assert torch.equal(read[0], made[2])
    assert torch.equal(read[2], made[0])
    for other, identity in (
        (recipe(mask={"seed": 1}), "heads"),
        (recipe(start={"weight": 1e-3}), "heads"),
        (found, "knees"),
    ):
        in_a_new_process(other, tmp_path, identity).add(sample(other, 0, [0, 1]))
        assert Counting.made == 2, "of other data, masks and settings nothing is taken"


def test_a_damaged_start_is_made_anew(tmp_path: Path) -> None:
    found = recipe()
    made = in_a_new_process(found, tmp_path).add(sample(found, 0, [0, 1, 2])).start
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert len(files) == 3
    content = bytearray(files[0].read_bytes())
    content[100] ^= 1
    files[0].write_bytes(content)
    files[1].write_bytes(files[1].read_bytes()[:50])
    for repaired in (2, 0):
        read = in_a_new_process(found, tmp_path).add(sample(found, 0, [0, 1, 2])).start
        assert Counting.made == repaired
        assert made is not None
        assert read is not None
        assert torch.equal(read, made)


def test_what_changes_from_epoch_to_epoch_never_reaches_the_disk(tmp_path: Path) -> None:
    for number, found in enumerate((recipe(mask={"per_slice": True}), recipe(start={"disk_cache_bytes": 0}))):
        folder = tmp_path / str(number)
        in_a_new_process(found, folder).add(sample(found, 0, [0, 1]))
        assert not folder.exists()


def test_a_folder_that_cannot_be_written_costs_no_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    found = recipe()
    assert in_a_new_process(found, tmp_path / "file").add(sample(found, 0, [0, 1])).start is not None
    assert "data.disk_cache" in caplog.text


def test_without_a_classical_start_a_sample_stays_as_it_is() -> None:
    found = Recipe.model_validate({"data": {"crop": SIZE}, "generator": {"width": 4}})
    given = sample(found, 0, [0])
    assert Starts(build_generator(found.generator), found, "split").add(given) is given
