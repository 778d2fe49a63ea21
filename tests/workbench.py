"""What the integration tests share: tiny heads in the real object store, and the command line as a process."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]

# about 0.1 s a step on one core: long enough to be killed, short enough to wait for
TINY = (
    "system=gan_resnet50",
    "training.ema_decay=0",
    "data.crop=[64,64]",
    "data.shuffle_bytes=262144",
    "data.block_bytes=131072",
    "data.disk_cache_bytes=0",
    "generator.width=4",
    "critic.width=4",
    "critic.steps=1",
    "training.global_batch_size=4",
    "training.validation_slices=6",
    "training.schedule=cosine",
    "mask.kind=gaussian2d",
    "mask.sampling_ratio=0.3",
    "mask.per_slice=true",
    "generator_optimizer.name=adam",
    "generator_optimizer.learning_rate=1e-3",
)


def unique_name(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


def command(*arguments: str) -> list[str]:
    """The argument list that runs `larmor`."""
    return [sys.executable, "-m", "larmor", *arguments]


def environment(**changes: str) -> dict[str, str]:
    return {**os.environ, "COLUMNS": "200", **changes}


def larmor(*arguments: str, timeout: float = 300, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end; stdout and stderr are kept apart."""
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=timeout, env=environment(**changes), check=False
    )


@contextlib.contextmanager
def larmor_process(*arguments: str, start_new_session: bool = False, **changes: str) -> Iterator[subprocess.Popen[str]]:
    """The command line while it runs; killed at the end of the block."""
    with subprocess.Popen(
        command(*arguments),
        env=environment(**changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=start_new_session,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def succeed(*arguments: str, timeout: float = 300, **changes: str) -> str:
    """Run the command line; its output. Fails with everything it printed unless it exits with 0."""
    done = larmor(*arguments, timeout=timeout, **changes)
    assert done.returncode == 0, f"larmor {' '.join(arguments)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def tiny(name: str, data_url: str, output_url: str, *more: str) -> Sequence[str]:
    """Arguments of a tiny experiment on top of `laptop`."""
    return ("laptop", f"name={name}", f"data.url={data_url}", f"output_url={output_url}", *TINY, *more)
