"""The trials of a sweep as charts: curves, progress, parallel coordinates, one slice for each searched key."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.colors
import plotly.graph_objects as go

from larmor.tuning.report.charts import FAINT, INK, Chart, chart, log_axis
from larmor.tuning.report.front_chart import front_chart
from larmor.tuning.report.importance import importance, importance_chart
from larmor.tuning.report.landscape import landscape_chart
from larmor.tuning.report.trial_records import Sweep, TrialView
from larmor.tuning.search.records import RATED

STATES = {
    "finished": ("#2563eb", "circle"),
    "stopped": ("#d97706", "circle-open"),
    "diverged": ("#dc2626", "x"),
    "failed": ("#7b8794", "x-thin-open"),
    "running": ("#0d9488", "diamond"),
}
_OTHER = ("#9333ea", "square-open")
_BANDWIDTH = 0.12  # of the local mean, as a part of the axis


def sweep_charts(sweep: Sweep) -> list[Chart]:
    """Whatever the trials that there are allow to draw; of two metrics by each of them."""
    views = [sweep.seen_by(name) for name in sweep.objectives.names]
    charts = [curves_chart(view) for view in views if any(trial.curve(view.metric)[0] for trial in view.trials)]
    if sweep.rated:
        charts += [*front_chart(sweep, STATES), progress_chart(sweep)]
        charts += [chart for view in views if view.rated for chart in _value_charts(view)]
    return charts


def _value_charts(sweep: Sweep) -> list[Chart]:
    """What the searched keys do to one metric."""
    charts = [*importance_chart(importance(sweep), sweep.comparison), parallel_chart(sweep)]
    charts += landscape_chart(sweep, STATES)
    charts += [slice_chart(sweep, key) for key in sweep.keys]
    if not sweep.objectives.has_front:
        return charts
    return [dataclasses.replace(item, title=f"{item.title}: {sweep.metric}") for item in charts]


def curves_chart(sweep: Sweep) -> Chart:
    """A metric of every trial at each of its validations."""
    figure = go.Figure()
    named: set[str] = set()
    for trial in sorted(sweep.trials, key=lambda item: item is sweep.best):
        colour, symbol = STATES.get(trial.state, _OTHER)
        steps, values = trial.curve(sweep.metric)
        is_best = trial is sweep.best
        if not steps:
            continue
        name = f"best: {trial.id}" if is_best else trial.state
        figure.add_scatter(
            x=steps,
            y=values,
            mode="lines+markers",
            name=name,
            legendgroup=name,
            showlegend=name not in named,
            opacity=1 if is_best else 0.55,
            line={"color": INK if is_best else colour, "width": 3 if is_best else 1.4},
            marker={"symbol": symbol, "size": 7, "color": INK if is_best else colour},
            text=[trial.tooltip] * len(steps),
            hovertemplate="%{text}<br>step %{x}: %{y:.4g}<extra></extra>",
        )
        named.add(name)
    figure.update_layout(xaxis_title="generator step", yaxis_title=sweep.metric)
    note = "Every trial at each of its validations; those that ended early end early here."
    of_which = f": {sweep.metric}" if sweep.objectives.has_front else ""
    return chart(f"Curves of all trials{of_which}", note, figure, height=430)


def progress_chart(sweep: Sweep) -> Chart:
    """Value against images seen so far by the whole sweep, and the best until then."""
    figure, seen, best = go.Figure(), 0, None
    line: list[tuple[int, float]] = []
    points: dict[str, list[tuple[int, float, str]]] = {}
    better = max if sweep.higher_is_better else min
    for trial in sweep.trials:
        seen += trial.num_images
        if trial.value is None:
            continue
        points.setdefault(trial.state, []).append((seen, trial.value, trial.tooltip))
        if trial.state in RATED:
            best = trial.value if best is None else better(best, trial.value)
            line.append((seen, best))
    for state, found in points.items():
        figure.add_scatter(
            x=[item[0] for item in found],
            y=[item[1] for item in found],
            mode="markers",
            name=state,
            marker=_marker(state),
            text=[item[2] for item in found],
            hovertemplate="%{text}<extra></extra>",
        )
    if line:
        x, y = zip(*line, strict=True)
        figure.add_scatter(x=x, y=y, mode="lines", name="best so far", line={"shape": "hv", "color": INK, "width": 2})
    figure.update_layout(xaxis_title="images seen by all trials so far", yaxis_title=sweep.metric)
    return chart("Progress of the search", "Trials in the order in which they began.", figure, width="half")


def parallel_chart(sweep: Sweep) -> Chart:
    """One vertical axis for each searched key and for the metric, one line for each trial."""
    figure, last = go.Figure(), len(sweep.keys)
    axes = [_Axis.of(key, [trial.parameters.get(key) for trial in sweep.trials]) for key in sweep.keys]
    values = [trial.value for trial in sweep.rated if trial.value is not None]
    axes.append(_Axis.of(sweep.metric, values))
    for trial in reversed([*sweep.rated, *(trial for trial in sweep.trials if trial.value is None)]):
        places = [axis.place(trial.parameters.get(axis.key)) for axis in axes[:-1]]
        shade = axes[-1].place(trial.value) if trial.value is not None else None
        figure.add_scatter(
            x=[index for index, place in enumerate([*places, shade]) if place is not None],
            y=[place for place in [*places, shade] if place is not None],
            mode="lines",
            showlegend=False,
            opacity=1 if trial is sweep.best else 0.7,
            line={
                "color": shade_of(shade if sweep.higher_is_better or shade is None else 1 - shade),
                "width": 4 if trial is sweep.best else 1.6,
                "dash": "solid" if trial.state == "finished" else "dot",
            },
            text=[trial.tooltip] * (last + 1),
            hovertemplate="%{text}<extra></extra>",
        )
    for index, axis in enumerate(axes):
        figure.add_shape(type="line", x0=index, x1=index, y0=-0.02, y1=1.02, line={"color": INK, "width": 1.2})
        for label, place in axis.ticks():
            figure.add_annotation(
                x=index,
                y=place,
                text=label,
                xanchor="right",
                xshift=-5,
                showarrow=False,
                font={"size": 11, "color": INK},
                bgcolor="rgba(255,255,255,0.75)",
                borderpad=1,
            )
    figure.update_xaxes(
        tickvals=list(range(last + 1)),
        ticktext=[axis.key for axis in axes],
        side="top",
        showgrid=False,
        range=[-0.25, last + 0.12],
        showline=False,
    )
    figure.update_yaxes(visible=False, range=[-0.05, 1.06])
    note = f"Colour: {sweep.metric}, bright is better. The thick line is the best trial; dotted ones ended early."
    return chart("Parallel coordinates", note, figure, height=420)


def slice_chart(sweep: Sweep, key: str) -> Chart:
    """The metric against one searched key, over whatever the others were, after as many steps for all trials."""
    values = sweep.comparable
    rated = [trial for trial in sweep.rated if trial.parameters.get(key) is not None]
    axis = _Axis.of(key, [trial.parameters[key] for trial in rated])
    figure = go.Figure()
    for state in dict.fromkeys(trial.state for trial in rated):
        found = [trial for trial in rated if trial.state == state]
        figure.add_scatter(
            x=[trial.parameters[key] for trial in found],
            y=[values[trial.id] for trial in found],
            mode="markers",
            name=state,
            marker=_marker(state),
            text=[trial.tooltip for trial in found],
            hovertemplate="%{text}<extra></extra>",
        )
    if axis.numeric and len(rated) >= 8:
        places = np.array([axis.place(trial.parameters[key]) for trial in rated], dtype=float)
        grid = np.linspace(0, 1, 60)
        weights = np.exp(-0.5 * ((grid[:, None] - places[None, :]) / _BANDWIDTH) ** 2)
        mean = weights @ np.array([values[trial.id] for trial in rated]) / weights.sum(axis=1)
        figure.add_scatter(
            x=[axis.value(place) for place in grid],
            y=mean,
            mode="lines",
            name="local mean",
            hoverinfo="skip",
            line={"color": FAINT, "width": 2, "dash": "dash"},
        )
    if (start := sweep.start) and start.value is not None:
        figure.add_scatter(
            x=[start.parameters[key]],
            y=[values[start.id]],
            mode="markers",
            name="starting point",
            hoverinfo="skip",
            marker={"symbol": "star", "size": 15, "color": INK, "line": {"color": "white", "width": 1}},
        )
    figure.update_layout(yaxis_title=sweep.metric, xaxis_title=key)
    figure.update_xaxes(**(log_axis(key) if axis.log else {"type": "linear" if axis.numeric else "category"}))
    note = f"Over all values of the other keys: {sweep.comparison}."
    return chart(f"Slice: {key}", note, figure, height=330, width="third")


def shade_of(share: float | None) -> str:
    """Viridis at `share` of [0, 1]; grey for None."""
    return "#cbd2d9" if share is None else plotly.colors.sample_colorscale("Viridis", [min(max(share, 0), 1)])[0]


def _marker(state: str) -> dict[str, Any]:
    colour, symbol = STATES.get(state, _OTHER)
    return {"color": colour, "symbol": symbol, "size": 9, "line": {"width": 1.5, "color": colour}}


class _Axis:
    """A vertical axis of the parallel coordinates: values → [0, 1]."""

    def __init__(self, key: str, numeric: bool, log: bool, words: Sequence[str], low: float, high: float) -> None:
        self.key, self.numeric, self.log, self.words, self.low, self.high = key, numeric, log, words, low, high

    @staticmethod
    def of(key: str, values: Sequence[Any]) -> _Axis:
        known = [value for value in values if value is not None]
        numeric = bool(known) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in known)
        if not numeric:
            return _Axis(key, False, False, list(dict.fromkeys(map(str, known))), 0, 1)
        log = min(known) > 0 and max(known) / min(known) > 20
        low, high = (math.log10(end) if log else float(end) for end in (min(known), max(known)))
        return _Axis(key, True, log, (), low, high if high > low else low + 1)

    def place(self, value: Any) -> float | None:
        if value is None:
            return None
        if not self.numeric:
            return self.words.index(str(value)) / max(len(self.words) - 1, 1)
        return ((math.log10(value) if self.log else value) - self.low) / (self.high - self.low)

    def value(self, place: float) -> float:
        found = self.low + place * (self.high - self.low)
        return 10**found if self.log else found

    def ticks(self) -> list[tuple[str, float]]:
        if not self.numeric:
            return [(word, index / max(len(self.words) - 1, 1)) for index, word in enumerate(self.words)]
        return [(f"{self.value(place):.3g}", place) for place in (0, 0.25, 0.5, 0.75, 1)]


def state_counts(trials: Sequence[TrialView]) -> Mapping[str, int]:
    """How many trials are in each state, in the order of `STATES`."""
    order = [*STATES, *sorted({trial.state for trial in trials} - set(STATES))]
    counts = {state: sum(trial.state == state for trial in trials) for state in order}
    return {state: count for state, count in counts.items() if count}
