"""From volumes to a published data set, or to a reason and no trace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from storage import dataset
from storage.convert import ConvertOptions, SubjectReport, convert, find_sources
from storage.errors import InputError
from storage.object_store import ObjectStore
from storage.shards import SliceReader
from storage.volumes import coronal_slices, read_volume, subject_of
from tests.helpers import contents_of, ellipsoid, write_heads, write_volume

MATRIX = (36, 32)
NAMES = ["ann", "bob", "cat", "dan"]
HELD_OUT = {"test": ["ann"], "validation": ["dan"]}


@pytest.fixture
def heads(tmp_path: Path) -> list[Path]:
    return write_heads(tmp_path / "heads", NAMES)


def run(sources: list[Path], target: Path, **options: object) -> list[SubjectReport]:
    settings = ConvertOptions(**{"matrix": MATRIX, "held_out": HELD_OUT, **options})  # type: ignore[arg-type]
    return convert(find_sources(sources), str(target), settings, lambda *_: None)


def test_stored_kspace_is_the_orthonormal_transform_of_the_slices(heads: list[Path], tmp_path: Path) -> None:
    reports = run(heads, tmp_path / "data")
    assert {report.subject: report.split for report in reports} == {
        "ann": "test",
        "bob": "train",
        "cat": "train",
        "dan": "validation",
    }
    for split in dataset.SPLITS:
        reader = SliceReader(ObjectStore(tmp_path / "data"), split)
        for subject in reader.info.subjects:
            path = next(path for path in heads if subject_of(path) == subject)
            wanted = coronal_slices(read_volume(path), MATRIX, ConvertOptions.min_foreground)
            places = reader.info.slices_of(subject)
            (report,) = [report for report in reports if report.subject == subject]
            assert report.kept == len(wanted) == len(places) > 5
            assert report.total == 14
            assert reader.info.index[places].tolist() == [item.index for item in wanted]
            assert reader.info.position[places].tolist() == [item.position for item in wanted]
            for place, kspace, item in zip(places, reader.read(places.tolist()), wanted, strict=True):
                back = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace[0]), norm="ortho"))
                assert np.abs(back - item.image).max() < 1e-5 * item.image.max()
                assert np.isclose(np.linalg.norm(kspace), np.linalg.norm(item.image), rtol=1e-5)
                assert reader.info.scale[place].tolist() == [item.image.min(), item.image.max()]
        reader.close()
    root = dataset.read_root(ObjectStore(tmp_path / "data"))
    assert [source["subject"] for source in root["sources"]] == NAMES
    assert root["matrix"] == list(MATRIX)


def test_the_same_volumes_give_the_same_bytes(
    heads: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "SHARD_BYTES", 5 * 8 * MATRIX[0] * MATRIX[1])
    run(heads, tmp_path / "one")
    run(heads[::-1], tmp_path / "two")
    one = contents_of(tmp_path / "one")
    assert one == contents_of(tmp_path / "two")
    assert sum("train/kspace/c/" in path for path in one) > 2


def test_a_split_may_keep_its_slices_of_air(heads: list[Path], tmp_path: Path) -> None:
    data = ellipsoid((28, 14, 30))
    data[:, :3] = 0
    heads.append(write_volume(tmp_path / "heads" / "eve.nii.gz", data))
    run(heads, tmp_path / "data", min_foreground=0.0)
    reader = SliceReader(ObjectStore(tmp_path / "data"), "train")
    kspace = np.stack(reader.read(reader.info.slices_of("eve").tolist()))
    reader.close()
    assert len(kspace) == 14
    assert not kspace[:3].any()
    assert kspace[3:12].any(axis=(1, 2, 3)).all()


def test_a_folder_is_searched(heads: list[Path], tmp_path: Path) -> None:
    (tmp_path / "heads" / "deep").mkdir()
    deep = write_volume(tmp_path / "heads" / "deep" / "eve.nii", ellipsoid((28, 14, 30)))
    (tmp_path / "heads" / "notes.txt").write_text("not a volume")
    assert find_sources([tmp_path / "heads", heads[0]]) == sorted([*heads, deep])
    (tmp_path / "empty").mkdir()
    for path, reason in ((tmp_path / "empty", "no volume in this folder"), (tmp_path / "never", "no such file")):
        with pytest.raises(InputError, match=f"{path}: {reason}"):
            find_sources([path])
    with pytest.raises(InputError, match=r"notes.txt: not a NIfTI file name"):
        find_sources([tmp_path / "heads" / "notes.txt"])


def spoil(path: Path, data: np.ndarray) -> None:
    write_volume(path, data)


def with_nan(path: Path) -> None:
    data = ellipsoid((28, 14, 30))
    data[5, 5, 5] = np.nan
    write_volume(path, data)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, "no such file"),
    "text": (lambda path: path.write_text("hello"), "is not what its name says"),
    "cut short": (cut_short, "cannot be read to its end"),
    "NaN": (with_nan, "1 of 11760 voxels are not finite"),
    "constant": (lambda path: spoil(path, np.ones((9, 9, 9), np.float32)), "every voxel has the same value"),
    "4-D": (lambda path: spoil(path, np.ones((9, 9, 9, 3), np.float32)), "one 3-D volume is expected"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_one_bad_source_stops_before_anything_is_written(heads: list[Path], tmp_path: Path, case: str) -> None:
    spoil_file, reason = BAD_FILES[case]
    sources = find_sources(heads)
    spoil_file(heads[2])
    options = ConvertOptions(MATRIX, held_out=HELD_OUT)
    with pytest.raises(InputError, match=f"(?s){heads[2]}.*{reason}.*nothing was written.*--skip-invalid"):
        convert(sources, str(tmp_path / "data"), options, lambda *_: None)
    assert not (tmp_path / "data").exists()


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


def test_one_name_for_two_files_is_refused(heads: list[Path], tmp_path: Path) -> None:
    heads.append(write_volume(tmp_path / "more" / "bob.nii", ellipsoid((28, 14, 30))))
    with pytest.raises(InputError, match="subject bob comes from several files"):
        run(heads, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_bad_sources_can_be_left_out(heads: list[Path], tmp_path: Path) -> None:
    cut_short(heads[1])
    reports = run(heads, tmp_path / "data", skip_invalid=True)
    (left_out,) = [report for report in reports if report.left_out]
    assert (left_out.subject, left_out.kept) == ("bob", 0)
    assert str(heads[1]) in left_out.left_out
    store = ObjectStore(tmp_path / "data")
    assert dataset.read_split(store, "train").subjects == ("cat",)
    assert [source["subject"] for source in dataset.read_root(store)["sources"]] == ["ann", "cat", "dan"]


def test_a_split_whose_only_subject_is_left_out_is_refused(heads: list[Path], tmp_path: Path) -> None:
    cut_short(heads[0])
    with pytest.raises(InputError, match="no subject is left for the split 'test'"):
        run(heads, tmp_path / "data", skip_invalid=True)
    assert not (tmp_path / "data").exists()


def test_without_enough_foreground_nothing_is_published(heads: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no slice has 99% foreground in some split; lower --min-foreground"):
        run(heads, tmp_path / "data", min_foreground=0.99)
    with pytest.raises(InputError, match="no data set is there"):
        dataset.read_root(ObjectStore(tmp_path / "data"))
    run(heads, tmp_path / "data")


def test_a_data_set_is_replaced_only_on_demand(heads: list[Path], tmp_path: Path) -> None:
    run(heads, tmp_path / "data")
    before = contents_of(tmp_path / "data")
    with pytest.raises(InputError, match="a data set is there already; pass --overwrite"):
        run(heads[1:], tmp_path / "data", held_out={})
    assert contents_of(tmp_path / "data") == before
    held_out = {"test": ["bob"], "validation": ["cat"]}
    run(heads[1:], tmp_path / "data", held_out=held_out, overwrite=True)
    run(heads[1:], tmp_path / "fresh", held_out=held_out)
    assert contents_of(tmp_path / "data") == contents_of(tmp_path / "fresh"), "nothing of the old one stays"


def test_progress_comes_to_its_end(heads: list[Path], tmp_path: Path) -> None:
    calls: list[tuple[str, int, int | None]] = []
    options = ConvertOptions(MATRIX, held_out=HELD_OUT)
    convert(heads, str(tmp_path / "data"), options, lambda *call: calls.append(call))
    for what in ("checking", "converting"):
        assert [done for name, done, total in calls if name == what and total == 4] == [0, 1, 2, 3, 4]
