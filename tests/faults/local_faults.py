"""Faults for which one process without Ray is enough. Each: (scene, name of the run, random source) → what was done."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
from safetensors.torch import load, save

from larmor.cluster.runs.checkpoint import WEIGHTS, FileEntry
from larmor.cluster.runs.lease import newest
from larmor.storage.objects.object_store import ObjectStore
from tests.faults.scene import LOCAL, PATIENCE, Broken, Scene, Training, moment
from tests.faulty_proxy import FaultyProxy, proxied_environment

Fault = Callable[[Training, random.Random], str]


def command_killed(training: Training, source: random.Random) -> str:
    with training.attempt() as process:
        step = training.wait_for_step(moment(source), process)
        time.sleep(source.uniform(0, 0.3))
        process.kill()
    training.finish()
    return f"kill -9 after step {step}"


def command_killed_twice(training: Training, source: random.Random) -> str:
    steps: list[int] = []
    for _ in range(2):
        with training.attempt() as process:
            steps.append(training.wait_for_step(moment(source, steps[0] + 1 if steps else 2), process))
            process.kill()
    training.finish()
    return f"kill -9 after steps {steps[0]} and {steps[1]}"


def told_to_stop(training: Training, source: random.Random, number: int = signal.SIGTERM) -> str:
    with training.attempt() as process:
        step = training.wait_for_step(moment(source), process)
        process.send_signal(number)
        training.wait_for_end(process, [128 + number])
    latest = training.run.latest()
    if latest is None or latest.step < step or latest.step != len(training.run.history()):
        raise Broken(f"stopped after step {step} or later, but the checkpoint is {latest}")
    training.finish()
    return f"{signal.Signals(number).name} after step {step}, saved step {latest.step}"


def interrupted(training: Training, source: random.Random) -> str:
    return told_to_stop(training, source, signal.SIGINT)


def store_killed(training: Training, source: random.Random) -> str:
    """The store is killed and comes back some seconds later; the training waits for it."""
    with training.attempt() as process:
        step = training.wait_for_step(moment(source), process)
        seconds = _outage(training.scene, source.uniform(2, 8))
        training.wait_for_end(process)
    return f"store killed after step {step}, back after {seconds:.0f} s"


def store_away_for_long(training: Training, source: random.Random) -> str:
    """The store stays away for longer than anybody waits: the training ends, and goes on when it is called again."""
    impatient = Training(training.scene, training.name, training.arguments, {"LARMOR_STORE_PATIENCE": "3"})
    with impatient.attempt() as process:
        step = impatient.wait_for_step(moment(source), process)
        _kill_store(training.scene)
        began = time.monotonic()
        impatient.wait_for_end(process, [1])
        seconds = time.monotonic() - began
    training.scene.store.start()
    training.seen |= impatient.seen
    training.finish()
    return f"store away from step {step} on; the command ended after {seconds:.0f} s and was called again"


def half_uploaded(training: Training, source: random.Random) -> str:
    """Killed while a checkpoint's files arrive in the store: some are there, the manifest is not."""
    wanted = source.randint(1, 4)
    with training.attempt() as process:
        while True:
            if process.poll() is not None:
                raise Broken(f"ended before: {training.end_of_log()}")
            paths = training.run.store.list("checkpoints")
            folders = {path.split("/")[1] for path in paths}
            open_ones = {name for name in folders if f"checkpoints/{name}/manifest.json" not in paths}
            training.note_checkpoints()
            if open_ones and len(folders) >= wanted:
                process.kill()
                break
            time.sleep(0.002)
    whole = {item.folder.split("/")[1] for item in training.run.checkpoints()}
    training.finish()
    left = {path.split("/")[1] for path in training.run.store.list("checkpoints")}
    if left != {item.folder.split("/")[1] for item in training.run.checkpoints()}:
        raise Broken(f"a half-uploaded checkpoint was left behind: {sorted(left)}")
    return f"kill -9 during the upload of checkpoint {wanted} ({len(whole)} were whole)"


def checkpoint_damaged(training: Training, source: random.Random) -> str:
    """Killed, and a byte of the newest checkpoint is changed: the one before is used."""
    with training.attempt() as process:
        step = training.wait_for_step(moment(source, first=26), process)
        process.kill()
    run = training.run
    latest = run.latest()
    if latest is None:
        raise Broken(f"no checkpoint by step {step}")
    path = f"{latest.folder}/{source.choice(sorted(latest.files))}"
    content = bytearray(run.store.read(path))
    content[source.randrange(len(content))] ^= 0x10
    run.store.write(path, bytes(content))
    training.finish()
    if not any("was skipped" in warning for warning in run.warnings()):
        raise Broken("nothing is said of the damaged checkpoint")
    return f"kill -9 after step {step}, a byte of {Path(path).name} of step {latest.step} changed"


def validated_nan(training: Training, source: random.Random) -> str:
    """Killed, and the averaged weights in the newest checkpoint become NaN, with a checksum that fits: losses stay
    finite, the next validation does not. The training ends there, and goes on once the file is as it was."""
    with training.attempt() as process:
        step = training.wait_for_step(moment(source, first=10), process)
        process.kill()
    run = training.run
    latest = run.latest()
    if latest is None:
        raise Broken(f"no checkpoint by step {step}")
    path = f"{latest.folder}/generator.safetensors"
    good = run.store.read(path)
    poisoned = save({name: value * float("nan") for name, value in load(good).items()})
    entry = FileEntry(len(poisoned), hashlib.sha256(poisoned).hexdigest())
    run.store.write(path, poisoned)
    run.publish(replace(latest, files={**latest.files, "generator.safetensors": entry}))
    with training.attempt() as process:
        training.wait_for_end(process, [1])
    if "training diverged: val/" not in training.log():
        raise Broken(f"the divergence is not named: {training.end_of_log()}")
    if (newest := run.latest()) is None or newest.step != latest.step:
        raise Broken(f"a checkpoint was saved with the validation that is not finite: {newest}")
    if odd := [path for path in run.store.list() if path.endswith(".json") and b"NaN" in run.store.read(path)]:
        raise Broken(f"NaN is in {odd}")
    run.store.write(path, good)
    run.publish(latest)
    training.finish()
    return f"kill -9 after step {step}, the average of step {latest.step} made NaN, then put back"


def network_faults(training: Training, source: random.Random) -> str:
    """Every twelfth answer of the store is an error, cut short, damaged, or comes very slowly."""
    with _proxied(training, source) as (disturbed, proxy):
        for kind in ("status", "reset", "close", "truncate", "slow"):
            proxy.plan(kind, share=1 / 60, methods=None, seconds=0.5)
        with disturbed.attempt() as process:
            disturbed.wait_for_end(process)
        counts = proxy.counts
    return f"{sum(counts.values())} faults in {len(proxy.log)} requests"


def replaced(training: Training, source: random.Random) -> str:
    """Stopped while it looks which checkpoints may go; another process takes over and ends; then it wakes."""
    training.arguments = (*training.arguments, "cluster.hang_seconds=600")  # its sleep is no hang
    with _proxied(training, source) as (slow, proxy), slow.attempt() as process:
        slow.wait_for_step(moment(source, last=30), process)
        proxy.plan("slow", matches=r"list-type=2.*checkpoints", seconds=4)
        published = _wait_for_pruning(proxy, len(proxy.log))
        process.send_signal(signal.SIGSTOP)
        _seem_dead(training.run.store)
        training.finish()
        training.note_checkpoints()
        process.send_signal(signal.SIGCONT)
        training.wait_for_end(process, [1])
    if "another process has taken it over" not in training.log():
        raise Broken(f"the replaced process does not say so: {training.end_of_log()}")
    return f"SIGSTOP while it prunes after checkpoint {published}, SIGCONT when its successor had ended"


def _wait_for_pruning(proxy: FaultyProxy, first: int) -> int:
    """Until a manifest and then a list of the checkpoints have been asked for; how many manifests were written."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        log = proxy.log[first:]
        puts = [place for place, item in enumerate(log) if item.method == "PUT" and "manifest.json" in item.path]
        if puts and any(item.fault == "slow" for item in log[puts[0] :]):
            return sum(item.method == "PUT" and "manifest.json" in item.path for item in proxy.log)
        time.sleep(0.01)
    raise Broken("no checkpoint was published")


def _seem_dead(store: ObjectStore) -> None:
    """The lease looks like that of a machine which has said nothing for hours."""
    lease = newest(store)
    assert lease is not None
    gone = dataclasses.replace(lease.owner, host="gone", system="another boot")
    store.write(lease.path, dataclasses.replace(lease, owner=gone, renewed=time.time() - 3 * 3600).to_bytes())


def side_file_lost(training: Training, source: random.Random) -> str:
    """Killed, and a file beside the weights of a rated checkpoint is gone: its weights stay a model."""
    training.arguments = (*training.arguments, "training.keep_best=99")
    with training.attempt() as process:
        step = training.wait_for_step(moment(source, first=26), process)
        process.kill()
    run = training.run
    victim = source.choice([item for item in run.checkpoints() if "val/psnr" in item.metrics])
    name = source.choice(sorted(set(victim.files) - {WEIGHTS}))
    run.store.delete(f"{victim.folder}/{name}")
    training.finish()
    kept = {item.folder: item for item in run.published() if not item.weights_problem}
    if victim.folder not in kept or run.store.size(f"{victim.folder}/{WEIGHTS}") != victim.files[WEIGHTS].size:
        raise Broken(f"the weights of step {victim.step} are gone with {name}")
    return f"kill -9 after step {step}, {name} of step {victim.step} removed"


def unconditional_store(training: Training, source: random.Random) -> str:
    """A store that ignores conditions cannot say who has a run: refused there, and done elsewhere."""
    with _proxied(training, source) as (refused, proxy), refused.attempt() as process:
        proxy.plan("unconditional", methods=("PUT",))
        refused.wait_for_end(process, [1])
    if "ignores If-None-Match" not in training.log():
        raise Broken(f"the reason is not said: {training.end_of_log()}")
    if training.run.store.exists("config.yaml"):
        raise Broken("the run was begun")
    training.finish()
    return "begun at a store without conditional writes: refused"


@contextlib.contextmanager
def _proxied(training: Training, source: random.Random) -> Iterator[tuple[Training, FaultyProxy]]:
    """The same training through a proxy to the store, which injects nothing yet."""
    endpoint = training.scene.store.status().endpoint
    assert endpoint is not None
    folder = training.scene.folder / f"proxied-{training.name}"
    folder.mkdir()
    with FaultyProxy(endpoint, seed=source.randrange(2**32)) as proxy:
        variables = proxied_environment(training.scene.store, proxy, folder)
        yield dataclasses.replace(training, variables=variables), proxy


def _outage(scene: Scene, seconds: float) -> float:
    began = time.monotonic()
    _kill_store(scene)
    time.sleep(seconds)
    scene.store.start()
    return time.monotonic() - began


def _kill_store(scene: Scene) -> None:
    pid = scene.store.status().pid
    assert pid is not None
    process = psutil.Process(pid)
    process.kill()
    process.wait(timeout=30)


# the fault's name → what does it, and the seeds with which it is run
LOCAL_FAULTS: dict[str, tuple[Fault, tuple[int, ...]]] = {
    "command killed": (command_killed, (1, 2, 3)),
    "command killed twice": (command_killed_twice, (4,)),
    "told to stop (SIGTERM)": (told_to_stop, (5, 6)),
    "Ctrl-C": (interrupted, (7,)),
    "store killed, back soon": (store_killed, (8, 9, 10)),
    "store away for long": (store_away_for_long, (11,)),
    "killed during an upload": (half_uploaded, (12, 13)),
    "newest checkpoint damaged": (checkpoint_damaged, (14, 15)),
    "faults of the network": (network_faults, (16, 17)),
    "NaN in a validated step": (validated_nan, (18, 19)),
    "replaced while it prunes": (replaced, (40,)),
    "side file of a checkpoint lost": (side_file_lost, (41,)),
    "store without conditions": (unconditional_store, (42,)),
}
# what a fault's training has beside the others' settings
LOCAL_SETTINGS: dict[str, tuple[str, ...]] = {"NaN in a validated step": ("training.ema_decay=0.9",)}


def local_training(scene: Scene, name: str, fault: str) -> Training:
    return scene.training(name, *LOCAL, *LOCAL_SETTINGS.get(fault, ()))
