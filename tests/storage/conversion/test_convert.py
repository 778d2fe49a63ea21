"""From scans to a published data set, or to a reason and no trace."""

from __future__ import annotations

import hashlib
import re
import threading
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from larmor.recon.evaluation.sheet import write_contact_sheet
from larmor.storage.conversion.convert import ConvertOptions, VolumeReport, convert
from larmor.storage.conversion.verify import verify
from larmor.storage.dataset import dataset, layout
from larmor.storage.dataset.describe import describe
from larmor.storage.formats.nifti import read_volume, subject_of
from larmor.storage.formats.recognise import find_sources
from larmor.storage.loading.reader import SliceReader
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore
from tests.helpers import contents_of, cut_slices, ellipsoid, random_kspace, write_heads, write_volume
from tests.storage.formats.dicom_files import PLANTED, make_scan, write_series

MATRIX = (36, 32)
NAMES = ["ann", "bob", "cat", "dan"]
HELD_OUT = {"test": ["ann"], "validation": ["dan"]}


@pytest.fixture
def heads(tmp_path: Path) -> list[Path]:
    return write_heads(tmp_path / "heads", NAMES)


def run(sources: Sequence[object], target: object, **options: object) -> list[VolumeReport]:
    settings = ConvertOptions(**{"matrix": MATRIX, "held_out": HELD_OUT, **options})  # type: ignore[arg-type]
    return convert(find_sources([str(source) for source in sources]), str(target), settings)


def read_all(url: object, split: str) -> tuple[dataset.SplitInfo, list[np.ndarray]]:
    store = ObjectStore(str(url))
    reader = SliceReader(store, dataset.read_split(store, split))
    try:
        return reader.info, reader.read(range(reader.info.num_slices))
    finally:
        reader.close()


def image_of(kspace: np.ndarray) -> np.ndarray:
    """The image of one slice: root of the sum of the coils' squares."""
    axes = (-2, -1)
    coils = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, axes), norm="ortho"), axes)
    return np.sqrt((np.abs(coils) ** 2).sum(axis=0))


def test_stored_kspace_is_the_orthonormal_transform_of_the_slices(heads: list[Path], tmp_path: Path) -> None:
    reports = run(heads, tmp_path / "data")
    wanted_splits = {"ann": "test", "bob": "train", "cat": "train", "dan": "validation"}
    assert {report.volume: report.split for report in reports} == wanted_splits
    for split in dataset.SPLITS:
        info, kspace = read_all(tmp_path / "data", split)
        for volume in info.volumes:
            path = next(path for path in heads if subject_of(path) == volume)
            wanted = cut_slices(read_volume(path), MATRIX, ConvertOptions.min_foreground)
            places = info.slices_of(volume)
            (report,) = [report for report in reports if report.volume == volume]
            assert report.kept == len(wanted) == len(places) > 5
            assert report.total == 14
            assert info.index[places].tolist() == [item.index for item in wanted]
            assert info.position[places].tolist() == [item.position for item in wanted]
            for place, item in zip(places, wanted, strict=True):
                assert np.abs(image_of(kspace[place]) - item.image).max() < 1e-5 * item.image.max()
                assert np.isclose(np.linalg.norm(kspace[place]), np.linalg.norm(item.image), rtol=1e-5)
                limits = [item.image.min(), item.image.max()]
                assert info.scale[place] == pytest.approx(limits, abs=1e-5 * float(item.image.max()))


def test_the_root_document_says_where_every_volume_comes_from(heads: list[Path], tmp_path: Path) -> None:
    heads[1].with_name("bob.json").write_text('{"licence": "CC0", "package": "heads", "age": 77}')
    run(heads, tmp_path / "data")
    root = dataset.read_root(ObjectStore(tmp_path / "data"))
    assert root["matrix"] == list(MATRIX)
    assert [source["volume"] for source in root["sources"]] == NAMES
    ann, bob = root["sources"][:2]
    assert ann["files"][0]["file"] == "ann.nii.gz"
    assert len(ann["files"][0]["sha256"]) == 64
    assert (ann["format"], ann["plane"], ann["slice_shape"]) == ("nifti", "coronal", [1, *MATRIX])
    assert (ann["subject"], ann["licence"], ann["voxel_size_mm"]) == ("ann", "not stated", [1.0, 1.0, 1.0])
    assert (bob["licence"], bob["package"]) == ("CC0", "heads")
    assert "age" not in bob


@pytest.mark.parametrize("num_threads", [1, 2, 7])
def test_the_same_sources_give_the_same_bytes(
    heads: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_threads: int
) -> None:
    monkeypatch.setattr(layout, "SHARD_BYTES", 5 * 8 * MATRIX[0] * MATRIX[1])
    before = threading.active_count()
    run(heads, tmp_path / "one", num_threads=3)
    run(heads[::-1], tmp_path / "two", num_threads=num_threads)
    one = contents_of(tmp_path / "one")
    assert one == contents_of(tmp_path / "two")
    assert sum("train/kspace/c/" in path for path in one) > 2
    assert not any(path.startswith(dataset.JOURNAL) for path in one)
    assert threading.active_count() <= before + 1, "but for the one thread of Zarr"


def test_a_split_may_keep_its_slices_of_air(heads: list[Path], tmp_path: Path) -> None:
    data = ellipsoid((28, 14, 30))
    data[:, :3] = 0
    heads.append(write_volume(tmp_path / "heads" / "eve.nii.gz", data))
    run(heads, tmp_path / "data", min_foreground=0.0)
    info, slices = read_all(tmp_path / "data", "train")
    kspace = np.stack(slices)[info.slices_of("eve")]
    assert len(kspace) == 14
    assert not kspace[:3].any()
    assert kspace[3:12].any(axis=(1, 2, 3)).all()
    assert verify(str(tmp_path / "data")).problems == ()


def test_volumes_of_one_subject_stay_together(tmp_path: Path) -> None:
    names = [f"sub-{person}_{scan}" for person in "abc" for scan in ("T1w", "T2w")]
    reports = run(write_heads(tmp_path / "heads", names), tmp_path / "data", held_out={})
    assert len(reports) == 6
    assert {len({report.split for report in reports if report.subject == f"sub-{person}"}) for person in "abc"} == {1}
    infos = {split: dataset.read_split(ObjectStore(tmp_path / "data"), split) for split in dataset.SPLITS}
    assert {split: (len(info.subjects), len(info.volumes)) for split, info in infos.items()} == dict.fromkeys(
        dataset.SPLITS, (1, 2)
    )


def write_mixed(folder: Path) -> list[Path]:
    """Heads, and k-space of two coils in two shapes, one slice of it empty."""
    paths = write_heads(folder, ["ann", "bob", "cat"])
    for name, shape in {"eve": (2, 24, 20), "fay": (2, 18, 26), "gil": (2, 24, 20)}.items():
        kspace = random_kspace(5, shape, seed=len(paths))
        kspace[3] = 0
        np.save(folder / f"{name}.npy", kspace)
        paths.append(folder / f"{name}.npy")
    return paths


def test_slices_of_unequal_shape_lie_in_arrays_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "SHARD_BYTES", 3 * 8 * 2 * 24 * 20)
    paths = write_mixed(tmp_path / "in")
    reports = run(paths, tmp_path / "data", held_out={"test": ["ann"], "validation": ["bob"]}, sensitivity_maps=True)
    assert {report.volume: (report.kept, report.total) for report in reports if report.volume > "d"} == dict.fromkeys(
        ("eve", "fay", "gil"), (4, 5)
    )
    info, slices = read_all(tmp_path / "data", "train")
    assert [bucket.shape for bucket in info.buckets] == [(1, *MATRIX), (2, 24, 20), (2, 18, 26)]
    assert [sorted(bucket.checksums) for bucket in info.buckets] == [["kspace"], *[["kspace", "sensitivity_maps"]] * 2]
    for path in paths[3:]:
        stored = [slices[place] for place in info.slices_of(path.stem)]
        assert np.array_equal(np.stack(stored), np.load(path)[[0, 1, 2, 4]])
        assert info.index[info.slices_of(path.stem)].tolist() == [0, 1, 2, 4]
    import zarr

    maps: Any = zarr.open_group(str(tmp_path / "data"), mode="r")["train/sensitivity_maps_1"]
    kspace: Any = zarr.open_group(str(tmp_path / "data"), mode="r")["train/kspace_1"]
    assert maps.shape == kspace.shape == (8, 2, 24, 20)
    squares = (np.abs(maps[:]) ** 2).sum(axis=1)
    assert np.all((np.abs(squares - 1) < 1e-5) | (squares == 0))
    assert verify(str(tmp_path / "data")).problems == ()
    root = dataset.read_root(ObjectStore(tmp_path / "data"))
    about = {source["volume"]: source for source in root["sources"]}
    assert (about["fay"]["plane"], about["fay"]["slice_shape"]) == ("acquired", [2, 18, 26])


def test_a_volume_without_slices_is_reported_and_not_stored(heads: list[Path], tmp_path: Path) -> None:
    np.save(tmp_path / "empty.npy", np.zeros((3, 16, 16), np.complex64))
    reports = run([*heads, tmp_path / "empty.npy"], tmp_path / "data")
    assert [(r.kept, r.total, r.left_out) for r in reports if r.volume == "empty"] == [(0, 3, "")]
    store = ObjectStore(tmp_path / "data")
    assert dataset.read_split(store, "train").volumes == ("bob", "cat")
    assert [source["volume"] for source in dataset.read_root(store)["sources"]] == NAMES


def with_nan(path: Path) -> None:
    data = ellipsoid((28, 14, 30))
    data[5, 5, 5] = np.nan
    write_volume(path, data)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, "no such file"),
    "text": (lambda path: path.write_text("hello"), "does not match its suffix"),
    "cut short": (cut_short, "cannot be read to its end"),
    "NaN": (with_nan, "1 of 11760 voxels are not finite"),
    "constant": (lambda path: write_volume(path, np.ones((9, 9, 9), np.float32)), "every voxel has the same value"),
    "4-D": (lambda path: write_volume(path, np.ones((9, 9, 9, 3), np.float32)), "one 3-D volume is expected"),
    "licence": (lambda path: path.with_name("cat.json").write_text("{"), "cat.json: is not JSON"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_one_bad_source_stops_before_anything_is_written(heads: list[Path], tmp_path: Path, case: str) -> None:
    spoil_file, reason = BAD_FILES[case]
    sources = find_sources([str(path) for path in heads])
    spoil_file(heads[2])
    options = ConvertOptions(MATRIX, held_out=HELD_OUT)
    place = heads[2].parent
    with pytest.raises(InputError, match=f"(?s){place}/.*{reason}.*nothing was written.*--skip-invalid"):
        convert(sources, str(tmp_path / "deep" / "data"), options)
    assert not (tmp_path / "deep").exists()


def test_every_bad_source_is_named_at_once(heads: list[Path], tmp_path: Path) -> None:
    for path in heads[1:3]:
        cut_short(path)
    with pytest.raises(InputError) as caught:
        run(heads, tmp_path / "data")
    assert all(str(path) in str(caught.value) for path in heads[1:3])
    assert str(heads[0]) not in str(caught.value)


@pytest.mark.parametrize(
    ("names", "held_out", "reason"),
    [
        (["ann", "bob", "dan"], {"test": ["zoe"], "validation": ["dan"]}, "test subject 'zoe' is not among"),
        (["ann", "bob", "dan"], {"test": ["ann"], "validation": ["ann"]}, "named for test and for validation"),
        (["ann", "bob"], {}, "2 subject.s. cannot be divided"),
        (["sub-a_1", "sub-a_2", "sub-b"], {}, "2 subject.s. cannot be divided"),
        (["ann", "bob", "dan"], {"test": ["ann"]}, "no subject is left for the split 'validation'"),
        (["ann", "bob"], {"test": ["ann"], "validation": ["bob"]}, "no subject is left for the split 'train'"),
    ],
)
def test_splits_that_do_not_work_out_stop_before_anything_is_written(
    tmp_path: Path, names: list[str], held_out: dict[str, list[str]], reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        run(write_heads(tmp_path / "heads", names), tmp_path / "data", held_out=held_out)
    assert not (tmp_path / "data").exists()


def test_a_split_for_tests_may_be_left_out(heads: list[Path], tmp_path: Path) -> None:
    reports = run(heads, tmp_path / "data", held_out={"validation": ["dan"], "test": []})
    assert {report.volume: report.split for report in reports} == {
        "ann": "train",
        "bob": "train",
        "cat": "train",
        "dan": "validation",
    }
    store = ObjectStore(tmp_path / "data")
    assert list(dataset.read_root(store)["splits"]) == ["train", "validation"]
    assert not verify(str(tmp_path / "data")).problems
    assert any(line.startswith("validation: kspace") for line in describe(store))
    write_contact_sheet(store, tmp_path / "sheet.png")
    with pytest.raises(InputError, match="has no split 'test'; it has train, validation"):
        dataset.read_split(store, "test")


def test_folders_of_fastmri_are_the_splits(tmp_path: Path) -> None:
    for name in ("multicoil_train/a", "multicoil_train/b", "multicoil_train/c", "multicoil_val/d"):
        path = tmp_path / "in" / f"{name}.h5"
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            file["kspace"] = random_kspace(2, (2, 16, 12))
    reports = run([tmp_path / "in"], tmp_path / "data", held_out={})
    assert {report.volume: report.split for report in reports} == {
        "a": "train",
        "b": "train",
        "c": "train",
        "d": "validation",
    }
    named = run([tmp_path / "in"], tmp_path / "named", held_out={"validation": ["a"]})
    assert [report.volume for report in named if report.split == "validation"] == ["a"]


def test_bad_sources_can_be_left_out(heads: list[Path], tmp_path: Path) -> None:
    cut_short(heads[1])
    reports = run(heads, tmp_path / "data", skip_invalid=True)
    (left_out,) = [report for report in reports if report.left_out]
    assert (left_out.volume, left_out.kept) == ("bob", 0)
    assert str(heads[1]) in left_out.left_out
    store = ObjectStore(tmp_path / "data")
    assert dataset.read_split(store, "train").subjects == ("cat",)
    assert [source["volume"] for source in dataset.read_root(store)["sources"]] == ["ann", "cat", "dan"]


def test_a_split_whose_only_subject_is_left_out_is_refused(heads: list[Path], tmp_path: Path) -> None:
    cut_short(heads[0])
    with pytest.raises(InputError, match="no subject is left for the split 'test'"):
        run(heads, tmp_path / "data", skip_invalid=True)
    assert not (tmp_path / "data").exists()


def test_without_enough_foreground_nothing_is_published(heads: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no slice has 99% foreground in some split; lower --min-foreground"):
        run(heads, tmp_path / "data", min_foreground=0.99)
    assert not (tmp_path / "data").exists()
    run(heads, tmp_path / "data")


def test_threads_are_at_least_one(heads: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="0 threads requested"):
        run(heads, tmp_path / "data", num_threads=0)


def test_slices_too_small_for_sensitivity_maps_are_refused(tmp_path: Path) -> None:
    paths = write_mixed(tmp_path / "in")
    np.save(tmp_path / "in" / "eve.npy", random_kspace(3, (2, 5, 20)))
    held_out = {"test": ["ann"], "validation": ["bob"]}
    with pytest.raises(InputError, match=r"eve.npy: has k-space of 5×20; sensitivity maps need at least 6"):
        run(paths, tmp_path / "data", held_out=held_out, sensitivity_maps=True)
    run(paths, tmp_path / "data", held_out=held_out)


def test_a_data_set_is_replaced_only_on_demand(heads: list[Path], tmp_path: Path) -> None:
    run(heads, tmp_path / "data")
    before = contents_of(tmp_path / "data")
    with pytest.raises(InputError, match="there is a data set here already; pass --overwrite"):
        run(heads[1:], tmp_path / "data", held_out={})
    assert contents_of(tmp_path / "data") == before
    held_out = {"test": ["bob"], "validation": ["cat"]}
    run(heads[1:], tmp_path / "data", held_out=held_out, overwrite=True)
    run(heads[1:], tmp_path / "fresh", held_out=held_out)
    assert contents_of(tmp_path / "data") == contents_of(tmp_path / "fresh"), "nothing of the old one stays"


def test_an_old_data_set_outlives_a_conversion_that_fails(heads: list[Path], tmp_path: Path) -> None:
    run(heads, tmp_path / "data")
    before = contents_of(tmp_path / "data")
    with_nan(heads[1])
    with pytest.raises(InputError, match="not finite"):
        run(heads, tmp_path / "data", overwrite=True)
    with pytest.raises(InputError, match="99% foreground"):
        run([heads[0], *heads[2:]], tmp_path / "data", overwrite=True, min_foreground=0.99)
    assert contents_of(tmp_path / "data") == before


def test_progress_comes_to_its_end_in_the_calling_thread(heads: list[Path], tmp_path: Path) -> None:
    calls: list[tuple[str, int, int | None]] = []
    threads = set()

    def progress(*call: object) -> None:
        calls.append(call)  # type: ignore[arg-type]
        threads.add(threading.get_ident())

    sources = find_sources([str(path) for path in heads])
    convert(sources, str(tmp_path / "data"), ConvertOptions(MATRIX, held_out=HELD_OUT, num_threads=3), progress)
    assert [done for name, done, total in calls if name == "checking" and total == 4] == [0, 1, 2, 3, 4]
    assert [done for name, done, total in calls if name == "converting" and total == 3] == [0, 1, 2, 3]
    assert threads == {threading.get_ident()}


@pytest.mark.usefixtures("store_environment")
def test_sources_in_a_store_give_the_same_data_set(heads: list[Path], tmp_path: Path) -> None:
    heads[1].with_name("bob.json").write_text('{"licence": "CC0"}')
    url = f"s3://larmor/{uuid.uuid4().hex}"
    ObjectStore(url).upload(tmp_path / "heads", "deep/heads")
    run([f"{url}/deep/**/*.nii.gz"], f"{url}/data")
    run(heads, tmp_path / "data")
    stored = ObjectStore(f"{url}/data")
    assert {path: stored.read(path) for path in stored.list()} == contents_of(tmp_path / "data")
    assert verify(f"{url}/data").problems == ()
    ObjectStore(url).write("deep/heads/bob.nii.gz", heads[1].read_bytes()[:999])
    with pytest.raises(InputError, match=f"{url}/deep/heads/bob.nii.gz: cannot be read to its end"):
        run([f"{url}/deep/heads"], f"{url}/other")
    assert ObjectStore(f"{url}/other").list() == {}


def test_the_examples_in_the_description_of_the_format_read_slices(
    heads: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(heads, tmp_path / "heads-data")
    document = (Path(__file__).parents[3] / "docs" / "format.md").read_text()
    by_zarr, by_xarray = re.findall(r"```python\n(.*?)```", document, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    found: dict[str, object] = {}
    exec(by_zarr.replace('"heads"', '"heads-data"'), found)
    _, slices = read_all(tmp_path / "heads-data", "train")
    assert np.array_equal(np.asarray(found["kspace"]), slices[7])
    assert found["volume"] == "bob"
    pytest.importorskip("xarray")
    exec(by_xarray.replace('"heads"', '"heads-data"'), found)
    assert np.array_equal(np.asarray(found["middle"]), slices[len(slices) // 2])


def test_nothing_that_identifies_a_person_is_stored(heads: list[Path], tmp_path: Path) -> None:
    write_series(tmp_path / "scans" / "t1", make_scan(uid="1.1"))
    write_series(tmp_path / "scans" / "t2", make_scan(uid="1.2"))
    for name in ("knee1", "knee2"):
        with h5py.File(tmp_path / "scans" / f"{name}.h5", "w") as file:
            file["kspace"] = random_kspace(3, (2, 20, 24))
            file.attrs["patient_id"] = "JD-4711"
    reports = run([*heads, tmp_path / "scans"], tmp_path / "data", min_foreground=0.01)
    subjects = {report.volume: report.subject for report in reports}
    assert (subjects["t2"], subjects["knee2"]) == ("t1", "knee1")
    everything = b"".join(contents_of(tmp_path / "data").values())
    assert b"knee2.h5" in everything
    assert b"ACME" in everything, "the maker of the scanner identifies nobody"
    assert [text for text in PLANTED if text.encode() in everything] == []


def test_many_files_of_one_scan_are_one_entry(
    heads: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("larmor.storage.formats.provenance._MOST_FILES", 10)
    paths = write_series(tmp_path / "t1", make_scan())
    run([*heads, tmp_path / "t1"], tmp_path / "data", min_foreground=0.01)
    (source,) = [one for one in dataset.read_root(ObjectStore(tmp_path / "data"))["sources"] if one["volume"] == "t1"]
    digests = "".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(paths))
    (entry,) = source["files"]
    assert (entry["file"], entry["num_files"]) == ("000.dcm … 010.dcm", 11)
    assert entry["sha256"] == hashlib.sha256(digests.encode()).hexdigest()
