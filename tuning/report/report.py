"""One self-contained HTML page about sweeps, runs and an evaluation, with tables as CSV beside it.

The page loads nothing from anywhere, and forbids itself to (Content-Security-Policy).
"""

from __future__ import annotations

import base64
import csv
import datetime
import importlib.resources
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml
from plotly.offline import get_plotlyjs

from larmor.cluster.runs.attempts import first_and_last
from larmor.cluster.runs.origin import read_origin, recorded_metrics
from larmor.cluster.runs.reports import last_report
from larmor.cluster.runs.run_folder import RunFolder
from larmor.recon.inference.slices_page import Stack, read_page, script, style, viewer_html
from larmor.recon.recipe.metric import TABLE_METRICS, from_record
from larmor.storage.formats.provenance import larmor_version
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.local_names import inside
from larmor.tuning.report.charts import run_charts
from larmor.tuning.report.importance import FEWEST
from larmor.tuning.report.panels import best_panels
from larmor.tuning.report.spread import gains, spreads
from larmor.tuning.report.sweep_charts import STATES, state_counts, sweep_charts
from larmor.tuning.report.trial_records import Sweep, read_sweep, write_trials_csv
from larmor.tuning.search.objectives import RULE
from larmor.tuning.search.space import describe_value
from larmor.tuning.search.sweep_folder import SweepFolder

_EARLY = ("stopped", "diverged", "failed")


def write_report(
    path: Path, urls: Sequence[str], evaluation: Path | None = None, trust_code: Sequence[str | Path] | None = None
) -> list[Path]:
    """Write the page about these sweeps and runs, and the evaluation in a folder; returns the files written.

    A run whose network is not Larmor's is shown with pictures if its code is in `trust_code` (see
    `recon.models.model.load_model`). Raises `InputError` if there is nothing to report on, or something is not there.
    """
    if not (urls or evaluation):
        raise InputError("nothing to report on: give the URL of a sweep or a run, or --evaluation")
    page: dict[str, Any] = {
        "sweeps": [],
        "runs": [],
        "states": STATES,
        "number": describe_value,
        "metrics": dict(TABLE_METRICS),
    }
    page["made"] = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    page["larmor"] = larmor_version()
    if evaluation:
        page["evaluation"] = _evaluation(evaluation)
        own = page["evaluation"].get("metrics", {})
        page["metrics"] |= {name: from_record(record) for name, record in own.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    written = [path]
    for url in urls:
        if SweepFolder(url).exists():
            sweep = read_sweep(url)
            page["metrics"] |= sweep.own
            page["sweeps"].append(_sweep(sweep, trust_code))
            written.append(_beside(path, url, "trials"))
            write_trials_csv(sweep, written[-1])
        else:
            run = RunFolder(url)
            page["runs"].append(_run(run, trust_code))
            written.append(_beside(path, url, "steps"))
            _write_history_csv(run, written[-1])
    names = [f"{kind[:-1]} {part['name']}" for kind in ("sweeps", "runs") for part in page[kind]]
    page["title"] = " · ".join(names) or "Evaluation"
    page["csv"] = [item.name for item in written[1:]]
    page["plotly_js"] = get_plotlyjs() if page["sweeps"] or page["runs"] else ""
    page |= {"viewer_js": script(), "viewer_css": style(), "viewer": viewer_html}
    template = importlib.resources.files("larmor.tuning.report").joinpath("report.html").read_text()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.ChainableUndefined, trim_blocks=True)
    path.write_text(environment.from_string(template).render(page))
    return written


def _sweep(sweep: Sweep, trust_code: Sequence[str | Path] | None) -> dict[str, Any]:
    best = sweep.best
    seconds = [trial.seconds for trial in sweep.trials if trial.seconds is not None]
    early = [trial for trial in sweep.trials if trial.state in _EARLY]
    per_step = [trial.num_images / trial.step for trial in sweep.trials if trial.step]
    spared = sum(trial.num_steps - trial.step for trial in early if trial.state == "stopped")
    panels = (
        best_panels(sweep.folder.trial_run(best.id), sweep.metric, trust_code)
        if best
        else ("", "No trial has finished.", None)
    )
    return {
        "name": sweep.folder.url.rsplit("/", 1)[-1],
        "url": sweep.folder.url,
        "finished": sweep.folder.result() is not None,
        "planned": sweep.config["sweep"].get("num_trials"),
        "metric": sweep.metric,
        "keys": sweep.objectives.keys,
        "searched": sweep.keys,
        "space": sweep.space,
        "counts": state_counts(sweep.trials),
        "best": best,
        "rule": RULE,
        "gains": gains(sweep),
        "front": sweep.front,
        "spreads": spreads(sweep),
        "balance": list(dict.fromkeys(key for trial in sweep.trials for key in trial.balance)),
        "ranked": [*sweep.rated, *(trial for trial in sweep.trials if trial.value is None)],
        "early": early,
        "seconds": sum(seconds),
        "images": sum(trial.num_images for trial in sweep.trials),
        "spared": round(spared * max(per_step, default=0)),
        "charts": sweep_charts(sweep),
        "importance_missing": f"Importance of the keys takes {FEWEST} trials." if len(sweep.rated) < FEWEST else "",
        "panels": _panels(*panels),
        "config": sweep.folder.config_yaml(),
        "origin": read_origin(sweep.folder.trial_run(best.id)) if best else {},
    }


def _run(run: RunFolder, trust_code: Sequence[str | Path] | None) -> dict[str, Any]:
    config = run.config_yaml()
    content = yaml.safe_load(config)
    training = content.get("training", {})
    step_images = training.get("global_batch_size", 0) * content.get("data", {}).get("stack", 1)
    history, result, failure = run.history(), run.result(), run.failure()
    checkpoints, attempts = run.checkpoints(), first_and_last(run.store)
    metric = f"val/{training.get('best_metric', 'psnr')}"
    has_metric = any(metric in item.metrics for item in checkpoints)
    panels = (
        best_panels(run, metric, trust_code)
        if has_metric
        else ("", "No checkpoint with a validation metric yet.", None)
    )
    return {
        "name": run.url.rsplit("/", 1)[-1],
        "url": run.url,
        "state": "finished" if result else "ended early" if failure else "not finished",
        "failure": failure,
        "result": result,
        "step": int(history[-1]["step"]) if history else 0,
        "num_steps": training.get("num_steps"),
        "images": int(history[-1]["step"]) * step_images if history else 0,
        "goodput": (last_report(run.store) or {}).get("goodput"),
        "restarts": attempts[1].number - 1 if attempts else 0,
        "checkpoints": checkpoints,
        "charts": run_charts(history, recorded_metrics(run)) if history else [],
        "panels": _panels(*panels),
        "config": config,
        "origin": read_origin(run),
    }


def _panels(image: str, caption: str, slices: Stack | None) -> dict[str, Any]:
    return {"image": image, "caption": caption, "slices": slices and {"stacks": [slices.content()]}}


def _beside(path: Path, url: str, what: str) -> Path:
    return path.with_name(f"{path.stem}-{url.rstrip('/').rsplit('/', 1)[-1]}-{what}.csv")


def _write_history_csv(run: RunFolder, path: Path) -> None:
    """One line for each generator step; figures that a step does not have are empty."""
    history = run.history()
    names = list(dict.fromkeys(["step", *(name for row in history for name in row)]))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(history)


def _evaluation(folder: Path) -> dict[str, Any]:
    summary = folder / "summary.json"
    if not summary.is_file():
        raise InputError(f"{summary}: no such file; make it with `larmor evaluate`")
    evaluation = json.loads(summary.read_text())
    if "cells" not in evaluation:
        raise InputError(f"{summary}: was written by an older version; write it again with `larmor evaluate`")
    for cell in evaluation["cells"]:
        panels = inside(folder, cell["figure"])
        cell["panels"] = base64.b64encode(panels.read_bytes()).decode() if panels.is_file() else None
        slices = inside(folder, cell["page"]) if "page" in cell else None
        cell["slices"] = {"stacks": read_page(slices)} if slices and slices.is_file() else None
    return evaluation
