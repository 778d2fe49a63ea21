"""Submit a training or sweep as a Ray job, with this very Larmor packed beside the experiment."""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from cluster.experiment import Experiment, dump_yaml
from storage.errors import InputError

PACKED = ("storage", "recon", "cluster", "tuning", "larmor")


def submit(experiment: Experiment, command: Sequence[str], address: str, show: Callable[[str], None]) -> bool:
    """Run `larmor COMMAND… experiment.yaml` on the cluster at `address` (its dashboard's URL), follow its logs.

    The job is named after the experiment, so that a second submission of a running one is refused. The
    cluster brings Larmor's dependencies (see ray-cluster.yaml), S3 credentials, and its own environment; no
    key travels with the job. The token is taken from Ray's own places (RAY_AUTH_TOKEN_PATH, ~/.ray).

    Returns whether the job succeeded. Raises `InputError` if the cluster cannot be reached, refuses the
    token, or has a job of that name that has not ended.
    """
    from ray.exceptions import AuthenticationError

    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"{address}: is not a dashboard's URL; write http://HOST:PORT, such as http://127.0.0.1:8265")
    from ray.job_submission import JobStatus, JobSubmissionClient

    try:
        client = JobSubmissionClient(address)
    except AuthenticationError as error:
        raise InputError(
            f"the cluster at {address} refuses the token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the "
            "file with the cluster's token"
        ) from error
    except (ConnectionError, RuntimeError) as error:
        raise InputError(f"the cluster at {address} cannot be reached ({error}); is its dashboard up?") from error
    name = f"{command[0]}-{experiment.name}"
    with tempfile.TemporaryDirectory(prefix="larmor-job-") as folder:
        _pack(Path(folder))
        (Path(folder) / "experiment.yaml").write_text(dump_yaml(experiment))
        entrypoint = " ".join(["python -m larmor", command[0], "experiment.yaml", *command[1:], "--address auto"])
        try:
            for job in client.list_jobs():
                if job.submission_id == name and job.status.is_terminal():
                    client.delete_job(name)
            client.submit_job(
                entrypoint=entrypoint,
                submission_id=name,
                runtime_env={"working_dir": folder, "env_vars": {"PYTHONUNBUFFERED": "1"}},
            )
        except RuntimeError as error:
            raise InputError(f"the cluster at {address} refused the job '{name}': {error}") from error
    show(f"submitted as job '{name}'")

    async def follow() -> None:
        async for text in client.tail_job_logs(name):
            show(text.rstrip("\n"))

    asyncio.run(follow())
    return client.get_job_status(name) == JobStatus.SUCCEEDED


def _pack(folder: Path) -> None:
    """Copy Larmor's own source into the job's working directory."""
    for name in PACKED:
        found = importlib.util.find_spec(name)
        assert found is not None
        assert found.origin is not None
        source = Path(found.origin)
        if source.name == "__init__.py":
            shutil.copytree(source.parent, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / source.name)
