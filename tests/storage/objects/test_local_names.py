"""A name from elsewhere becomes a local path only below the folder that it belongs to."""

from __future__ import annotations

from pathlib import Path

import pytest

from larmor.storage.objects.errors import InputError
from larmor.storage.objects.local_names import inside
from larmor.storage.objects.object_store import ObjectStore

OUTSIDE = ["..", "../a", "a/../../b", "a/..", "/a", "//a", "a\0b"]


@pytest.mark.parametrize("name", ["a", "a/b", "a b/ü..c", "..a", "a...", "a/.b", "a\\b"])
def test_a_name_below_stays_as_it_is(tmp_path: Path, name: str) -> None:
    assert inside(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize("name", [*OUTSIDE, "", ".", "a/", "a//b", "./a"])
def test_any_other_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="is not the name of a file below"):
        inside(tmp_path, name)


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_local_store_gives_and_takes_nothing_outside_of_itself(tmp_path: Path, name: str) -> None:
    store = ObjectStore(tmp_path / "store" / "inner")
    store.write("kept", b"kept")
    for attempt in (
        lambda: store.write(name, b"planted"),
        lambda: store.create(name, b"planted"),
        lambda: store.read(name),
        lambda: store.delete(name),
        lambda: store.download(name, tmp_path / "copy"),
    ):
        with pytest.raises(InputError):
            attempt()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "store" / "inner" / "kept"]
