"""The best trade-offs of a sweep by two metrics."""

from __future__ import annotations

import plotly.graph_objects as go

from larmor.tuning.report.charts import INK, Chart, chart
from larmor.tuning.report.trial_records import Sweep
from larmor.tuning.search.objectives import RULE


def front_chart(sweep: Sweep, states: dict[str, tuple[str, str]]) -> list[Chart]:
    """Every trial by both metrics and the front through the best; none for a sweep by one metric."""
    if not sweep.front:
        return []
    figure, keys = go.Figure(), sweep.objectives.keys
    rated = [trial for trial in sweep.trials if sweep.objectives.are_in(trial.metrics)]
    line = {"color": INK, "width": 2, "shape": "linear"}
    values = [[trial.metrics[key] for trial in sweep.front] for key in keys]
    figure.add_scatter(x=values[0], y=values[1], mode="lines", name="front", line=line, hoverinfo="skip")
    for state in dict.fromkeys(trial.state for trial in rated):
        colour, symbol = states.get(state, ("#9333ea", "square-open"))
        found = [trial for trial in rated if trial.state == state]
        figure.add_scatter(
            x=[trial.metrics[keys[0]] for trial in found],
            y=[trial.metrics[keys[1]] for trial in found],
            mode="markers",
            name=state,
            marker={"color": colour, "symbol": symbol, "size": 9, "line": {"width": 1.5, "color": colour}},
            text=[trial.tooltip for trial in found],
            hovertemplate="%{text}<br>%{x:.4g}, %{y:.4g}<extra></extra>",
        )
    marks = {"starting point": (sweep.start, "star", INK), "chosen": (sweep.best, "circle-open", "#ef4444")}
    for name, (trial, symbol, colour) in marks.items():
        if trial is not None and trial in rated:
            marker = {"symbol": symbol, "size": 17, "color": colour, "line": {"width": 3, "color": colour}}
            point = [[trial.metrics[key]] for key in keys]
            figure.add_scatter(x=point[0], y=point[1], mode="markers", name=name, marker=marker, hoverinfo="skip")
    figure.update_layout(xaxis_title=keys[0], yaxis_title=keys[1])
    better = ", ".join(f"{name}: {sweep.objectives.entry(name).direction.lower()}" for name in sweep.objectives.names)
    note = f"Each trial's best checkpoint by {keys[0]}; {better}. Chosen: {RULE}."
    return [chart("Front of best trade-offs", note, figure, height=430)]
