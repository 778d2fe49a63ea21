"""What objects in a store say of themselves before they are fetched: which there are, and what their headers hold."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, TypeVar, cast

from fsspec.utils import glob_translate

from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore
from larmor.storage.objects.store_errors import patience, persist, translated

T = TypeVar("T")
FileState = dict[str, str | int | None]  # what tells one state of a file from another: size in bytes, etag or time

_BLOCK = 2**18  # bytes that one look at a header fetches
_FEW = 16  # objects of one folder that are asked for one by one, not by a list of the folder


def split_url(url: str) -> tuple[ObjectStore, str]:
    """The store of the folder in which an object lies, and the object's name there."""
    folder, _, name = url.rpartition("/")
    return ObjectStore(folder), name


def is_there(url: str) -> bool:
    """Whether an object of that name, or any below it, exists."""
    store = ObjectStore(url)
    return store.exists("") or bool(store.list())


def list_objects(url: str, is_pattern: bool) -> tuple[list[str], bool]:
    """The objects below a prefix or matching a pattern, sorted; or the one object `url`, and True.

    Raises `InputError` if there are none, or the store cannot be asked.
    """
    place = re.split(r"[*?\[]", url, maxsplit=1)[0].rpartition("/")[0] if is_pattern else url.rstrip("/")
    store = ObjectStore(place)
    store.check_access()
    if not is_pattern and url.count("/") > 2 and (_info(place) or {}).get("type") == "file":
        return [place], True
    found = [f"{store.url}/{path}" for path in store.list()]
    if is_pattern:
        # what matches may be a folder, which is searched whole
        patterns = [re.compile(glob_translate(pattern)) for pattern in (url, f"{url.rstrip('/')}/**")]
        return [name for name in found if any(pattern.match(name) for pattern in patterns)], False
    if not found:
        raise InputError(f"{url}: no such object, and none below it")
    return found, False


def object_facts(urls: Sequence[str]) -> list[FileState | None]:
    """`size` in bytes and `etag` of each object; None for one that is not there."""
    folders: dict[str, list[str]] = {}
    for url in urls:
        folders.setdefault(url.rpartition("/")[0], []).append(url)
    found: dict[str, FileState] = {}
    for folder, inside in folders.items():
        few = len(inside) <= _FEW
        entries = [entry for url in inside if (entry := _info(url))] if few else _list_folder(folder)
        for entry in entries:
            url = f"{folder}/{entry['name'].rpartition('/')[2]}"
            found[url] = {"size": int(entry["size"]), "etag": str(entry.get("ETag", "")).strip('"')}
    return [found.get(url) for url in urls]


def _list_folder(url: str) -> list[dict[str, Any]]:
    try:
        return list(_ask(url, lambda filesystem, path: filesystem.ls(path, detail=True, refresh=True)))
    except FileNotFoundError:
        return []


def _info(url: str) -> dict[str, Any] | None:
    try:
        return dict(_ask(url, lambda filesystem, path: filesystem.info(path, refresh=True)))
    except FileNotFoundError:
        return None


def _ask(url: str, question: Callable[[Any, str], T]) -> T:
    store = ObjectStore(url)
    return persist(store.url, "", lambda: question(store.filesystem, store.full_path("")), patience())


def read_start(url: str, count: int) -> bytes:
    """The first bytes of an object, up to `count`. Raises `FileNotFoundError` if it is not there."""
    store, name = split_url(url)
    return store.read(name, 0, count)


@contextmanager
def opened(url: str) -> Iterator[BinaryIO]:
    """An object as a file of which only the parts that are looked at are fetched."""
    store = ObjectStore(url)
    with translated(url), store.filesystem.open(store.full_path(""), "rb", block_size=_BLOCK) as file:
        yield file


def look_into_hdf5(url: str) -> tuple[str, list[str], str | None]:
    """Format ("fastmri" or "mrd"), the parts (scans) in it, and what fastMRI files of one person have in common.

    The last is for grouping in memory only. Raises `InputError` for an object that is neither.
    """
    import h5py

    from larmor.storage.formats import hdf5, mrd_lines

    try:
        with opened(url) as stream, h5py.File(stream, "r") as file:
            if isinstance(file.get("kspace"), h5py.Dataset):
                person = file.attrs.get("patient_id")
                if isinstance(person, bytes):
                    person = person.decode("utf-8", "replace")
                return "fastmri", [""], person if isinstance(person, str) and person else None
            groups = hdf5.mrd_groups(file)
            if groups:
                group = file["dataset" if "dataset" in groups else groups[0]]
                lines = mrd_lines.read_lines(cast(Any, url), group["data"])  # the path is for messages only
                return "mrd", list(mrd_lines.split_parts(lines)), None
    except (OSError, RuntimeError, KeyError) as error:
        raise InputError(f"{url}: cannot be opened as HDF5 ({error}); truncated? put it there again") from error
    raise InputError(f"{url}: is neither fastMRI (dataset 'kspace') nor ISMRMRD (datasets 'xml' and 'data')")


def look_into_npz(url: str) -> list[str]:
    """The arrays of an .npz archive by name, sorted; [""] if it has one. Raises `InputError` if it is none."""
    try:
        with opened(url) as stream, zipfile.ZipFile(stream) as archive:
            names = sorted(name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy"))
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"{url}: is not a complete .npz archive ({error}); put it there again") from error
    return names if len(names) > 1 else [""]
