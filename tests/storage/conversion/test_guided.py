"""A second contrast beside each scan: paired by person, on the same grid, stored with the same care."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from larmor.commands.data import convert, inspect
from larmor.storage.conversion.convert import ConvertOptions
from larmor.storage.conversion.verify import verify
from larmor.storage.dataset.dataset import read_root, read_split
from larmor.storage.formats.guides import with_guides
from larmor.storage.formats.recognise import find_sources
from larmor.storage.formats.source import SourceRef
from larmor.storage.formats.volumes import image_to_kspace
from larmor.storage.loading.config import DataConfig, open_loader, open_reader
from larmor.storage.loading.loader import Batch, Share
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore
from tests.helpers import contents_of, ellipsoid, flip_byte, write_heads, write_volume
from tests.storage.formats.dicom_files import make_scan, write_series

NAMES = ("a", "b", "c")
OPTIONS = ConvertOptions(
    matrix=(32, 32), min_foreground=0.01, held_out={"validation": ["b"], "test": ["c"]}, num_threads=2
)


def write_guides(folder: Path, shape: tuple[int, int, int] = (28, 14, 30), affine: Any = None) -> None:
    """For each head one of the same shape and another texture, ten times as bright."""
    for seed, name in enumerate(NAMES):
        write_volume(folder / f"{name}.nii.gz", 10 * ellipsoid(shape, seed + 50), affine)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`plain` and `guided`: the same heads, without and with a second contrast."""
    folder = tmp_path_factory.mktemp("guided")
    write_heads(folder / "t1", NAMES)
    write_guides(folder / "t2")
    convert(folder / "t1", str(folder / "plain"), OPTIONS)
    convert(folder / "t1", str(folder / "guided"), OPTIONS, guide=folder / "t2")
    return folder


def config(url: Path, **settings: int) -> DataConfig:
    return DataConfig(url=str(url), **settings)


def test_the_kspace_is_what_it_is_without(place: Path) -> None:
    plain, guided = (contents_of(place / name) for name in ("plain", "guided"))
    beside = {path for path in guided if path.split("/")[1:2] == ["guide"]}
    assert len(beside) == 6  # a document and a shard in each split
    assert guided.keys() - beside == plain.keys()
    changed = {path for path in plain if plain[path] != guided[path]}
    assert {path.split("/", 1)[-1] for path in changed} == {"zarr.json", "crc/zarr.json", "crc/c/0/0"}
    assert changed - {"zarr.json"} == {path for path in changed if "/crc/" in path}


def test_the_scan_says_what_its_guide_is(place: Path) -> None:
    (source,) = [one for one in read_root(ObjectStore(place / "guided"))["sources"] if one["volume"] == "a"]
    assert source["files"][0]["file"] == source["guide"]["files"][0]["file"] == "a.nii.gz"
    assert source["files"][0]["sha256"] != source["guide"]["files"][0]["sha256"]
    assert ", guide: a.nii.gz" in "\n".join(inspect(str(place / "guided")))
    assert [read_split(ObjectStore(place / name), "train").has_guide for name in ("plain", "guided")] == [False, True]


@pytest.mark.parametrize("memory", [0, 2**24])
def test_every_slice_comes_with_its_own_guide(place: Path, memory: int) -> None:
    settings = config(place / "guided", memory_cache_bytes=memory)
    wanted = 10 * ellipsoid((28, 14, 30), 50)
    with closing(open_reader(settings, "train", with_guide=True)) as reader:
        batches = open_loader(settings, reader, Share(0, 1, 4, 2), seed=3).batches(0, end=8)
        for batch in batches:
            for group in batch.groups:
                assert group.guide is not None
                for row, found in zip(group.rows, group.guide, strict=True):
                    index = reader.info.index[batch.samples[row, 1]]
                    image = wanted[::-1, index, ::-1].T
                    expected = image_to_kspace(np.pad(image, ((1, 1), (2, 2))))
                    np.testing.assert_allclose(found[0], expected, atol=1e-3)
        (group,) = Batch.read(reader, np.array([(0, 2), (0, 0)])).groups
        assert group.guide is not None
        assert not np.allclose(group.guide, group.kspace)


def test_a_data_set_without_guides_says_so(place: Path) -> None:
    with pytest.raises(InputError, match=r"has no guide.*--guide"):
        open_reader(config(place / "plain"), "train", with_guide=True)


def test_verify_reads_guides_too(place: Path, tmp_path: Path) -> None:
    assert not verify(str(place / "guided")).problems
    store = ObjectStore(tmp_path / "copy")
    for path, content in contents_of(place / "guided").items():
        store.write(path, content)
    flip_byte(store, "test/guide/c/0/0/0/0", 1000)
    problems = verify(store.url).problems
    assert problems
    assert all("test/guide/c/0/0/0/0" in problem for problem in problems)
    with (
        closing(open_reader(config(tmp_path / "copy"), "test", with_guide=True)) as reader,
        pytest.raises(InputError, match=r"test/guide/.*slice 0 is damaged"),
    ):
        Batch.read(reader, np.array([(0, 0)]))


@pytest.mark.parametrize(
    ("shape", "shift", "message"),
    [
        ((28, 12, 30), 0.0, "has 12 slices, not 14.*resample"),
        ((26, 14, 30), 0.0, "another grid: 26×14×30 voxels"),
        ((28, 14, 30), 0.7, "another grid: .*up to 0.7 mm off"),
    ],
)
def test_another_grid_is_refused(
    place: Path, tmp_path: Path, shape: tuple[int, int, int], shift: float, message: str
) -> None:
    affine = np.eye(4)
    affine[2, 3] = shift
    write_guides(tmp_path / "t2", shape, affine)
    with pytest.raises(InputError, match=message):
        convert(place / "t1", str(tmp_path / "set"), OPTIONS, guide=tmp_path / "t2")
    assert not (tmp_path / "set" / "zarr.json").exists()


def test_a_scan_without_a_guide_is_named(place: Path, tmp_path: Path) -> None:
    write_heads(tmp_path / "t2", NAMES[:2])
    with pytest.raises(InputError, match=r"c\.nii\.gz: subject 'c' has no guide"):
        convert(place / "t1", str(tmp_path / "set"), OPTIONS, guide=tmp_path / "t2")


def test_a_scan_does_not_guide_itself(place: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="would be its own guide"):
        convert(place / "t1", str(tmp_path / "set"), OPTIONS, guide=place / "t1")


def ref(name: str, subject: str, folder: str = "t1") -> SourceRef:
    return SourceRef("nifti", name, subject, (f"{folder}/{name}.nii",))


def test_guides_are_found_by_person_and_by_name() -> None:
    scans = [ref("sub-1_T1w", "sub-1"), ref("x", "p2"), ref("y", "p2")]
    guides = [ref("y", "p2", "t2"), ref("sub-1_T2w", "sub-1", "t2"), ref("x", "p2", "t2"), ref("z", "p9", "t2")]
    found = with_guides(scans, guides)
    assert [(one.name, one.guide and one.guide.name) for one in found] == [
        ("sub-1_T1w", "sub-1_T2w"),
        ("x", "x"),
        ("y", "y"),
    ]
    assert [replace(one, guide=None) for one in found] == scans
    (alone,) = with_guides([ref("x", "x")], [ref("y", "y", "t2")])
    assert alone.guide == ref("y", "y", "t2")
    with pytest.raises(InputError, match=r"2 guides \(u, …\) for 1 scan"):
        with_guides([ref("a", "p"), ref("b", "q")], [ref("u", "p", "t2"), ref("v", "p", "t2"), ref("w", "q", "t2")])


def test_two_persons_are_no_pair(tmp_path: Path) -> None:
    def series(name: str, patient: str) -> SourceRef:
        files = write_series(tmp_path / name, make_scan(patient=patient, uid=f"1.2.{len(name)}"))
        (found,) = find_sources([str(path) for path in files])
        return found

    scan, same, other = series("t1", "JD-4711"), series("t2a", "JD-4711"), series("t2ab", "XY-1")
    assert with_guides([scan], [same])[0].guide == same
    with pytest.raises(InputError, match="their PatientIDs differ: they show two persons") as refused:
        with_guides([scan], [other])
    assert "4711" not in str(refused.value)
    assert "XY-1" not in str(refused.value)
    with pytest.raises(InputError, match="their BIDS names differ"):
        with_guides([ref("sub-1_T1w", "sub-1")], [ref("sub-2_T2w", "sub-2", "t2")])
