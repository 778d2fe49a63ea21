"""Our loader against the store's own limit and against its peers, side by side: `python benchmarks/loader.py`.

Every contender delivers the same slices (256×256 complex64, one coil) from one store, in batches of 16 numpy arrays, in
random order where it can. The store is the embedded one in a temporary folder, or `--url s3://bucket/prefix` where the
AWS environment leads; everything is written below a new prefix there and removed at the end. The peers:

    pip install -c constraints.txt -e '.[benchmarks]'

One that is not installed, or fails, stands in the table as "not run" with the reason. WebDataset needs `curl` as well.

First a round in which every contender is tried with each of its settings (requests at once, worker processes) and the
CRC-32C of every delivered slice is compared; the fastest setting is kept. Then `--repeats` rounds are measured, all
contenders one after another in each, every time in a new process with an empty disk cache. The columns:

- epoch: MB/s (1e6 bytes) of slices over one whole epoch, from asking for the first batch to the last one; median, and
  the least and most of the rounds. The start of worker processes is within, opening and importing are not.
- after first: the same from the first batch to the last. Who reads a lot before the first batch, and most do, gets more
  than it earns here, even more than the limit.
- open, first batch: seconds until the data set is open, and from then to the first batch.
- peak: memory of the contender and its workers in MiB; CPU: their processor seconds. The store's are not counted.

A measured run that fails, or delivers a wrong slice, is named and run once more; after that the contender is out.
The limit is the best of three bare clients that throw the bytes away. The second table has the epoch after the first
one for contenders with a cache on disk (which the operating system keeps in memory when it is this small).
`--augmentation` measures something else: what `augment` adds to the preparation of a slice (see `augmentation.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import limit
import loader_samples
import numpy as np
from contender import LIMIT
from peers import CACHED, CONTENDERS, OURS
from rich.console import Console
from rich.table import Table
from slices import BATCH, SLICE_BYTES, Place, checksums_of, make_slice, marks_of

from larmor.storage.objects.embedded_store import EmbeddedStore
from larmor.storage.objects.object_store import ObjectStore

PROGRAM = Path(__file__).with_name("contender.py")
NAMES = [*(LIMIT + client for client in limit.CLIENTS), *CONTENDERS]
console = Console(width=140 if not sys.stdout.isatty() else None)


@dataclass
class Entry:
    """What is known of one contender."""

    setting: dict[str, Any] = field(default_factory=dict)
    repeated: list[str] = field(default_factory=list)  # errors of measured runs that were run again
    rounds: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None

    def figures(self, name: str, epoch: int = 0) -> list[float]:
        """One figure of one epoch, of every round."""
        return [result["epochs"][epoch][name] for result in self.rounds]

    def median(self, name: str = "whole", epoch: int = 0) -> float:
        return statistics.median(self.figures(name, epoch))


@dataclass(frozen=True)
class Runner:
    """Starts contenders in processes of their own; `expected` has what every slice must be."""

    place: Place
    expected: Path
    timeout: float

    def run(self, name: str, *arguments: str) -> dict[str, Any]:
        """The result of one process: figures, or `error`."""
        with tempfile.TemporaryDirectory(dir=self.place.scratch) as folder:
            result = Path(folder) / "result.json"
            command = [sys.executable, str(PROGRAM), name, *arguments, "--url", self.place.url]
            command += ["--slices", str(self.place.num_slices), "--scratch", folder, "--result", str(result)]
            with (Path(folder) / "log").open("w+") as log:
                process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
                try:
                    process.wait(self.timeout)
                except subprocess.TimeoutExpired:
                    return {"error": f"no end after {self.timeout:.0f} s"}
                finally:
                    _end(process)
                if result.exists():
                    return dict(json.loads(result.read_text()))
                log.seek(0)
                last = (log.read().strip().splitlines() or [""])[-1]
                return {"error": f"ended with status {process.returncode}: {last[:150]}"}

    def measure(self, name: str, setting: dict[str, Any], check: bool = False) -> dict[str, Any]:
        extra = ["--setting", json.dumps(setting), "--expected", str(self.expected), *(["--check"] if check else [])]
        return self.run(name, *extra)


def _end(process: subprocess.Popen[bytes]) -> None:
    """The process and what it left: its workers share its group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def write_all(runner: Runner, names: list[str]) -> dict[str, str]:
    """Write every format that is needed; format → error of those that cannot be."""
    formats = dict.fromkeys(map(_format, names))
    errors = {}
    for number, name in enumerate(formats, 1):
        console.print(f"writing {name} ({number} of {len(formats)})", style="dim")
        if error := runner.run(name, "--write").get("error"):
            errors[name] = error
    return errors


def _format(name: str) -> str:
    return "larmor" if name.startswith(LIMIT) else CONTENDERS[name].format


def try_settings(runner: Runner, names: list[str], failed: dict[str, str]) -> dict[str, Entry]:
    """The untimed round: every delivered slice compared, the fastest setting kept."""
    entries: dict[str, Entry] = {}
    for name in names:
        entry = entries[name] = Entry(error=failed.get(_format(name)))
        settings = ({},) if name.startswith(LIMIT) else CONTENDERS[name].settings
        best = 0.0
        for setting in settings if entry.error is None else ():
            console.print(f"trying {name} {_words(setting)}", style="dim")
            result = runner.measure(name, dict(setting), check=True)
            if "error" in result:
                entry.error = result["error"]
            elif result["epochs"][0]["whole"] > best:
                best, entry.setting = result["epochs"][0]["whole"], result.get("setting", dict(setting))
        if best:
            entry.error = None
    return entries


def measure_rounds(runner: Runner, entries: dict[str, Entry], repeats: int) -> None:
    """The measured rounds: A B C …, A B C …"""
    for number in range(1, repeats + 1):
        for name, entry in entries.items():
            if entry.error is None:
                console.print(f"round {number} of {repeats}: {name}", style="dim")
                result = runner.measure(name, entry.setting)
                if "error" in result:
                    entry.repeated.append(result["error"])
                    result = runner.measure(name, entry.setting)
                entry.error = result.get("error")
                entry.rounds += [result] if entry.error is None else []


def first_table(entries: dict[str, Entry]) -> Table:
    table = Table("contender", "setting", title="One epoch from the store")
    for column in ("epoch MB/s", "/ limit", "after first", "open s", "first batch s", "peak MiB", "CPU s"):
        table.add_column(column, justify="right", no_wrap=True)
    top = _best(entries, [name for name in entries if name.startswith(LIMIT)])
    for name, entry in entries.items():
        if entry.error is not None:
            table.add_row(name, f"not run: {entry.error}", style="dim")
            continue
        rates = entry.figures("whole")
        bare = name.startswith(LIMIT)
        usage = {key: [result[key] for result in entry.rounds] for key in ("open_seconds", "peak_mib", "cpu_seconds")}
        table.add_row(
            name,
            _words(entry.setting),
            f"{entry.median():.0f} ({min(rates):.0f}–{max(rates):.0f})",
            f"{entry.median() / entries[top].median():.2f}" if top else "",
            "" if bare else f"{entry.median('after_first'):.0f}",
            f"{statistics.median(usage['open_seconds']):.2f}",
            "" if bare else f"{entry.median('first_batch'):.2f}",
            f"{statistics.median(usage['peak_mib']):.0f}",
            f"{statistics.median(usage['cpu_seconds']):.1f}",
        )
    return table


def second_table(entries: dict[str, Entry]) -> Table:
    table = Table("contender", title="The second epoch, from the contender's cache on disk")
    for column in ("first epoch MB/s", "second epoch MB/s", "second / first"):
        table.add_column(column, justify="right")
    for name, entry in entries.items():
        if entry.rounds and CONTENDERS.get(name) and CONTENDERS[name].num_epochs == 2:
            first, second = entry.median(), entry.median(epoch=1)
            table.add_row(name, f"{first:.0f}", f"{second:.0f}", f"{second / first:.2f}")
    return table


def mishaps(entries: dict[str, Entry]) -> list[str]:
    """A line for each measured run that failed, wrong data included, and was run again."""
    return [f"{name}: run again after: {error}" for name, entry in entries.items() for error in entry.repeated]


def summary(entries: dict[str, Entry]) -> dict[str, float]:
    """The ratios that matter."""
    bare = _best(entries, [name for name in entries if name.startswith(LIMIT)])
    peer = _best(entries, [name for name in entries if not name.startswith((LIMIT, "larmor"))])
    cached, found = entries.get(CACHED), {}
    ours = entries.get(OURS)
    if ours and ours.rounds and bare:
        found[f"{OURS} / limit ({bare.removeprefix(LIMIT)})"] = ours.median() / entries[bare].median()
    if ours and ours.rounds and peer:
        found[f"{OURS} / best peer ({peer})"] = ours.median() / entries[peer].median()
    if cached and cached.rounds:
        found["second epoch / first"] = cached.median(epoch=1) / cached.median()
    return found


def _best(entries: dict[str, Entry], names: list[str]) -> str | None:
    run = [name for name in names if entries[name].rounds]
    return max(run, key=lambda name: entries[name].median(), default=None)


def _words(setting: Any) -> str:
    return ", ".join(f"{value} {key}" for key, value in setting.items())


@contextmanager
def a_store(url: str | None, scratch: Path) -> Iterator[str]:
    """The user's store, or the embedded one while this lasts; gives an URL below which nothing is."""
    own = f"loader-benchmark-{secrets.token_hex(4)}"
    if url:
        target = f"{url.rstrip('/')}/{own}"
        try:
            yield target
        finally:
            ObjectStore(target).delete()
        return
    store = EmbeddedStore(scratch / "store")
    store.start()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
        os.environ.pop(name, None)
    os.environ |= store.environment()
    try:
        yield f"s3://larmor/{own}"
    finally:
        store.stop()


def write_expected(path: Path, num_slices: int) -> None:
    """What every slice must be: its first value and its CRC-32C."""
    slices = [make_slice(index)[None] for index in range(num_slices)]
    checksums = np.array([checksums_of(item)[0] for item in slices], np.uint32)
    np.savez(path, marks=np.concatenate([marks_of(item) for item in slices]), checksums=checksums)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=4096, help="a multiple of 16")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--url", help="s3://bucket/prefix to use instead of the embedded store")
    parser.add_argument("--only", action="append", choices=NAMES, help="a contender; may be repeated; without: all")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for one process")
    parser.add_argument("--augmentation", action="store_true", help="only what augmentation adds to a slice (no store)")
    parser.add_argument("--samples", action="store_true", help="only: open_dataset against the training's own feed")
    parser.add_argument("--json", type=Path, help="where all figures go")
    arguments = parser.parse_args()
    if arguments.slices < BATCH or arguments.slices % BATCH:
        parser.error(f"--slices is {arguments.slices}; choose a multiple of {BATCH}")
    if arguments.augmentation:
        from augmentation import augmentation_table  # PyTorch, which no contender needs

        console.print(augmentation_table(arguments.repeats))
        return
    names = arguments.only or NAMES
    with tempfile.TemporaryDirectory() as folder, a_store(arguments.url, Path(folder)) as url:
        if arguments.samples:
            loader_samples.compare(Place(url, arguments.slices, Path(folder)), arguments.repeats)
            return
        runner = Runner(Place(url, arguments.slices, Path(folder)), Path(folder) / "expected.npz", arguments.timeout)
        write_expected(runner.expected, arguments.slices)
        entries = try_settings(runner, names, write_all(runner, names))
        measure_rounds(runner, entries, arguments.repeats)
    console.print(f"{arguments.slices} slices, {arguments.slices * SLICE_BYTES / 1e6:.0f} MB, {os.cpu_count()} cores")
    console.print(first_table(entries))
    console.print(second_table(entries))
    for line in mishaps(entries):
        console.print(line)
    ratios = summary(entries)
    for name, ratio in ratios.items():
        console.print(f"{name}: {ratio:.2f}")
    if arguments.json:
        everything = {name: vars(entry) for name, entry in entries.items()}
        arguments.json.write_text(json.dumps({"slices": arguments.slices, "ratios": ratios, "contenders": everything}))


if __name__ == "__main__":
    main()
