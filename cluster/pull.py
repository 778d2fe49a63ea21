"""Bring the best checkpoint of a run: generator, configuration, metrics. Neither Ray, DeepSpeed nor pickle."""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path

from cluster.run_folder import Checkpoint, RunFolder
from recon.metrics import HIGHER_IS_BETTER
from storage.errors import InputError

WEIGHTS = "generator.safetensors"


def metric_direction(metric: str) -> tuple[str, bool]:
    """`val/psnr` or `psnr` → ("val/psnr", True). Raises `InputError` for an unknown metric."""
    short = metric.removeprefix("val/")
    if short not in HIGHER_IS_BETTER:
        raise InputError(f"'{metric}' is not a validation metric; choose one of {', '.join(HIGHER_IS_BETTER)}")
    return f"val/{short}", HIGHER_IS_BETTER[short]


def pull_run(run: RunFolder, metric: str, target: Path, overwrite: bool) -> Checkpoint:
    """Write the model directory `target` from the run's best checkpoint by `metric`, verified by checksum.

    The directory appears whole or not at all. Raises `InputError` for a run without such a checkpoint, a
    file whose checksum does not match, or a `target` that exists (unless `overwrite`).
    """
    if target.is_file():
        raise InputError(f"{target}: is a file; choose another --to")
    if target.exists() and not overwrite:
        raise InputError(f"{target}: exists already; pass --overwrite or choose another --to")
    if target.exists() and not (target / WEIGHTS).is_file() and any(target.iterdir()):
        raise InputError(f"{target}: is not a model directory, so it is not overwritten; choose another --to")
    name, higher = metric_direction(metric)
    config = run.config_yaml()
    best = run.best(name, higher)
    if WEIGHTS not in best.files:
        raise InputError(f"{run.url}/{best.folder}: its manifest names no {WEIGHTS}; remove this checkpoint's folder")
    partial = target.with_name(f"{target.name}.partial-{uuid.uuid4().hex[:8]}")
    try:
        run.download(best, partial, [WEIGHTS])
        (partial / "config.yaml").write_text(config)
        record = {
            "source": f"{run.url}/{best.folder}",
            "chosen_by": name,
            "step": best.step,
            "preset": "paper",
            "metrics": dict(best.metrics),
            "sha256": {WEIGHTS: best.files[WEIGHTS]["sha256"]},
        }
        (partial / "metrics.json").write_text(json.dumps(record, indent=2))
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return best
