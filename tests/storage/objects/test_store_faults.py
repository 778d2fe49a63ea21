"""Faults of the store during training: it goes on with exactly the same batches, or stops and names the object."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from s3fs import S3FileSystem

from larmor.cluster.experiments.experiment import Experiment
from larmor.cluster.launch.run_locally import train_locally
from larmor.cluster.runs.run_folder import RunFolder
from larmor.storage.dataset import layout
from larmor.storage.dataset.layout import SplitLayout
from larmor.storage.dataset.writing import publish
from larmor.storage.loading.config import DataConfig, open_loader, open_reader
from larmor.storage.loading.loader import Batch, Share
from larmor.storage.objects import store_errors
from larmor.storage.objects.embedded_store import EmbeddedStore
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import Client, ObjectStore
from larmor.tuning.search.experiment import load_sweep_experiment
from tests.conftest import use_only
from tests.faulty_proxy import FaultyProxy, Kind, proxied_environment
from tests.helpers import flip_byte, random_kspace, stored_volume, write_dataset, write_layout
from tests.workbench import TINY

CLIENTS: tuple[Client, ...] = get_args(Client)
SHAPES = ((1, 16, 12), (2, 10, 14))
VOLUMES = 6, 40  # volumes, slices of each: shapes take turns
BATCH = 12
EPOCHS = 3
EPOCH = VOLUMES[0] * VOLUMES[1] * 2 // BATCH  # micro-batches: two to a batch
NUM_BATCHES = EPOCHS * EPOCH
SHARD = "train/kspace/c/1/0/0/0"
KSPACE = r"/train/kspace(_1)?/c/"
STEPS = 24  # of a training: three epochs


def write_slices(store: ObjectStore) -> list[np.ndarray]:
    """A data set of slices of two shapes in several shards; its slices in order."""
    count, each = VOLUMES
    shapes = [SHAPES[number % 2] for number in range(count)]
    contents = [random_kspace(each, shape, seed) for seed, shape in enumerate(shapes)]
    volumes = [stored_volume(f"v{i}", f"s{i}", shape, each, i * each) for i, shape in enumerate(shapes)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "SHARD_BYTES", 36 * 8 * 16 * 12)
        publish(store, {"train": write_layout(store, SplitLayout("train", tuple(volumes)), contents)}, [])
    return [kspace for volume in contents for kspace in volume]


def config(url: str, client: Client, **changes: Any) -> DataConfig:
    """Few bytes in memory, so that nearly every slice is requested in every epoch."""
    small: dict[str, Any] = {"block_bytes": 20_000, "shuffle_bytes": 120_000, "read_ahead_bytes": 60_000}
    none = {"memory_cache_bytes": 0, "disk_cache_bytes": 0}
    return DataConfig(url=url, client=client, **{**small, **none, **changes})


@contextlib.contextmanager
def loading(data: DataConfig) -> Iterator[Iterator[Batch]]:
    reader = open_reader(data, "train")
    batches = open_loader(data, reader, Share(0, 1, BATCH, 2), seed=5).batches(0)
    try:
        yield batches
    finally:
        batches.close()
        reader.close()


def content(batch: Batch) -> list[tuple[Any, ...]]:
    """All that a batch is, to be compared."""
    groups = [(group.kspace.shape, group.kspace.tobytes(), group.rows.tolist()) for group in batch.groups]
    return [(batch.samples.tolist(),), *groups]


def own_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("larmor-")]


@dataclass(frozen=True)
class Stored:
    """A data set in the embedded store, and the content of its batches when nothing goes wrong."""

    url: str
    batches: list[list[tuple[Any, ...]]]


@pytest.fixture(scope="module")
def stored(embedded_store: EmbeddedStore) -> Iterator[Stored]:
    """What is read without faults is what was written."""
    url = f"s3://larmor/{uuid.uuid4().hex}"
    with pytest.MonkeyPatch.context() as patch:
        use_only(embedded_store, patch)
        slices = write_slices(ObjectStore(url))
        with loading(config(url, "http")) as batches:
            read = list(islice(batches, NUM_BATCHES))
    seen = np.concatenate([batch.samples for batch in read])
    for epoch in range(EPOCHS):
        assert sorted(seen[seen[:, 0] == epoch, 1]) == list(range(len(slices)))
    for batch in read:
        for group in batch.groups:
            wanted = np.stack([slices[index] for index in batch.samples[group.rows, 1]])
            assert np.array_equal(group.kspace, wanted)
    yield Stored(url, [content(batch) for batch in read])
    S3FileSystem.clear_instance_cache()


@pytest.fixture
def proxy(
    embedded_store: EmbeddedStore, store_environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FaultyProxy]:
    """What stands between every client and the embedded store."""
    upstream = embedded_store.status().endpoint
    assert upstream
    with FaultyProxy(upstream, seed=1) as running:
        for name, value in proxied_environment(embedded_store, running, tmp_path).items():
            monkeypatch.setenv(name, value)
        S3FileSystem.clear_instance_cache()
        yield running
        S3FileSystem.clear_instance_cache()


Faults = Sequence[Mapping[str, Any]]
ASKING: Mapping[str, Any] = {"methods": ("GET", "HEAD"), "matches": "^(?!.*max-keys=1&)"}  # all but `check_access`
PASSING: dict[str, Faults] = {
    "503": [{"kind": "status", "status": 503, "share": 0.3, **ASKING}],
    "500": [{"kind": "status", "status": 500, "share": 0.3, **ASKING}],
    "429": [{"kind": "status", "status": 429, "share": 0.3, **ASKING}],
    "reset": [{"kind": "reset", "share": 0.3, **ASKING}],
    "close": [{"kind": "close", "share": 0.3, **ASKING}],
    "refuse": [{"kind": "refuse", "share": 0.2, **ASKING}],
    "truncate": [{"kind": "truncate", "share": 0.2, "matches": KSPACE}],
    "flip": [{"kind": "flip", "share": 0.2, "matches": KSPACE}],
    "slow": [{"kind": "slow", "share": 0.2, "seconds": 0.3}],
    "all": [
        {"kind": "status", "share": 0.1, **ASKING},
        {"kind": "reset", "share": 0.1, **ASKING},
        {"kind": "close", "share": 0.1, **ASKING},
        {"kind": "refuse", "share": 0.1, **ASKING},
        {"kind": "slow", "share": 0.1, "seconds": 0.2},
        {"kind": "truncate", "share": 0.05, "matches": KSPACE},
        {"kind": "flip", "share": 0.05, "matches": KSPACE},
    ],
}


SLOW = ("500", "429", "close", "slow", "refuse")  # much like another one
DAMAGING = {case for case, faults in PASSING.items() if {"flip", "truncate"} & {fault["kind"] for fault in faults}}


def follow(batches: Iterator[Batch], wanted: Sequence[Any]) -> InputError | None:
    """Compare every batch that comes with the one that is wanted; what stopped them, or None."""
    for expected in wanted:
        try:
            batch = next(batches)
        except InputError as error:
            return error
        assert content(batch) == expected
    return None


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the tries of a request: there are hundreds here."""
    monkeypatch.setattr(store_errors, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(store_errors, "_LONGEST_PAUSE", 0.1)


@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] * (case in SLOW)) for case in PASSING])
@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.usefixtures("short_waits")
def test_faults_change_no_batch(stored: Stored, proxy: FaultyProxy, client: Client, case: str) -> None:
    """What arrives damaged several times in a row may stop the reading; anything else is got over."""
    for fault in PASSING[case]:
        proxy.plan(**fault)
    with loading(config(stored.url, client)) as batches:
        error = follow(batches, stored.batches)
    assert error is None or (case in DAMAGING and re.search(f"^{stored.url}{KSPACE}.* is damaged; ", str(error)))
    assert not own_threads()
    assert proxy.counts[PASSING[case][0]["kind"]] > 0
    assert error or proxy.counts.keys() == {fault["kind"] for fault in PASSING[case]}


@pytest.mark.parametrize("kind", ["flip", "truncate"])
@pytest.mark.parametrize("client", CLIENTS)
def test_what_was_damaged_on_the_way_once_is_read_again(
    stored: Stored, proxy: FaultyProxy, client: Client, kind: Kind
) -> None:
    """Index and slices of every shard."""
    for bucket, shard in product(("kspace", "kspace_1"), range(4)):
        proxy.plan(kind, limit=1, matches=f"/{bucket}/c/{shard}/")
    with loading(config(stored.url, client)) as batches:
        assert follow(batches, stored.batches[:EPOCH]) is None
        for bucket, shard in product(("kspace", "kspace_1"), range(4)):
            proxy.plan(kind, limit=1, matches=f"/{bucket}/c/{shard}/")
        assert follow(batches, stored.batches[EPOCH:]) is None
    assert proxy.counts == {kind: 16}


@pytest.mark.slow
@pytest.mark.parametrize("client", CLIENTS)
def test_a_stalled_answer_changes_no_batch(stored: Stored, proxy: FaultyProxy, client: Client) -> None:
    """It is given up after 30 seconds of silence."""
    proxy.plan("stall", limit=1, matches=KSPACE)
    with loading(config(stored.url, client)) as batches:
        assert follow(batches, stored.batches) is None
    assert proxy.counts == {"stall": 1}
    assert not own_threads()


Damage = tuple[Callable[[ObjectStore], None], str]
LATER: dict[str, Damage] = {
    "cut to half": (lambda store: store.write(SHARD, store.read(SHARD)[: store.size(SHARD) // 2]), "is damaged; "),
    "empty": (lambda store: store.write(SHARD, b""), "is damaged; "),
    "slice flipped": (lambda store: flip_byte(store, SHARD, 1000), "slice 36 is damaged; "),
    "deleted": (lambda store: store.delete(SHARD), "the shard is missing; "),
}
EARLY: dict[str, Damage] = LATER | {
    "cut at its end": (lambda store: store.write(SHARD, store.read(SHARD)[:-3]), "the shard's index is damaged; "),
    "index flipped": (lambda store: flip_byte(store, SHARD, -30), "the shard's index is damaged; "),
}
MOMENTS = [(0, case) for case in EARLY] + [(EPOCH, case) for case in LATER]


@pytest.mark.parametrize(("read_before", "case"), MOMENTS)
@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.usefixtures("store_environment")
def test_a_damaged_shard_stops_the_reading(stored: Stored, client: Client, read_before: int, case: str) -> None:
    url = f"s3://larmor/{uuid.uuid4().hex}"
    store, (damage, cause) = ObjectStore(url), EARLY[case]
    write_slices(store)
    if not read_before:
        damage(store)
    with loading(config(url, client)) as batches:
        assert follow(batches, stored.batches[:read_before]) is None
        if read_before:
            damage(store)
        error = follow(batches, stored.batches[read_before:])
    assert re.search(f"^{url}/{SHARD}: .*{cause}.*convert the data again", str(error))
    assert not own_threads()


LASTING: dict[str, tuple[Mapping[str, Any], str]] = {
    "403": ({"kind": "status", "status": 403}, "access refused"),
    "503": ({"kind": "status", "status": 503}, "503|store fails"),
    "refuse": ({"kind": "refuse"}, "cannot be reached|store fails"),
    "reset": ({"kind": "reset"}, "store fails"),
    "truncate": ({"kind": "truncate"}, "is damaged"),
}


@pytest.mark.parametrize(("client", "case"), list(product(CLIENTS, LASTING)))
@pytest.mark.usefixtures("short_waits")
def test_a_shard_that_cannot_be_had_stops_the_reading(
    stored: Stored, proxy: FaultyProxy, client: Client, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LARMOR_STORE_PATIENCE", "2")
    fault, cause = LASTING[case]
    with loading(config(stored.url, client)) as batches:
        assert follow(batches, stored.batches[:EPOCH]) is None
        proxy.plan(**fault, matches=SHARD, methods=("GET", "HEAD"))
        error = str(follow(batches, stored.batches[EPOCH:]))
    key = f"{stored.url}/{SHARD}".removeprefix("s3://larmor/")
    assert key in error
    assert re.search(cause, error)
    assert not own_threads()


DOCUMENTS = ("zarr.json", "train/zarr.json", "train/kspace/zarr.json", "train/row/zarr.json", "train/row/c/0")


@pytest.mark.parametrize("kind", ["flip", "truncate"])
def test_a_damaged_document_stops_the_opening(stored: Stored, proxy: FaultyProxy, kind: Kind) -> None:
    for name, at in zip(DOCUMENTS, (0.0, 0.3, 0.6, 0.9, 0.5), strict=True):
        proxy.clear()
        struck = proxy.counts[kind]
        proxy.plan(kind, at=at, matches=f"{stored.url.removeprefix('s3:/')}/{name}[?]")
        with pytest.raises(InputError, match=f"^{stored.url}/{name.split('/')[0]}.*(is not JSON|is damaged)"):
            open_reader(config(stored.url, "http"), "train")
        assert proxy.counts[kind] > struck


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.usefixtures("short_waits")
def test_what_is_on_the_disk_is_not_asked_for_again(
    stored: Stored, proxy: FaultyProxy, client: Client, tmp_path: Path
) -> None:
    """Nor by the next worker, but for where the slices lie."""
    for fault in PASSING["503"]:
        proxy.plan(**fault)
    data = config(stored.url, client, disk_cache_bytes=2**30, disk_cache=str(tmp_path / "cache"))
    with loading(data) as batches:
        settled = EPOCH + 12  # what was asked for before it was on the disk has come
        assert follow(batches, stored.batches[:settled]) is None
        asked = len(proxy.log)
        assert follow(batches, stored.batches[settled:]) is None
        assert len(proxy.log) == asked
        assert proxy.counts["status"] > 0
    proxy.clear()
    proxy.plan("status", status=404, matches=KSPACE)
    with loading(data) as batches:
        assert follow(batches, stored.batches) is None


@pytest.fixture(scope="module")
def mortal_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStore]:
    """A store of this file's own, to be killed."""
    store = EmbeddedStore(tmp_path_factory.mktemp("mortal") / "store")
    store.start()
    yield store
    store.stop(timeout=1)


class Outage:
    """A store's server is killed, and started again on the same port after `seconds`."""

    def __init__(self, store: EmbeddedStore, seconds: float) -> None:
        status = store.status()
        assert status.pid
        assert status.endpoint
        self._store, self._seconds, self._port = store, seconds, int(status.endpoint.rsplit(":", 1)[1])
        os.kill(status.pid, signal.SIGKILL)
        self._thread = threading.Thread(target=self._restart)
        self._thread.start()

    def _restart(self) -> None:
        time.sleep(self._seconds)
        self._store.start(self._port)

    def end(self) -> None:
        self._thread.join()
        assert self._store.is_running


@pytest.mark.parametrize("client", CLIENTS)
def test_a_server_that_is_killed_and_comes_back_changes_no_batch(
    stored: Stored,
    mortal_store: EmbeddedStore,
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    use_only(mortal_store, monkeypatch)
    url = f"s3://larmor/{uuid.uuid4().hex}"
    write_slices(ObjectStore(url))
    half = NUM_BATCHES // 2
    with loading(config(url, client)) as batches:
        assert follow(batches, stored.batches[:half]) is None
        outage = Outage(mortal_store, seconds=2)
        error = follow(batches, stored.batches[half:])
        outage.end()
    S3FileSystem.clear_instance_cache()
    assert error is None
    assert re.search(f"{url}{KSPACE}.*; trying again for up to 150 s", caplog.text), "it was not missed"


def write_images(store: ObjectStore) -> None:
    """32 slices to train on, in three shards, and some to validate with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "SHARD_BYTES", 12 * 8 * 64 * 64)
        shape = (1, 64, 64)
        write_dataset(store, {"train": random_kspace(32, shape), "validation": random_kspace(6, shape, seed=1)})


def experiment(url: str, *more: str) -> Experiment:
    overrides = [
        *TINY,
        f"data.url={url}",
        "data.block_bytes=98400",  # three slices
        "data.read_ahead_bytes=0",
        "data.memory_cache_bytes=0",
        "training.backend=plain",
        "training.zero_stage=0",
        f"training.num_steps={STEPS}",
        "training.log_every=1",
        "training.validate_every=12",
        "training.checkpoint_every=12",
        "cluster.num_workers=1",
        *more,
    ]
    return load_sweep_experiment("laptop", overrides).training_part()


MOSTLY_ONE = ["http", pytest.param("s3fs", marks=pytest.mark.slow)]


class WatchedRun(RunFolder):
    """Calls `at_step` after each row of the history is written."""

    at_step: Callable[[int], object] = staticmethod(lambda step: None)

    def write_history(self, step: int, rows: Sequence[Mapping[str, float]]) -> None:
        super().write_history(step, rows)
        self.at_step(step)


def train_there(setup: Experiment, run: RunFolder) -> list[dict[str, float]]:
    """Train; the history."""
    train_locally(setup, run, "cpu")
    return run.history()


@dataclass(frozen=True)
class Trained:
    """A data set in the embedded store, and the history of a training on it when nothing goes wrong."""

    url: str
    history: list[dict[str, float]]


@pytest.fixture(scope="module")
def trained(embedded_store: EmbeddedStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    url = f"s3://larmor/{uuid.uuid4().hex}"
    with pytest.MonkeyPatch.context() as patch:
        use_only(embedded_store, patch)
        write_images(ObjectStore(url))
        run = RunFolder(str(tmp_path_factory.mktemp("undisturbed") / "run"))
        history = train_there(experiment(url), run)
    assert [row["step"] for row in history] == list(range(1, STEPS + 1))
    assert sum("val/psnr" in row for row in history) == 2
    assert len({row["loss"] for row in history}) == STEPS
    yield Trained(url, history)
    S3FileSystem.clear_instance_cache()


def unsteady(proxy: FaultyProxy) -> None:
    """What happens to three requests in ten, reads and writes."""
    asking = {"methods": None, "matches": ASKING["matches"]}
    proxy.plan("status", share=0.2, **asking)
    proxy.plan("reset", share=0.1, **asking)


@pytest.mark.parametrize("client", MOSTLY_ONE)
@pytest.mark.usefixtures("short_waits")
def test_a_training_over_an_unsteady_store_has_the_same_losses(
    trained: Trained, proxy: FaultyProxy, client: Client
) -> None:
    """History and checkpoints go to the same store."""
    unsteady(proxy)
    run = RunFolder(f"s3://larmor/{uuid.uuid4().hex}")
    assert train_there(experiment(trained.url, f"data.client={client}"), run) == trained.history
    assert {exchange.method for exchange in proxy.log if exchange.fault} >= {"GET", "PUT"}
    assert proxy.counts.keys() == {"status", "reset"}


@pytest.mark.usefixtures("short_waits")
def test_a_training_with_a_disk_cache_leaves_the_store_alone_after_one_epoch(
    trained: Trained, proxy: FaultyProxy, tmp_path: Path
) -> None:
    unsteady(proxy)
    run, asked = WatchedRun(str(tmp_path / "run")), {}

    def count(step: int) -> None:
        asked[step] = sum(bool(re.search(KSPACE, exchange.path)) for exchange in proxy.log)

    run.at_step = count
    cache = (f"data.disk_cache={tmp_path / 'cache'}", "data.disk_cache_bytes=1000000000")
    assert train_there(experiment(trained.url, *cache), run) == trained.history
    one_epoch = STEPS // EPOCHS
    assert asked[1] < asked[one_epoch]
    assert asked[one_epoch + 2] == asked[STEPS], "two batches were ahead of the cache"
    assert proxy.counts.keys() == {"status", "reset"}


@pytest.mark.parametrize("client", MOSTLY_ONE)
def test_a_training_outlives_its_store(
    trained: Trained, mortal_store: EmbeddedStore, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed and started again in the second epoch, and during the checkpoint of its last step."""
    use_only(mortal_store, monkeypatch)
    url, run = f"s3://larmor/{uuid.uuid4().hex}", WatchedRun(f"s3://larmor/{uuid.uuid4().hex}")
    write_images(ObjectStore(url))
    outages: list[Outage] = []

    def strike(step: int) -> None:
        if step in (11, STEPS):
            outages.append(Outage(mortal_store, seconds=1))

    run.at_step = strike
    history = train_there(experiment(url, f"data.client={client}"), run)
    assert len(outages) == 2
    for outage in outages:
        outage.end()
    assert history == trained.history
    latest = run.latest()
    assert latest
    assert latest.step == STEPS
    S3FileSystem.clear_instance_cache()
