"""How charts look, and those of one run. SVG only: nothing here needs WebGL."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import plotly.graph_objects as go
import plotly.io

from larmor.recon.recipe.metric import METRICS, Metric

INK, FAINT, GRID = "#1f2933", "#7b8794", "#e4e7eb"
COLOURS = ("#2563eb", "#d97706", "#0d9488", "#9333ea", "#dc2626")
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
_numbers = itertools.count()
_MOST_POINTS = 4000  # of a line, twice what a wide screen has columns
Width = Literal["whole", "half", "third"]


@dataclass(frozen=True)
class Chart:
    """A chart in the page: its title, what it shows, and its HTML."""

    title: str
    note: str
    html: str
    width: Width = "whole"


def chart(title: str, note: str, figure: go.Figure, height: int = 380, width: Width = "whole") -> Chart:
    """Dress a figure. It needs plotly.js once in the page."""
    figure.update_layout(
        template="plotly_white",
        font={"family": _FONT, "size": 12, "color": INK},
        margin={"l": 64, "r": 24, "t": 16, "b": 52},
        hoverlabel={"font": {"family": _FONT}},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        height=height,
    )
    figure.update_xaxes(linecolor=FAINT, gridcolor=GRID, zeroline=False, ticks="outside", tickcolor=FAINT)
    figure.update_yaxes(linecolor=FAINT, gridcolor=GRID, zeroline=False, ticks="outside", tickcolor=FAINT)
    html = plotly.io.to_html(
        figure,
        full_html=False,
        include_plotlyjs=False,
        div_id=f"chart-{next(_numbers)}",
        config={"displayModeBar": False, "responsive": True},
    )
    return Chart(title, note, html, width)


def log_axis(title: str) -> dict[str, object]:
    """Layout of a logarithmic axis with few labels."""
    return {"title": {"text": title}, "type": "log", "dtick": 1, "minor": {"dtick": "D1", "ticks": "outside"}}


def run_charts(history: Sequence[Mapping[str, float]], own: Mapping[str, Metric] | None = None) -> list[Chart]:
    """Loss terms of every step, validation metrics, Larmor's and one's own, and how fast it went."""
    content = {"loss": "L_G, eq. (9)", "normalized_root_mse": "L_N, eq. (7)", "frequency": "L_F, eq. (8)"}
    adversarial = {"critic_loss": "critic, eq. (5)", "adversarial": "L_A, eq. (6)"}
    adversarial |= {"critic_loss_residual": "residual critic", "adversarial_residual": "L_A of residuals"}
    adversarial = {name: title for name, title in adversarial.items() if any(name in row for row in history)}
    charts = [
        chart("Training losses", "Global mean of every step.", _lines(history, content, "loss", "log"), width="half"),
        chart("Adversarial terms", "Global mean of every step.", _lines(history, adversarial, "loss"), width="half"),
    ]
    note = "Preset paper, on the validation subject(s)."
    for name, metric in {**METRICS, **(own or {})}.items():
        if metric.brief and any(f"val/{name}" in row for row in history):
            figure = _lines(history, {f"val/{name}": metric.heading}, metric.heading, mode="lines+markers")
            charts.append(chart(f"Validation: {metric.heading}", f"{note} {metric.direction}.", figure, width="half"))
    if any("slices_per_second" in row for row in history):
        note = "Slices that the training read, at each report."
        figure = _lines(history, {"slices_per_second": "slices/s"}, "slices/s")
        charts.append(chart("Throughput", note, figure, height=300, width="half"))
    if any("waiting_share" in row for row in history):
        figure = _lines(history, {"waiting_share": "share"}, "share of the time").update_yaxes(tickformat=".0%")
        charts.append(chart("Waiting for data", "Share of the training time.", figure, height=300, width="half"))
    return charts


def thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """Of many points the lowest and the highest of each stretch, and the last: a page shows no more of them."""
    if len(points) <= _MOST_POINTS:
        return points
    length = -(-2 * len(points) // _MOST_POINTS)
    found = []
    for first in range(0, len(points), length):
        part = points[first : first + length]
        extremes = {min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])}
        found += sorted(extremes)
    return found if found[-1] == points[-1] else [*found, points[-1]]


def _lines(
    history: Sequence[Mapping[str, float]],
    names: Mapping[str, str],
    title: str,
    scale: str = "linear",
    mode: str = "lines",
) -> go.Figure:
    figure = go.Figure()
    for colour, (key, name) in zip(COLOURS, names.items(), strict=False):
        shown = thinned([(row["step"], row[key]) for row in history if key in row])
        figure.add_scatter(
            x=[step for step, _ in shown],
            y=[value for _, value in shown],
            name=name,
            mode=mode,
            line={"color": colour, "width": 1.8},
        )
    figure.update_layout(showlegend=len(names) > 1, xaxis_title="generator step", yaxis_title=title)
    return figure.update_yaxes(type=scale, **({"dtick": 1} if scale == "log" else {}))
