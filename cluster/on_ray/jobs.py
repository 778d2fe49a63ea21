"""Trainings and sweeps as jobs of a Ray cluster: submit, come back to, ask about, stop.

A job carries the name of its run, so that there is one at a time: submitting what runs already comes back to it.
No key travels with a job. S3 credentials and dependencies are the cluster's; the token comes from Ray's own places
(RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token) and goes into headers alone.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import yaml

from larmor.cluster.experiments.experiment import Experiment, differing_keys
from larmor.cluster.experiments.tracking import check_trackers
from larmor.cluster.on_ray.job_package import pinned_requirements, write_package
from larmor.cluster.on_ray.ray_cluster import use_known_token
from larmor.storage.objects.errors import InputError

Kind = Literal["train", "sweep"]
STOP_SECONDS = 120  # a stopped training saves a checkpoint first; then it is killed
_KIND, _EXPERIMENT = "larmor.command", "larmor.experiment"  # what a job's metadata say of it
_STARTING_SECONDS = 60


@dataclass(frozen=True)
class Submission:
    """The job's name, and whether it ran already."""

    name: str
    attached: bool


def job_name(kind: Kind, experiment_name: str) -> str:
    """A training's job is named as its run; a sweep's is told apart from the training of the same experiment."""
    return experiment_name if kind == "train" else f"sweep-{experiment_name}"


def check_places(experiment: Experiment) -> None:
    """Raises `InputError` for a relative path: a job runs in a folder of its own, which Ray removes.

    Absolute paths may be on a disk that the nodes share.
    """
    start = experiment.init_from
    places = {
        "output_url": experiment.output_url,
        "data.url": experiment.data.url,
        "mask.file": experiment.mask.file,
        "init_from.url": start.url if start else None,
    }
    for key, place in places.items():
        if place and "://" not in place and not Path(place).is_absolute():
            raise InputError(
                f"{key}={place}: is relative to a folder of this machine, and a job runs in one of its own on the "
                "cluster; give a URL (s3://…), or the absolute path of a disk that the nodes share"
            )


class Jobs:
    """The jobs of the cluster whose dashboard is at `address` (http://HOST:PORT).

    Raises `InputError` (all methods) if the cluster cannot be reached or refuses the token.
    """

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(
                f"{address}: is not a dashboard's URL; write http://HOST:PORT, such as http://127.0.0.1:8265"
            )
        self.address = address
        token = use_known_token()
        from ray.job_submission import JobSubmissionClient

        # said here, too: Ray reads the environment once, and may have been imported before the token was known
        headers = {"Authorization": f"Bearer {token}"} if token else None
        self.client = self._ask(lambda: JobSubmissionClient(address, headers=headers))
        # it announces every connection that ends
        logging.getLogger(JobSubmissionClient.__module__).setLevel(logging.WARNING)

    def submit(self, kind: Kind, experiment: Experiment, install: bool = False) -> Submission:
        """Run `larmor KIND` with this experiment on the cluster, unless a job does so already.

        With `install` each node first installs the dependencies in the versions that are installed here.

        Raises `InputError` if a job of that name works at something else, and as `check_places` and
        `check_trackers`.
        """
        check_places(experiment)
        check_trackers(experiment.tracking)
        name = job_name(kind, experiment.name)
        content = experiment.model_dump(mode="json")
        deadline = time.monotonic() + _STARTING_SECONDS
        while True:
            job = self.find(name)
            if job is not None and not job.status.is_terminal():
                _refuse_another(job, kind, content)
                return Submission(name, attached=True)
            try:
                if job is not None:
                    self._ask(partial(self.client.delete_job, name))
                self._start(name, kind, experiment, install)
            except InputError as error:
                # a cluster that has just started says so; or somebody else submitted the same at the same moment
                passing = "try again later" in str(error) or self._runs(name)
                if not passing or time.monotonic() > deadline:
                    raise
                time.sleep(1)
            else:
                return Submission(name, attached=False)

    def _runs(self, name: str) -> bool:
        job = self.find(name)
        return job is not None and not job.status.is_terminal()

    def _start(self, name: str, kind: Kind, experiment: Experiment, install: bool) -> None:
        patience = max(STOP_SECONDS, experiment.cluster.grace_seconds + 30)
        variables = {"LARMOR_JOB": name, "PYTHONUNBUFFERED": "1", "RAY_JOB_STOP_WAIT_TIME_S": str(patience)}
        with tempfile.TemporaryDirectory(prefix="larmor-job-") as folder:
            write_package(Path(folder), experiment)
            environment: dict[str, Any] = {"working_dir": folder, "env_vars": variables}
            if install:
                environment["pip"] = pinned_requirements(experiment.tracking.names)
            self._ask(
                lambda: self.client.submit_job(
                    entrypoint=f"exec python -m larmor {kind} experiment.yaml --address auto",
                    submission_id=name,
                    runtime_env=environment,
                    metadata={_KIND: kind, _EXPERIMENT: yaml.safe_dump(experiment.model_dump(mode="json"))},
                )
            )

    def find(self, name: str) -> Any | None:
        """What Ray knows about the job (`JobDetails`), or None."""
        return next((job for job in self._ask(self.client.list_jobs) if job.submission_id == name), None)

    def get(self, name: str) -> Any:
        """As `find`. Raises `InputError` if there is no such job, naming those there are."""
        job = self.find(name)
        if job is None:
            known = sorted(job.submission_id for job in self._ask(self.client.list_jobs) if job.submission_id)
            raise InputError(f"{self.address}: there is no job '{name}'; there is {', '.join(known) or 'none at all'}")
        return job

    def list(self) -> list[Any]:
        """What Ray knows about each job that was submitted to it by a name, the newest first."""
        named = [job for job in self._ask(self.client.list_jobs) if job.submission_id]
        return sorted(named, key=lambda job: job.start_time or 0, reverse=True)

    def log(self, name: str) -> str:
        """All that the job has written so far."""
        self.get(name)
        return self._ask(lambda: self.client.get_job_logs(name))

    def stop(self, name: str) -> Any:
        """Ask the job to end, wait until it has, and return what Ray knows of it then.

        It gets `STOP_SECONDS` to save a checkpoint; then Ray kills it.
        """
        job = self.get(name)
        if not job.status.is_terminal():
            self._ask(lambda: self.client.stop_job(name))
        deadline = time.monotonic() + STOP_SECONDS + 60
        while not job.status.is_terminal():
            if time.monotonic() > deadline:
                raise InputError(f"{self.address}: the job '{name}' has not ended after it was told to stop; try again")
            time.sleep(0.5)
            job = self.get(name)
        return job

    def _ask(self, question: Callable[[], Any]) -> Any:
        from ray.exceptions import AuthenticationError

        try:
            return question()
        except AuthenticationError as error:
            raise InputError(
                f"the cluster at {self.address} refuses the token: put the cluster's token into ~/.ray/auth_token, or "
                "let RAY_AUTH_TOKEN_PATH name the file it is in"
            ) from error
        except (OSError, RuntimeError) as error:  # requests' errors are OSErrors
            if isinstance(error, OSError) or "Failed to connect" in str(error):
                raise InputError(
                    f"the cluster at {self.address} cannot be reached ({error}); is its dashboard up?"
                ) from error
            raise InputError(f"the cluster at {self.address} refused: {error}") from error


def _refuse_another(job: Any, kind: Kind, content: dict[str, Any]) -> None:
    metadata = job.metadata or {}
    if metadata.get(_KIND) != kind:
        raise InputError(
            f"'{job.submission_id}' is the name of a job that runs and is no {kind} of Larmor's; choose another name=…"
        )
    if differing := differing_keys(yaml.safe_load(metadata[_EXPERIMENT]), content):
        raise InputError(
            f"another experiment runs as job '{job.submission_id}'; it differs in {', '.join(differing[:5])}; choose "
            "another name=…, or stop it first with `larmor stop`"
        )


def describe(job: Any) -> list[str]:
    """What a person wants to know about a job, in lines."""
    ended = job.status.is_terminal()
    began = (job.start_time or 0) / 1000
    took = ((job.end_time / 1000 if ended and job.end_time else time.time()) - began) / 60
    since = datetime.fromtimestamp(began).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
    lines = [
        f"{job.submission_id}: {job.status.lower()}, submitted {since}, {took:.1f} min {'in all' if ended else 'ago'}"
    ]
    metadata = job.metadata or {}
    if _EXPERIMENT in metadata:
        content = yaml.safe_load(metadata[_EXPERIMENT])
        folder = {"train": "runs", "sweep": "sweeps"}[metadata[_KIND]]
        lines.append(f"results: {content['output_url'].rstrip('/')}/{folder}/{content['name']}")
    if ended and job.driver_exit_code:
        lines.append(f"exit code: {job.driver_exit_code}")
    return lines


def exit_code(job: Any) -> int:
    """What a process that stands for the ended job exits with."""
    from ray.job_submission import JobStatus

    return 0 if job.status == JobStatus.SUCCEEDED else max(job.driver_exit_code or 1, 1)
