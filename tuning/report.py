"""One self-contained HTML page about a run, a sweep and an evaluation. It loads nothing from anywhere."""

from __future__ import annotations

import base64
import datetime
import importlib.metadata
import importlib.resources
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
import plotly.io
import yaml
from plotly.offline import get_plotlyjs

from cluster.run_folder import RunFolder
from storage.dataset import read_root
from storage.errors import InputError
from storage.object_store import ObjectStore
from tuning.sweep_folder import SweepFolder, best_trial

PACKAGES = ("larmor", "torch", "ray", "deepspeed", "zarr", "s3fs", "monai", "scikit-image", "optuna", "numpy")


def write_report(path: Path, run_url: str | None, sweep_url: str | None, evaluation: Path | None) -> None:
    """Write the page about whatever is given. Raises `InputError` if nothing is, or something is not there."""
    if not (run_url or sweep_url or evaluation):
        raise InputError("nothing to report on: give --run, --sweep or --evaluation")
    page: dict[str, Any] = {
        "title": "MRI reconstruction with Larmor",
        "made": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "charts": [],
        "configurations": {},
        "sources": [],
        "versions": versions(),
    }
    if evaluation:
        page |= _evaluation(evaluation)
    if run_url:
        run = RunFolder(run_url)
        page["configurations"]["training"] = run.config_yaml()
        page["charts"] += run_charts(run.history())
        page["sources"] = read_root(ObjectStore(yaml.safe_load(run.config_yaml())["data"]["url"]))["sources"]
    if sweep_url:
        folder = SweepFolder(sweep_url)
        if not folder.exists():
            raise InputError(f"{sweep_url}: no sweep is there (no sweep.yaml); check the URL")
        page["configurations"]["sweep"] = folder.config_yaml()
        page |= _sweep(folder, page["charts"])
    if page["charts"]:
        page["plotly_js"] = get_plotlyjs()
    template = importlib.resources.files("tuning").joinpath("report.html").read_text()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.ChainableUndefined)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(environment.from_string(template).render(page))


def versions() -> dict[str, str]:
    """Versions of Larmor, of what it stands on, and of Python."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return {**found, "Python": platform.python_version(), "system": platform.platform()}


def run_charts(history: Sequence[Mapping[str, float]]) -> list[dict[str, str]]:
    """Loss terms of every step, and the validation metrics."""
    steps = [row["step"] for row in history]

    def lines(names: Mapping[str, str], scale: str) -> go.Figure:
        figure = go.Figure()
        for key, name in names.items():
            figure.add_scatter(x=steps, y=[row.get(key) for row in history], name=name)
        return figure.update_layout(yaxis_type=scale, xaxis_title="generator step", yaxis_title="loss")

    content = {"loss": "L_G, eq. (9)", "normalized_root_mse": "L_N, eq. (7)", "frequency": "L_F, eq. (8)"}
    adversarial = {"critic_loss": "critic, eq. (5)", "adversarial": "L_A, eq. (6)"}
    rated = [row for row in history if "val/psnr" in row]
    validation = go.Figure()
    validation.add_scatter(x=[r["step"] for r in rated], y=[r["val/psnr"] for r in rated], name="PSNR (dB)")
    validation.add_scatter(x=[r["step"] for r in rated], y=[r["val/ssim"] for r in rated], name="SSIM", yaxis="y2")
    validation.update_layout(
        xaxis_title="generator step",
        yaxis_title="PSNR (dB)",
        yaxis2={"title": "SSIM", "overlaying": "y", "side": "right", "showgrid": False},
    )
    return [
        _chart("Training losses", "Global mean of every step.", lines(content, "log")),
        _chart("Adversarial terms", "Global mean of every step.", lines(adversarial, "linear")),
        _chart("Validation", "Preset paper, on the validation subject(s).", validation),
    ]


def sweep_charts(trials: Sequence[Mapping[str, Any]], metric: str) -> list[dict[str, str]]:
    """Every finished trial: parallel coordinates, and the metric against each searched key."""
    rated = [trial for trial in trials if metric in trial["metrics"]]
    keys = list(rated[0]["parameters"]) if rated else []
    values = [trial["metrics"][metric] for trial in rated]
    charts = []
    for key in keys:
        figure = go.Figure()
        figure.add_scatter(
            x=[trial["parameters"][key] for trial in rated],
            y=values,
            mode="markers",
            marker={"size": 12, "color": values, "colorscale": "Viridis", "showscale": False},
            text=[trial["id"] for trial in rated],
        )
        figure.update_layout(xaxis_title=key, xaxis_type=_scale(rated, key), yaxis_title=metric, height=300)
        charts.append(
            _chart(f"Sweep: {metric} against {key}", "One point for each trial, at its last best checkpoint.", figure)
        )
    if len(keys) > 1:
        figure = go.Figure()
        figure.add_scatter(
            x=[trial["parameters"][keys[0]] for trial in rated],
            y=[trial["parameters"][keys[1]] for trial in rated],
            mode="markers",
            marker={"size": 16, "color": values, "colorscale": "Viridis", "colorbar": {"title": metric}},
            text=[trial["id"] for trial in rated],
        )
        scales = {"xaxis_type": _scale(rated, keys[0]), "yaxis_type": _scale(rated, keys[1])}
        figure.update_layout(xaxis_title=keys[0], yaxis_title=keys[1], **scales)
        charts.insert(0, _chart(f"Sweep: {keys[0]} × {keys[1]}", f"Colour: {metric}.", figure))
    return charts


def _scale(trials: Sequence[Mapping[str, Any]], key: str) -> str:
    """The axis of a searched key: logarithmic for positive numbers, categories for words."""
    values = [trial["parameters"][key] for trial in trials]
    if not all(isinstance(value, int | float) for value in values):
        return "category"
    return "log" if min(values) > 0 else "linear"


def _chart(title: str, note: str, figure: go.Figure) -> dict[str, str]:
    figure.update_layout(template="plotly_white", margin={"l": 60, "r": 60, "t": 20, "b": 50})
    html = plotly.io.to_html(
        figure, full_html=False, include_plotlyjs=False, default_height=figure.layout.height or 380
    )
    return {"title": title, "note": note, "html": html}


def _evaluation(folder: Path) -> dict[str, Any]:
    summary = folder / "summary.json"
    if not summary.is_file():
        raise InputError(f"{summary}: no such file; make it with `larmor evaluate`")
    evaluation = json.loads(summary.read_text())
    if "cells" not in evaluation:
        raise InputError(f"{summary}: was written by an older version; make it anew with `larmor evaluate`")
    for cell in evaluation["cells"]:
        panels = folder / cell["figure"]
        cell["panels"] = base64.b64encode(panels.read_bytes()).decode() if panels.is_file() else None
    return {"evaluation": evaluation}


def _sweep(folder: SweepFolder, charts: list[dict[str, str]]) -> dict[str, Any]:
    trials = folder.trials()
    metric = yaml.safe_load(folder.config_yaml())["sweep"]["metric"]
    name = f"val/{metric}"
    charts += sweep_charts(trials, name)
    return {
        "trials": trials,
        "trial_keys": list(trials[0]["parameters"]) if trials else [],
        "trial_metric": name,
        "best_id": best_trial(trials, metric)["id"],
    }
