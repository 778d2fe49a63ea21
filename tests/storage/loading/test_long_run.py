"""Data sets far larger than the memory allowed are read and converted, again and again, in processes of their own."""

from __future__ import annotations

import gc
import json
import resource
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import numpy as np
import psutil
import pytest

from larmor.storage.dataset import layout
from larmor.storage.objects.embedded_store import EmbeddedStore
from larmor.storage.objects.object_store import Client, ObjectStore

MIB = 2**20
SHAPE = (1, 128, 128)
SLICE_BYTES = 8 * 128 * 128
BATCH = 4
STACK_BYTES = MIB // 4  # of each thread: the kernel counts all of it as used
CLIENTS = ["http", pytest.param("s3fs", marks=pytest.mark.slow)]
assert {"http", "s3fs"} == set(get_args(Client))

# beyond what an open reader takes; measured: a peak of 8.5 MiB with http, 9 with s3fs
SETTINGS = {"block_bytes": MIB // 2, "shuffle_bytes": 4 * MIB, "read_ahead_bytes": MIB, "memory_cache_bytes": MIB}
ALLOWED = 16 * MIB
NUM_SLICES = 10 * ALLOWED // SLICE_BYTES
# 600 MiB are read in 20 epochs; after the third they may add MOST_GROWTH; measured: up to 0.3 MiB
SMALL_SETTINGS = {
    "block_bytes": MIB // 2,
    "shuffle_bytes": 2 * MIB,
    "read_ahead_bytes": MIB // 2,
    "memory_cache_bytes": MIB // 2,
}
NUM_EPOCHS, MOST_GROWTH = 20, 8 * MIB
SMALL_SLICES = 10 * 3 * MIB // SLICE_BYTES
# two threads, beyond what it takes to convert small scans; measured: a peak of 22 to 24 MiB
CONVERT_ALLOWED = 32 * MIB
SCANS, SCAN_SLICES = 80, 32
assert SCANS * SCAN_SLICES * SLICE_BYTES == 10 * CONVERT_ALLOWED


def mapped_bytes() -> int:
    """What RLIMIT_DATA counts: private memory that can be written to."""
    return _own_status("VmData")


def _own_status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024


def state() -> dict[str, int]:
    """What must not grow."""
    gc.collect()
    process = psutil.Process()
    return {
        "resident": process.memory_info().rss,
        "files": process.num_fds(),
        "threads": process.num_threads(),
        "children": len(process.children(recursive=True)),
        "shared": Path("/proc/self/maps").read_text().count("/dev/shm"),
    }


class Limit:
    """From now on the kernel grants `allowed` bytes more, and the peak is measured anew."""

    def __init__(self, allowed: int | None) -> None:
        self.start = state()
        Path("/proc/self/clear_refs").write_text("5")
        if allowed is not None:
            total = mapped_bytes() + allowed
            resource.setrlimit(resource.RLIMIT_DATA, (total, total))

    def result(self, states: list[dict[str, int]]) -> dict[str, Any]:
        return {"start": self.start, "states": states, "peak": _own_status("VmHWM") - self.start["resident"]}


def read_epochs(url: str, num_epochs: int, allowed: int | None, **settings: Any) -> dict[str, Any]:
    from larmor.storage.loading.config import DataConfig, open_loader, open_reader
    from larmor.storage.loading.loader import Share

    config = DataConfig(url=url, disk_cache_bytes=0, **settings)
    reader = open_reader(config, "train")
    reader.read([0])  # the client is made at the first one
    limit, states = Limit(allowed), []
    batches = open_loader(config, reader, Share(0, 1, BATCH, 1), seed=0).batches(0)
    for epoch in range(num_epochs):
        seen = [batch.samples for batch in islice(batches, reader.info.num_slices // BATCH)]
        assert np.array_equal(np.sort(np.concatenate(seen)[:, 1]), np.arange(reader.info.num_slices)), epoch
        states.append(state())
    batches.close()
    reader.close()
    return limit.result(states)


def convert_scans(folder: str, url: str, allowed: int | None) -> dict[str, Any]:
    from larmor.storage.conversion.convert import ConvertOptions, convert
    from larmor.storage.formats.recognise import find_sources

    layout.SHARD_BYTES = MIB
    options = ConvertOptions(SHAPE[1:], min_foreground=0, num_threads=2)
    convert(find_sources([f"{folder}/small"]), f"{url}-small", options)
    limit = Limit(allowed)
    convert(find_sources([f"{folder}/many"]), url, options)
    return limit.result([state()])


def main() -> None:
    """Do the task that the argument describes; print what it took as JSON."""
    threading.stack_size(STACK_BYTES)
    started: list[str] = []
    begins = ("os.fork", "os.forkpty", "os.posix_spawn", "os.system", "os.exec", "subprocess.Popen")
    sys.addaudithook(lambda event, _: started.append(event) if event in begins else None)
    task = json.loads(sys.argv[1])
    tasks: dict[str, Any] = {"read": read_epochs, "convert": convert_scans}
    found = tasks[task.pop("task")](**task)
    print(json.dumps({**found, "started": started}))


def run(**task: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.storage.loading.test_long_run", json.dumps(task)]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3], check=False)


def succeed(**task: Any) -> dict[str, Any]:
    done = run(**task)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def write_split(num_slices: int) -> str:
    from tests.helpers import random_kspace, write_dataset

    url = f"s3://larmor/{uuid.uuid4().hex}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "SHARD_BYTES", 8 * MIB)
        write_dataset(ObjectStore(url), {"train": random_kspace(num_slices, SHAPE)})
    return url


@pytest.fixture(scope="module")
def large(embedded_store: EmbeddedStore) -> Iterator[str]:
    """A data set of ten times `ALLOWED`."""
    from tests.conftest import use_only

    with pytest.MonkeyPatch.context() as patch:
        use_only(embedded_store, patch)
        url = write_split(NUM_SLICES)
        yield url
        ObjectStore(url).delete()


@pytest.mark.parametrize("client", get_args(Client))
@pytest.mark.usefixtures("store_environment")
def test_a_data_set_ten_times_the_memory_is_read(large: str, client: Client) -> None:
    found = succeed(task="read", url=large, client=client, num_epochs=1, allowed=ALLOWED, **SETTINGS)
    print(f"\n{NUM_SLICES * SLICE_BYTES >> 20} MiB read with {client}: {found['peak'] / MIB:.1f} MiB above the start")
    assert found["peak"] < ALLOWED + 4 * MIB, "beside it there are pages of libraries"


@pytest.mark.usefixtures("store_environment")
def test_the_memory_is_really_limited(large: str) -> None:
    """The test above can fail."""
    greedy = SETTINGS | {"memory_cache_bytes": 2 * ALLOWED}
    done = run(task="read", url=large, client="http", num_epochs=1, allowed=ALLOWED, **greedy)
    assert done.returncode != 0
    assert "MemoryError" in done.stderr


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.usefixtures("store_environment")
def test_twenty_epochs_leave_nothing_behind(client: Client) -> None:
    url = write_split(SMALL_SLICES)
    found = succeed(task="read", url=url, client=client, num_epochs=NUM_EPOCHS, allowed=None, **SMALL_SETTINGS)
    third, last = found["states"][2], found["states"][-1]
    growth = last["resident"] - third["resident"]
    print(f"\n{NUM_EPOCHS} epochs with {client}: {growth / MIB:.2f} MiB above the third")
    assert growth < MOST_GROWTH
    assert last["threads"] == third["threads"]
    assert last["files"] <= third["files"] + 4, "a connection for each thread"
    assert found["started"] == []
    for one in found["states"]:
        assert (one["children"], one["shared"]) == (0, 0)


@pytest.mark.slow
@pytest.mark.usefixtures("store_environment")
def test_scans_of_ten_times_the_memory_are_converted(tmp_path: Path) -> None:
    from tests.helpers import ellipsoid, random_kspace, write_volume

    for folder, count, num_slices in (("small", 3, 4), ("many", SCANS, SCAN_SLICES)):
        (tmp_path / folder).mkdir()
        for number in range(count):
            place = tmp_path / folder / f"scan{number:02d}"
            if number % 2:
                np.save(f"{place}.npy", random_kspace(num_slices, SHAPE, number))
            else:
                write_volume(Path(f"{place}.nii.gz"), ellipsoid((SHAPE[1], num_slices, SHAPE[2]), number))
    url = f"s3://larmor/{uuid.uuid4().hex}"
    found = succeed(task="convert", folder=str(tmp_path), url=url, allowed=CONVERT_ALLOWED)
    (end,) = found["states"]
    print(f"\n{10 * CONVERT_ALLOWED >> 20} MiB converted: {found['peak'] / MIB:.1f} MiB above the start")
    assert found["peak"] < CONVERT_ALLOWED + 4 * MIB
    assert end["threads"] == found["start"]["threads"]
    assert end["files"] <= found["start"]["files"] + 2
    assert (end["children"], end["shared"], found["started"]) == (0, 0, [])
    stored = sum(size for path, size in ObjectStore(url).list().items() if "/kspace/c/" in path)
    assert stored > 10 * CONVERT_ALLOWED
    ObjectStore(url).delete()


if __name__ == "__main__":
    main()
