"""Follow a job's log until the job ends, through lost connections and a dashboard that is away."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from larmor.cluster.on_ray.jobs import Jobs
from larmor.storage.objects.errors import InputError


@dataclass(frozen=True)
class Patience:
    """Seconds: without a character before the connection counts as dead, without an answer before we give up, and
    between two attempts."""

    silence: float = 60.0
    away: float = 600.0
    pause: float = 2.0


def follow(jobs: Jobs, name: str, show: Callable[[str], None], patience: Patience = Patience()) -> Any:
    """Call `show` with every piece of the log, each once and in order; what Ray knows of the job when it has ended.

    Ray sends a log from its beginning on each connection: what was shown before is left out.

    Raises `InputError` if the cluster is away for longer than `patience.away`, or knows the job no more.
    """
    shown = 0
    began = jobs.get(name).start_time
    answered = time.monotonic()
    while True:
        try:
            job = jobs.find(name)
        except InputError as error:
            if time.monotonic() - answered > patience.away:
                raise InputError(f"{error}; the job may still be running: the same command follows it again") from error
            time.sleep(patience.pause)
            continue
        if job is None or job.start_time != began:
            raise InputError(f"the cluster knows this job '{name}' no more; submit it again: what was trained stays")
        ended = job.status.is_terminal()  # asked before the log is read: then nothing is added to it any more
        if not ended:
            answered = time.monotonic()
        shown, whole = asyncio.run(_read(jobs, name, shown, show, patience.silence))
        if ended and whole:
            with contextlib.suppress(InputError):  # a stream of a job that ended at once came without its lines
                if rest := jobs.log(name)[shown:]:
                    show(rest)
            return job
        if ended and time.monotonic() - answered > patience.away:
            return job  # the log of a node that is gone cannot be read to its end
        if not whole:
            time.sleep(patience.pause)


async def _read(jobs: Jobs, name: str, shown: int, show: Callable[[str], None], silence: float) -> tuple[int, bool]:
    """Show the log beyond its first `shown` characters as it grows.

    Returns how many have been shown now, and whether Ray itself said that this was all.
    """
    import aiohttp

    position = 0
    async with contextlib.aclosing(jobs.client.tail_job_logs(name)) as log:
        while True:
            try:
                async with asyncio.timeout(silence):  # `wait_for` may lose a Ctrl-C that comes with an answer
                    text = await anext(log, None)
            except (TimeoutError, OSError, RuntimeError, aiohttp.ClientError):
                return shown, False
            if text is None:
                return shown, True
            if new := text[max(shown - position, 0) :]:
                show(new)
            position += len(text)
            shown = max(shown, position)
