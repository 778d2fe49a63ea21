"""Measures one contender in a process of its own, which `loader.py` starts: threads, forks and memory do not mix.

Its result is a JSON document: seconds of opening; for each epoch megabytes (1e6 bytes) per second from asking for the
first batch to the last one, the same from the first batch on, and seconds to the first batch; for opening and first
epoch CPU seconds and peak memory in MiB of the process and its workers (sum of Linux's VmHWM: pages that a fork shares
count in each). Modules are imported before the clock starts. In every epoch each slice must have come exactly once,
and with `--check` with the right CRC-32C.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
import traceback
from pathlib import Path
from typing import Any

import limit
import numpy as np
import psutil
from peers import CONTENDERS, Contender
from slices import BATCH, SHAPE, SLICE_BYTES, WRITERS, Place, checksums_of, load, marks_of

LIMIT = "limit "  # names of contenders that are bare clients begin with it


def measure(contender: Contender, place: Place, setting: dict[str, Any], expected: Path, check: bool) -> dict[str, Any]:
    """Run the epochs of one contender. Raises `AssertionError` if what it delivers is not the data set."""
    for module in contender.modules:
        load(module)
    cpu, began = _cpu_seconds(), time.perf_counter()
    epoch = contender.open(place, **setting)
    open_seconds = time.perf_counter() - began
    epochs, delivered = [], []
    usage: dict[str, Any] = {}
    for _ in range(contender.num_epochs):
        times, marks, checksums = [time.perf_counter()], [], []
        for batch in epoch():
            times.append(time.perf_counter())
            assert batch.dtype == np.complex64, f"slices come as {batch.dtype}"
            assert batch.shape == (BATCH, *SHAPE), f"a batch has the shape {batch.shape}"
            marks.append(marks_of(batch))
            checksums += checksums_of(batch) if check else []
            if len(marks) == place.num_slices // BATCH and not usage:  # as long as the workers live
                usage = {"peak_mib": _peak_mib(), "cpu_seconds": _cpu_seconds() - cpu}
        delivered.append((np.concatenate(marks), checksums))
        epochs.append(_figures(times))
    for found, sums in delivered:
        _check(found, sums, expected)
    return {"open_seconds": open_seconds, "epochs": epochs, **usage}


def _figures(times: list[float]) -> dict[str, float]:
    """`times`: when the first batch was asked for, and when each one came."""
    megabytes = BATCH * SLICE_BYTES / 1e6
    return {
        "whole": (len(times) - 1) * megabytes / (times[-1] - times[0]),
        "after_first": (len(times) - 2) * megabytes / (times[-1] - times[1]),
        "first_batch": times[1] - times[0],
    }


def _check(marks: np.ndarray, checksums: list[int], expected: Path) -> None:
    with np.load(expected) as known:
        missing, foreign = np.setdiff1d(known["marks"], marks), np.setdiff1d(marks, known["marks"])
        double = len(marks) - len(np.unique(marks))
        message = f"{len(missing)} slices are missing, {double} came twice, {len(foreign)} are unknown"
        assert np.array_equal(np.sort(marks), np.sort(known["marks"])), message
        assert not checksums or sorted(checksums) == sorted(known["checksums"].tolist()), "some slices are damaged"


def measure_limit(place: Place, client: str, setting: dict[str, int], check: bool) -> dict[str, Any]:
    """One epoch of bare requests; with `check` the fastest of all settings is looked for."""
    for module in limit.MODULES[client]:
        load(module)
    if check:
        rates: dict[Any, float] = {
            tuple(s.items()): measure_limit(place, client, s, False)["epochs"][0]["whole"] for s in limit.SETTINGS
        }
        setting = dict(max(rates, key=lambda key: rates[key]))
        found: dict[limit.Range, int] = {}
        limit.fetch_all(place, client, **setting)(found.__setitem__)
        size = {key: value for key, value in setting.items() if key != "threads"}
        assert found == limit.expected_checksums(place, **size), "some ranges are damaged"
    cpu, began = _cpu_seconds(), time.perf_counter()
    run = limit.fetch_all(place, client, **setting)
    opened = time.perf_counter()
    num_bytes = run(None)
    rate = num_bytes / (time.perf_counter() - opened) / 1e6
    assert num_bytes >= place.num_slices * SLICE_BYTES, f"only {num_bytes} bytes came"
    usage = {"peak_mib": _peak_mib(), "cpu_seconds": _cpu_seconds() - cpu, "setting": setting}
    return {"open_seconds": opened - began, "epochs": [{"whole": rate}], **usage}


def _cpu_seconds() -> float:
    """Of this process, its workers that live, and those that ended."""
    total = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    for child in psutil.Process().children(recursive=True):
        times = child.cpu_times()
        total += times.user + times.system
    return total


def _peak_mib() -> float:
    total = 0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return total / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="a contender, or with --write a format")
    parser.add_argument("--url", required=True)
    parser.add_argument("--slices", type=int, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--expected", type=Path)
    parser.add_argument("--setting", type=json.loads, default={})
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    place = Place(arguments.url, arguments.slices, arguments.scratch)
    try:
        if arguments.write:
            WRITERS[arguments.name](place)
            result: dict[str, Any] = {}
        elif arguments.name.startswith(LIMIT):
            client = arguments.name.removeprefix(LIMIT)
            result = measure_limit(place, client, arguments.setting, arguments.check)
        else:
            contender = CONTENDERS[arguments.name]
            result = measure(contender, place, arguments.setting, arguments.expected, arguments.check)
    except Exception as error:
        traceback.print_exc()
        result = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:200]}
    arguments.result.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
