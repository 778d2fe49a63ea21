"""Where faults are injected: a store and tiny heads of their own, trainings of the command line, and what must hold
after each of them."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from larmor.cluster.runs.run_folder import RunFolder
from larmor.storage.objects.embedded_store import EmbeddedStore
from tests.workbench import command, environment, succeed, tiny

OUTPUT = "s3://larmor"
DATA = "s3://larmor/tiny-heads"
STEPS = 48
SCHEDULE = (
    f"training.num_steps={STEPS}",
    "training.checkpoint_every=8",
    "training.validate_every=16",
    "training.log_every=2",
    "training.keep_checkpoints=99",
    "training.zero_stage=2",
    "cluster.hang_seconds=20",
    "cluster.resize_seconds=3",
)
LOSSES = ("loss", "critic_loss", "adversarial", "normalized_root_mse", "frequency", "val/psnr", "val/ssim")
TOLERANCE = 0.02  # of the image loss, relative, where the number of workers has changed
LOCAL = ("--local", "cluster.num_workers=1")
PATIENCE = 240.0  # seconds for one attempt


class Broken(AssertionError):
    """Something that must hold after a fault does not."""


@dataclass
class Training:
    """One run under one name, by as many attempts as it takes."""

    scene: Scene
    name: str
    arguments: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)

    @property
    def run(self) -> RunFolder:
        return RunFolder(f"{OUTPUT}/runs/{self.name}")

    @contextlib.contextmanager
    def attempt(self) -> Iterator[subprocess.Popen[bytes]]:
        """The command in a process of its own, which does not outlive the block; its output goes to a log."""
        arguments = command("train", *tiny(self.name, DATA, OUTPUT, *SCHEDULE), *self.arguments)
        with (
            (self.scene.folder / f"{self.name}.log").open("ab") as log,
            subprocess.Popen(arguments, env=environment(**self.variables), stdout=log, stderr=log) as process,
        ):
            try:
                yield process
            finally:
                process.kill()

    def wait_for_step(self, step: int, process: subprocess.Popen[bytes]) -> int:
        """Until so many steps are in the history; the number that are."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise Broken(f"ended with exit code {process.returncode} before step {step}: {self.end_of_log()}")
            self.note_checkpoints()
            done = max((int(row["step"]) for row in self.run.history()), default=0)
            if done >= step:
                return done
            time.sleep(0.05)
        raise Broken(f"step {step} did not come within {PATIENCE:.0f} s: {self.end_of_log()}")

    def wait_for_end(self, process: subprocess.Popen[bytes], expected: Sequence[int] = (0,)) -> int:
        try:
            code = process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired as error:
            raise Broken(f"did not end within {PATIENCE:.0f} s: {self.end_of_log()}") from error
        if code not in expected:
            raise Broken(f"exit code {code} instead of {expected}: {self.end_of_log()}")
        return code

    def note_checkpoints(self) -> None:
        """Whatever has been published up to now must be there at the end."""
        paths = self.run.store.list("checkpoints")
        self.seen |= {str(Path(path).parent) for path in paths if path.endswith("/manifest.json")}

    def finish(self) -> None:
        """The same command once more, to its end."""
        with self.attempt() as process:
            self.wait_for_end(process)

    def log(self) -> str:
        """Everything that the command has printed."""
        return (self.scene.folder / f"{self.name}.log").read_text()

    def end_of_log(self) -> str:
        """Enough of it for a message."""
        return self.log()[-3000:]


@dataclass
class Scene:
    """The store, the heads, and the histories of trainings that nothing disturbs, by name."""

    store: EmbeddedStore
    folder: Path
    undisturbed: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    def training(self, name: str, *arguments: str, **variables: str) -> Training:
        return Training(self, name, arguments, variables)


@contextlib.contextmanager
def scene() -> Iterator[Scene]:
    """A store with three heads in a temporary folder, and the environment that leads to it."""
    from larmor.storage.examples.phantom import write_phantom

    with tempfile.TemporaryDirectory(prefix="larmor-faults-") as name:
        folder = Path(name)
        store = EmbeddedStore(folder / "store")
        store.start()
        kept = dict(os.environ)
        try:
            for variable in [item for item in os.environ if item.startswith("AWS_")]:
                del os.environ[variable]
            os.environ.update(store.environment())
            heads = [str(path) for path in write_phantom(folder / "heads", num_subjects=3, seed=0)]
            held_out = ["--validation", "phantom02", "--test", "phantom03"]
            succeed("convert", *heads, "--to", DATA, "--matrix", "64", *held_out)
            yield Scene(store, folder)
        finally:
            os.environ.clear()
            os.environ.update(kept)
            store.stop()


def moment(random_source: random.Random, first: int = 2, last: int = STEPS - 6) -> int:
    """The step after which a fault is injected."""
    return random_source.randint(first, last)


def raw_rows(run: RunFolder) -> list[dict[str, float]]:
    """Every row that was written, replays included."""
    return [row for path in run.store.list("history") for row in json.loads(run.store.read(path))]


def check(training: Training, expected: Sequence[Mapping[str, float]], exact: bool) -> str:
    """What must hold once a training has finished; how far its losses are from the undisturbed ones, in words.

    Raises `Broken`.
    """
    run = training.run
    rows, raw = run.history(), raw_rows(run)
    if run.result() is None:
        raise Broken("there is no result")
    steps = [int(row["step"]) for row in rows]
    if steps != list(range(1, len(expected) + 1)):
        raise Broken(f"the history has the steps {steps}")
    _check_checkpoints(training, len(expected))
    if exact:
        by_step = {int(row["step"]): _losses(row) for row in expected}
        for row in rows:
            if _losses(row) != by_step[int(row["step"])]:
                raise Broken(f"step {row['step']}: {_losses(row)} instead of {by_step[int(row['step'])]}")
        for row in raw:  # a step that was done twice gave the same, batch for batch
            if _losses(row)[:5] != by_step[int(row["step"])][:5]:
                raise Broken(f"step {row['step']} was done with another result: {row}")
        return "equal bit for bit"
    pairs = zip(rows, expected, strict=True)
    furthest = max(abs(row["normalized_root_mse"] / other["normalized_root_mse"] - 1) for row, other in pairs)
    if furthest > TOLERANCE:
        raise Broken(f"the image loss is up to {furthest:.1%} off")
    return f"within {furthest:.2g}"


def _losses(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in LOSSES)


def _check_checkpoints(training: Training, last_step: int) -> None:
    run = training.run
    published = run.checkpoints()
    for checkpoint in published:
        with tempfile.TemporaryDirectory() as folder:
            run.download(checkpoint, Path(folder))  # raises at a checksum that does not fit
    lost = training.seen - {item.folder for item in run.published()} - _taken_back(run)
    if lost:
        raise Broken(f"published checkpoints are gone: {sorted(lost)}")
    if not published or published[-1].step != last_step:
        raise Broken("the last step has no checkpoint")


def _taken_back(run: RunFolder) -> set[str]:
    """Checkpoints that were found damaged, with a reason in the run's folder."""
    return {f"checkpoints/{Path(path).stem}" for path in run.store.list("warnings")}
