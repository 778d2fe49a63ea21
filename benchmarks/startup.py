"""Where the time goes between `larmor train` and the first step, on a cluster that runs already.

    python benchmarks/startup.py [--workers 1] [--runs 3] [--against CHECKOUT]

Starts a Ray cluster of this machine's own and a tiny data set, then runs the real command against them several
times: each stage's seconds side by side. The first run also pays for cold files; "warm" is the median of the others.
With another checkout of Larmor the runs alternate between both, so that they see the same machine. "cpu" is the
processor time of the cluster's and the command's processes until the end of the last step, which a busy machine hardly
changes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from larmor.cluster.on_ray.attempt import AttemptEnd, WorkConfig

ROOT = Path(__file__).resolve().parents[1]
STAGES = (
    ("checked", "interpreter, imports, data and folder checked"),
    ("connected", "connected to the cluster"),
    ("claimed", "resources there, folder claimed"),
    ("loop", "controller and worker processes started"),
    ("imported", "imports of the training loop"),
    ("restored", "data opened, networks and engines built"),
    ("first step", "first step"),
    ("last step", "the other steps"),
    ("returned", "workers and controller ended"),
    ("ended", "command ended"),
)
FILE = "LARMOR_STARTUP_FILE"  # where the command under test writes its times


def mark(path: str, name: str) -> None:
    with open(path, "a") as file:
        file.write(json.dumps([name, time.time()]) + "\n")


def watched(arguments: list[str]) -> None:
    """The command line with a clock at the borders of its parts; the parts themselves are the real ones."""
    path = os.environ[FILE]
    from larmor.cli.main import main
    from larmor.cluster.launch import run
    from larmor.cluster.on_ray import ray_cluster, ray_train

    connected, fit = ray_cluster.connected, ray_train.train_on_ray
    claimed = run.claimed

    def loop(config: WorkConfig) -> AttemptEnd:
        import json
        import time

        def note(name: str) -> None:
            with open(path, "a") as file:
                file.write(json.dumps([name, time.time()]) + "\n")

        note("loop")
        import larmor.recon.training.train  # noqa: F401 - the time of the import

        note("imported")
        from larmor.cluster.on_ray import ray_worker

        class Clock(ray_worker.RunWorker):
            def restore(self, read: Any) -> bool:
                note("restored")
                return super().restore(read)

            def report(self, step: int, metrics: Any, history: Any) -> bool:
                note("first step" if step == 1 else "last step")
                return super().report(step, metrics, history)

        ray_worker.RunWorker = Clock  # type: ignore[misc]
        return ray_worker.work(config)

    def marked_fit(*args: Any, **settings: Any) -> None:
        mark(path, "claimed")
        ray_train.train_loop_per_worker = loop
        fit(*args, **settings)
        mark(path, "returned")

    def marked_connected(*args: Any) -> Any:
        mark(path, "checked")
        return connected(*args)

    def marked_claim(*args: Any) -> Any:
        mark(path, "connected")
        return claimed(*args)

    ray_cluster.connected, ray_train.train_on_ray = marked_connected, marked_fit  # type: ignore[assignment]
    run.claimed = marked_claim  # type: ignore[assignment]
    sys.argv = ["larmor", *arguments]
    main()


def one_run(root: Path, address: str, url: str, workers: int, scratch: Path) -> dict[str, float]:
    """Seconds of each stage of one command, run by the checkout at `root`, and `cpu`."""
    name = f"startup-{uuid.uuid4().hex[:8]}"
    path = scratch / name
    small: tuple[str, ...] = (
        "data.crop=[64,64]",
        "data.shuffle_bytes=262144",
        "data.block_bytes=131072",
        "generator.width=4",
    )
    small += ("critic.width=4", "critic.steps=1", "training.global_batch_size=4", "training.validation_slices=4")
    small += ("training.num_steps=2", "training.log_every=1", f"cluster.num_workers={workers}")
    place = (f"name={name}", f"data.url={url}", f"output_url={scratch}/output")
    command = [
        sys.executable,
        str(root / "benchmarks" / "startup.py"),
        "--watched",
        "train",
        "laptop",
        *place,
        *small,
        "--address",
        address,
    ]
    environment = {**os.environ, FILE: str(path), "PYTHONPATH": str(root)}
    began, used = time.time(), Processors()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        while process.poll() is None:
            if not (path.exists() and "last step" in path.read_text()):
                used.look()
            time.sleep(0.1)
        ended = time.time()
        if process.returncode:
            output.seek(0)
            raise SystemExit(output.read())
    marks: dict[str, float] = {"ended": ended}
    for line in path.read_text().splitlines():
        stage, moment = json.loads(line)
        marks[stage] = max(marks.get(stage, 0.0), moment)  # of the slowest rank
    seconds, before = {}, began
    for stage, _ in STAGES:
        seconds[stage], before = marks[stage] - before, marks[stage]
    return {**seconds, "cpu": used.seconds()}


class Processors:
    """Processor time of this process's descendants, those that have ended included."""

    def __init__(self) -> None:
        self._used: dict[tuple[int, float], float] = {}
        self.look()
        self._before = self.seconds(0.0)

    def look(self) -> None:
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                self._used[process.pid, process.create_time()] = times.user + times.system

    def seconds(self, before: float | None = None) -> float:
        """Since the beginning."""
        return sum(self._used.values()) - (self._before if before is None else before)


def main() -> None:
    if sys.argv[1:2] == ["--watched"]:
        watched(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--against", type=Path, help="another checkout, whose runs alternate with this one's")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    os.environ["PYTHONPATH"] = str(ROOT)
    from larmor.cluster.on_ray.ray_cluster import connected
    from larmor.storage.conversion.convert import ConvertOptions, convert
    from larmor.storage.examples.phantom import write_phantom
    from larmor.storage.formats.recognise import find_sources

    with tempfile.TemporaryDirectory(prefix="larmor-startup-") as folder:
        scratch = Path(folder)
        heads = write_phantom(scratch / "heads", num_subjects=3, seed=0)
        held_out = ConvertOptions(matrix=(64, 64), held_out={"validation": ["phantom02"], "test": ["phantom03"]})
        convert(find_sources([str(path) for path in heads]), str(scratch / "data"), held_out)
        with connected(None):
            import ray  # not before: it reads its token's place once

            address = ray.get_runtime_context().gcs_address
            roots = [ROOT, *([options.against.absolute()] if options.against else [])]
            rows: dict[Path, list[dict[str, float]]] = {root: [] for root in roots}
            for number in range(options.runs):
                for root in roots if number % 2 == 0 else reversed(roots):
                    rows[root].append(one_run(root, address, str(scratch / "data"), options.workers, scratch))
    print(f"{options.workers} worker(s), {os.cpu_count()} cores; seconds")
    for root, found in rows.items():
        print(f"\n{root}" if options.against else "")
        show(found)


def show(rows: list[dict[str, float]]) -> None:
    print(f"{'stage':50}{'first':>8}{'warm':>8}{'sum':>8}")
    total = 0.0
    for stage, text in STAGES:
        warm = statistics.median(row[stage] for row in rows[1:] or rows)
        total += warm
        print(f"{text:50}{rows[0][stage]:8.1f}{warm:8.1f}{total:8.1f}")
    print(
        f"{'cpu':50}{rows[0]['cpu']:8.1f}{statistics.median(row['cpu'] for row in rows[1:] or rows):8.1f}", flush=True
    )


if __name__ == "__main__":
    main()
