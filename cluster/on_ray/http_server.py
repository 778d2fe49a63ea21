"""Volumes over HTTP by Ray Serve: a door that asks for a token, and replicas of the model behind it."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

from prometheus_client import Gauge

from larmor.cluster.experiments.experiment import ClusterConfig
from larmor.cluster.experiments.serving_config import ServingConfig
from larmor.cluster.on_ray.ray_cluster import connected, require_resources
from larmor.recon.models.model import load_model
from larmor.recon.serving.counts import CONTENT_TYPE, Counts
from larmor.recon.serving.server import Listening, check_place
from larmor.recon.serving.uploads import Answer, Upload, answer, refusal
from larmor.storage.objects.errors import InputError

_APPLICATION = "larmor"
_LONGEST_SECONDS = 3600.0  # of a request, with its wait for a replica
# Ray Serve's own are 30, 30 and 600 s: a queue of several volumes is over before it would have started a replica
_SCALING = {"target_ongoing_requests": 1, "look_back_period_s": 12, "upscale_delay_s": 5, "downscale_delay_s": 60}
_MODEL_FILES = ("generator.safetensors", "config.yaml", "metrics.json")
_PATHS = "there are POST /reconstruct, /health and /metrics"


@dataclass(frozen=True)
class HttpOptions:
    """`listening.connections` requests are in work and as many wait; others are told to come again (503).

    `cluster` says how many replicas there are and what they take; `largest` bytes of a volume are taken. `token`: a
    random one, unless it is given.
    """

    listening: Listening = field(default_factory=Listening)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    largest: int = 2**28
    token: str = field(default_factory=lambda: secrets.token_urlsafe(16), repr=False)

    def __post_init__(self) -> None:
        if not (self.token.isascii() and self.token.isprintable()) or " " in self.token:
            raise InputError("the token has spaces or other characters than ASCII; choose another LARMOR_HTTP_TOKEN")


class Replica:
    """A model in a process of its own, from the `files` of its directory."""

    def __init__(self, files: Mapping[str, bytes], device: str, batch_size: int, trust_code: Sequence[str]) -> None:
        self._batch_size = batch_size
        with tempfile.TemporaryDirectory(prefix="larmor-model-") as folder:
            for name, content in files.items():
                Path(folder, name).write_bytes(content)
            self._model = load_model(Path(folder), device, list(trust_code) or None)

    def reconstruct(self, upload: Upload) -> Answer:
        try:
            return answer(self._model, upload, self._batch_size)
        except Exception as error:  # a defect: this volume is lost, the others are not
            logging.getLogger(__name__).exception("a defect while a volume was reconstructed")
            return refusal(HTTPStatus.INTERNAL_SERVER_ERROR, f"a defect of the server ({type(error).__name__})")


class Door:
    """Takes requests: checks token and size, counts, and hands volumes on to the replicas."""

    def __init__(self, replicas: Any, token: str, largest: int, patience: float) -> None:
        self._replicas, self._token, self._largest, self._patience = replicas, token, largest, patience
        self._counts = Counts()
        about = "Replicas that take volumes."
        self._running = Gauge("larmor_serve_replicas", about, registry=self._counts.registry)

    async def __call__(self, request: Any) -> Any:
        """A `starlette` request to its response."""
        from starlette.responses import Response

        with self._counts.open.track_inprogress():
            found = await self._answer(request)
        if found.status >= HTTPStatus.BAD_REQUEST:
            self._counts.errors.inc()
        headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
        if found.name:
            headers["Content-Disposition"] = f'attachment; filename="{found.name}"'
        if found.status == HTTPStatus.UNAUTHORIZED:
            headers["WWW-Authenticate"] = "Bearer"
        return Response(found.content, found.status, headers, found.kind)

    async def _answer(self, request: Any) -> Answer:
        path, method = request.url.path, request.method
        if path == "/health":
            return Answer(int(HTTPStatus.OK), b"ok\n")
        if path not in ("/metrics", "/reconstruct"):
            return refusal(HTTPStatus.NOT_FOUND, _PATHS)
        if problem := self._stranger(request.headers.get("authorization", "")):
            return problem
        if method != ("POST" if path == "/reconstruct" else "GET"):
            return refusal(HTTPStatus.METHOD_NOT_ALLOWED, _PATHS)
        if path == "/metrics":
            self._running.set(await asyncio.to_thread(running_replicas))
            return Answer(int(HTTPStatus.OK), self._counts.text(), CONTENT_TYPE)
        return await self._reconstruct(request)

    def _stranger(self, sent: str) -> Answer | None:
        if not sent:
            return refusal(HTTPStatus.UNAUTHORIZED, "send the token: Authorization: Bearer TOKEN")
        if not hmac.compare_digest(sent.encode(), f"Bearer {self._token}".encode()):
            return refusal(HTTPStatus.FORBIDDEN, "the token is another; it is the one that the server printed")
        return None

    async def _reconstruct(self, request: Any) -> Answer:
        known = {"suffix", "format", "field_of_view", "undersample"}
        asked = dict(request.query_params)
        if unknown := sorted(asked.keys() - known):
            return refusal(HTTPStatus.BAD_REQUEST, f"{unknown[0]} is not known; known are {', '.join(sorted(known))}")
        if asked.setdefault("undersample", "false") not in ("true", "false"):
            return refusal(HTTPStatus.BAD_REQUEST, f"undersample={asked['undersample']}: choose true or false")
        content = await self._body(request)
        if isinstance(content, Answer):
            return content
        undersample = asked.pop("undersample") == "true"
        upload = Upload(content, asked.pop("suffix", ".nii.gz"), undersample=undersample, **asked)
        began = time.perf_counter()
        found: Answer = await self._replicas.reconstruct.remote(upload)
        if found.num_slices:
            self._counts.slices.inc(found.num_slices)
            self._counts.seconds.observe(time.perf_counter() - began)
        return found

    async def _body(self, request: Any) -> bytes | Answer:
        """The body, read no further than it may be long."""
        content = bytearray()
        try:
            async with asyncio.timeout(self._patience):
                async for part in request.stream():
                    content += part
                    if len(content) > self._largest:
                        return refusal(
                            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                            f"the volume is larger than {self._largest} bytes; reconstruct it from a file",
                        )
        except TimeoutError:
            return refusal(HTTPStatus.REQUEST_TIMEOUT, f"the volume was not sent within {self._patience:g} s")
        return bytes(content) if content else refusal(HTTPStatus.BAD_REQUEST, "the body is empty; send a volume")


@contextlib.contextmanager
def http_server(
    model_dir: Path,
    options: HttpOptions,
    address: str | None = None,
    device: str = "cpu",
    trust_code: Sequence[str | Path] | None = None,
) -> Iterator[str]:
    """Serve a model until the block ends, on the Ray cluster at `address` or one of this machine's own: the URL.

    Raises `InputError` for a model or a place that cannot be used, for a cluster that cannot be reached, cannot hold
    the replicas or serves something else already, and without Ray Serve.
    """
    where, cluster = options.listening, options.cluster
    check_place(where, "nothing that is sent is encrypted")
    if address and not where.port:
        raise InputError("--port 0 with --address: which port is free on the head node is not known; name one")
    model = load_model(model_dir, device, trust_code)
    if model.physics.signal.mode == "pet":
        raise InputError(f"{model_dir}: reconstructs PET; serve a model for MRI")
    if model.physics.signal.guide:
        raise InputError(
            f"{model_dir}: sees a second contrast beside each volume (signal.guide), for which a request has no place; "
            "reconstruct files with `larmor reconstruct --guide`, or serve a model without"
        )
    port = where.port if address else _free(where.host, where.port)
    with connected(address, [str(place) for place in trust_code or ()]):
        serve = _ray_serve()
        _check_unused(serve, address)
        bundles = [_bundle(cluster.serving, device)] * cluster.serving.replicas
        require_resources(bundles, cluster.wait_seconds, "replicas", "lower replicas or cpus_per_replica")
        http = {"host": where.host, "port": port, "request_timeout_s": _LONGEST_SECONDS}
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        try:
            serve.start("HeadOnly", http, logging_config={"enable_access_log": False})
            serve.run(_application(serve, model_dir, options, device, trust_code), name=_APPLICATION)
            yield f"http://{where.host}:{port}"
        finally:
            serve.shutdown()


def running_replicas() -> int:
    """How many replicas of the model take volumes now; 0 where no server runs, or Ray does not answer."""
    ray: Any = sys.modules.get("ray")  # an import here would read the token's variables before they are set
    if ray is None or not ray.is_initialized():  # the question would start a cluster
        return 0
    try:
        application = _ray_serve().status().applications.get(_APPLICATION)
    except ray.exceptions.RayError:
        return 0
    found = application.deployments.get(Replica.__name__) if application else None
    return int(found.replica_states.get("RUNNING", 0)) if found else 0


def _check_unused(serve: Any, address: str | None) -> None:
    """Serve has one port a cluster, so that another's would be taken, and ended with ours."""
    if serve.status().proxies:
        raise InputError(
            f"the Ray cluster at {address} serves already ({', '.join(serve.status().applications) or 'nothing'}), and "
            "a cluster has one Ray Serve; end that one (`serve shutdown` on the head node), or use another cluster"
        )


def _bundle(serving: ServingConfig, device: str) -> dict[str, float]:
    """Resources of one replica."""
    bundle = {"CPU": serving.cpus_per_replica}
    return {**bundle, "GPU": 1.0} if device.startswith("cuda") else bundle


def _application(
    serve: Any, model_dir: Path, options: HttpOptions, device: str, trust_code: Sequence[str | Path] | None
) -> Any:
    files = {name: (model_dir / name).read_bytes() for name in _MODEL_FILES if (model_dir / name).is_file()}
    serving = options.cluster.serving
    bundle = _bundle(serving, device)
    resources = {"num_cpus": bundle["CPU"], "num_gpus": bundle.get("GPU", 0)}
    scale: dict[str, Any] = {"num_replicas": serving.replicas}
    if serving.max_replicas is not None:
        limits = {"min_replicas": serving.replicas, "max_replicas": serving.max_replicas}
        scale = {"autoscaling_config": {**limits, **_SCALING}}
    replica = serve.deployment(Replica).options(max_ongoing_requests=1, ray_actor_options=resources, **scale)
    trusted = [str(place) for place in trust_code or ()]
    most = options.listening.connections
    door = serve.deployment(Door).options(
        max_ongoing_requests=most, max_queued_requests=most, ray_actor_options={"num_cpus": 0}
    )
    behind = replica.bind(files, device, serving.batch_size, trusted)
    return door.bind(behind, options.token, options.largest, options.listening.patience)


def _ray_serve() -> Any:
    try:
        from ray import serve
    except ImportError as error:
        raise InputError(f"HTTP needs Ray Serve ({error}); install it with pip install 'larmor-mri[http]'") from error
    return serve


def _free(host: str, port: int) -> int:
    """The port, or for 0 one that is free. Raises `InputError` if it is taken."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    except OSError as error:
        raise InputError(f"--port {port}: cannot be used ({error.strerror}); choose another") from error
