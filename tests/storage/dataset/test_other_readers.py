"""xarray and plain Zarr open a data set by the names of its dimensions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from larmor.storage.dataset.dataset import COLUMNS, read_identity, read_split
from larmor.storage.objects.object_store import ObjectStore
from tests.helpers import coil_scan, random_kspace, write_coil_splits, write_dataset

xarray = pytest.importorskip("xarray")


def test_xarray_opens_a_split(tmp_path: Path) -> None:
    kspace = random_kspace(7)
    write_dataset(ObjectStore(tmp_path / "data"), {"train": kspace})
    found = xarray.open_zarr(tmp_path / "data", group="train", consolidated=False)
    assert found.kspace.dims == ("slice", "coil", "height", "width")
    assert found.sizes["slice"] == 7
    assert np.array_equal(found.kspace[2:4].values, kspace[2:4])
    info = read_split(ObjectStore(tmp_path / "data"), "train")
    for name in COLUMNS:
        assert np.array_equal(found[name].values, getattr(info, name))
    assert np.array_equal(found.isel(slice=found.volume.values == 1).kspace.values, kspace[info.volume == 1])
    tree = xarray.open_datatree(tmp_path / "data", engine="zarr", consolidated=False)
    assert tree.attrs["larmor"]["format"] == 3
    assert tree["train"].sizes["slice"] == 7


def test_slices_of_several_shapes_have_dimensions_of_their_own(tmp_path: Path) -> None:
    scans = [coil_scan(2, 3, 8, 10), coil_scan(3, 2, 12, 8)]
    write_coil_splits(ObjectStore(tmp_path / "data"), {"train": scans})
    found = xarray.open_zarr(tmp_path / "data", group="train", consolidated=False)
    assert dict(found.sizes) == {
        "slice": 5,
        "kind": 2,
        "extreme": 2,
        "slice_0": 3,
        "coil_0": 2,
        "height_0": 8,
        "width_0": 10,
        "slice_1": 2,
        "coil_1": 3,
        "height_1": 12,
        "width_1": 8,
    }
    for number, (kspace, maps) in enumerate(scans):
        end = f"_{number}" if number else ""
        assert np.array_equal(found[f"kspace{end}"].values, kspace)
        assert np.array_equal(found[f"sensitivity_maps{end}"].values, maps)


def test_zarr_opens_it(tmp_path: Path) -> None:
    kspace = random_kspace(7)
    write_dataset(ObjectStore(tmp_path / "data"), {"train": kspace})
    group: Any = zarr.open(tmp_path / "data", mode="r")
    assert np.array_equal(group["train/kspace"][3], kspace[3])
    assert group["train/scale"].metadata.dimension_names == ("slice", "extreme")


def test_a_data_set_without_names_is_the_same_one(tmp_path: Path) -> None:
    """They were added to format 3 later: neither reader nor identity depends on them."""
    store = ObjectStore(tmp_path / "data")
    write_dataset(store, {"train": random_kspace(7)})
    identity, info = read_identity(store), read_split(store, "train")
    for path in [path for path in store.list("train") if path.endswith("zarr.json")]:
        document = store.read(path).decode()
        store.write(path, _without_names(document).encode())
    assert "dimension_names" not in store.read("train/scale/zarr.json").decode()
    assert read_identity(store) == identity
    assert np.array_equal(read_split(store, "train").crc, info.crc)


def _without_names(document: str) -> str:
    content = json.loads(document)
    content.pop("dimension_names", None)
    return json.dumps(content)
