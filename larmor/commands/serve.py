"""Reconstruct at the scanner: what `larmor serve` and `larmor stream` do, callable from Python."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from larmor.commands.feedback import QUIET, Feedback
from larmor.commands.model_places import model_folder

if TYPE_CHECKING:
    from larmor.cluster.experiments.experiment import ClusterConfig
    from larmor.cluster.on_ray.http_server import HttpOptions
    from larmor.recon.serving.server import Listening, ScanServer
    from larmor.storage.formats.mrd2_items import Sink


def serve(
    model_dir: str | Path,
    listening: Listening | None = None,
    *,
    device: str = "cpu",
    feedback: Feedback = QUIET,
    trust_code: Sequence[str | Path] | None = None,
    runtime: str = "eager",
) -> ScanServer:
    """Serve a model to scanners by the MRD streaming protocol (`larmor serve`); `close` ends it.

    `model_dir` is a model directory, or a URL as for `load_model`. `trust_code` is as there, `runtime` as in
    `ReconstructOptions`. Raises `InputError` for a model that does not exist or cannot reconstruct slice by slice, for
    an unknown runtime, and for a place that cannot be used.
    """
    from larmor.recon.models.model import load_model
    from larmor.recon.models.runtimes import check_runtime, with_runtime
    from larmor.recon.serving.server import ScanServer

    check_runtime(runtime)
    model = with_runtime(load_model(model_folder(model_dir), device, trust_code), runtime)
    return ScanServer(model, listening, feedback.say)


def stream(
    model_dir: str | Path,
    source: BinaryIO,
    to: Sink,
    *,
    device: str = "cpu",
    trust_code: Sequence[str | Path] | None = None,
) -> int:
    """Reconstruct an MRD 2 stream into another, slice by slice, with a pulled model (`larmor stream`); how many images.

    `trust_code` is as for `load_model`. Raises `InputError` for a model that does not exist or cannot reconstruct slice
    by slice, and as `reconstruct_stream` does.
    """
    from larmor.recon.models.model import load_model
    from larmor.recon.serving.pipe import reconstruct_stream

    return reconstruct_stream(load_model(model_folder(model_dir), device, trust_code), source, to)


def serving_cluster(experiment: str | None, **given: int | None) -> ClusterConfig:
    """The `cluster` section of an experiment's file; what is `given` of `cluster.serving` takes the place of its keys.

    Raises `InputError` as `load_experiment` does.
    """
    from larmor.commands.training import load_experiment
    from larmor.tuning.search.experiment import build_sweep_experiment

    changes = [f"cluster.serving.{name}={value}" for name, value in given.items() if value is not None]
    found = load_experiment(experiment, changes) if experiment else build_sweep_experiment({}, changes, "the options")
    return found.cluster


def serve_http(
    model_dir: str | Path,
    options: HttpOptions | None = None,
    *,
    address: str | None = None,
    device: str = "cpu",
    trust_code: Sequence[str | Path] | None = None,
) -> AbstractContextManager[str]:
    """Serve a pulled model over HTTP by Ray Serve while a block runs, which gets the URL (`larmor serve --http`).

    `address` is that of a running Ray cluster. Raises `InputError` as `http_server` does.
    """
    from larmor.cluster.on_ray.http_server import HttpOptions, http_server

    return http_server(model_folder(model_dir), options or HttpOptions(), address, device, trust_code)
