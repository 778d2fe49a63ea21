"""The data set of trials: what is written is read, and what is something else is refused with its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from larmor.commands.data import inspect, verify
from larmor.storage.dataset import dataset
from larmor.storage.dataset.trials import Trials, read_trials, write_trials
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore
from tests.helpers import flip_byte, random_kspace, write_dataset


def trials(**changes: Any) -> Trials:
    rng = np.random.default_rng(0)
    arrays = {
        "stimulus": rng.random((6, 1, 16, 16)).astype(np.float32),
        "bold": rng.standard_normal((6, 4, 5)).astype(np.float32),
        "run": np.array([0, 0, 1, 1, 2, 2]),
    }
    return Trials(**{**arrays, **changes})


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    found = ObjectStore(str(tmp_path / "trials"))
    write_trials(found, trials(), "ann", [], "noise")
    return found


def test_what_is_written_is_read(store: ObjectStore) -> None:
    found, expected = read_trials(store), trials()
    for name in ("stimulus", "bold", "run"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_runs_are_split_and_unknown_ones_named() -> None:
    assert trials().of_runs([0, 2]).run.tolist() == [0, 0, 2, 2]
    assert trials().of_runs([0, 2], wanted=False).run.tolist() == [1, 1]
    with pytest.raises(InputError, match=r"no trial is of run 7; the runs are \[0, 1, 2\]"):
        trials().of_runs([7])
    with pytest.raises(InputError, match="all runs are held out"):
        trials().of_runs([0, 1, 2], wanted=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stimulus": np.zeros((6, 1, 20, 20), np.float32)}, "size of 16, 32, 64, 128"),
        ({"stimulus": np.full((6, 1, 16, 16), 2, np.float32)}, r"values in \[0, 1\] are expected"),
        ({"bold": np.full((6, 4, 5), np.nan, np.float32)}, "bold holds values that are not finite"),
        ({"bold": np.zeros((6, 4), np.float32)}, "3 axes"),
        ({"run": np.zeros(5, np.int64)}, "run is of 5 trials, bold of 6"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        trials(**changes)


def test_damage_is_noticed(store: ObjectStore) -> None:
    flip_byte(store, "trials/run/c/0", 3)
    with pytest.raises(InputError, match=r"is damaged|does not match"):
        read_trials(store)


def test_each_kind_of_data_is_refused_where_the_other_is_needed(store: ObjectStore, tmp_path: Path) -> None:
    slices = ObjectStore(str(tmp_path / "slices"))
    write_dataset(slices, {"train": random_kspace(4), "validation": random_kspace(2)})
    with pytest.raises(InputError, match=r"holds k-space slices, made by `larmor convert`.*needed here are trials"):
        read_trials(slices)
    for read in (lambda: dataset.read_split(store, "train"), lambda: inspect(store.url), lambda: verify(store.url)):
        with pytest.raises(InputError, match=r"holds trials of an fMRI experiment.*system=tigan decodes"):
            read()


def test_a_data_set_is_replaced_only_when_asked(store: ObjectStore) -> None:
    with pytest.raises(InputError, match="--overwrite"):
        write_trials(store, trials(), "ann", [], "noise")
    write_trials(store, trials(run=np.arange(6)), "ann", [], "noise", overwrite=True)
    assert read_trials(store).run.tolist() == list(range(6))
