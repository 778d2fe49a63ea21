"""The metric over two searched keys: a surface through the trials, and the trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from scipy.interpolate import RBFInterpolator
from scipy.spatial import Delaunay, QhullError

from larmor.tuning.report.charts import INK, Chart, chart, log_axis
from larmor.tuning.report.trial_records import Sweep, TrialView

_FEWEST = 6  # points under a surface
_GRID = 70
_SMOOTHING = 0.05  # the other keys move a trial off any surface over two
PREFERRED = ("loss.a", "loss.b")


def landscape_chart(sweep: Sweep, states: Mapping[str, tuple[str, str]]) -> list[Chart]:
    """The chart over a and b, or over the first two keys that are numbers; none if there are not two."""
    keys = [key for key in sweep.keys if all(_is_number(trial.parameters.get(key)) for trial in sweep.trials)]
    pair = PREFERRED if set(PREFERRED) <= set(keys) else tuple(keys[:2])
    if len(pair) < 2:
        return []
    rated, shown = sweep.rated, sweep.comparable
    values = np.array(list(shown.values()), dtype=float)
    figure = go.Figure()
    logs = [min(float(trial.parameters[key]) for trial in sweep.trials) > 0 for key in pair]
    surface = interpolate([[trial.parameters[key] for key in pair] for trial in rated], values, logs)
    colours = {"colorscale": "Viridis", "reversescale": not sweep.higher_is_better}
    if surface is not None:
        x, y, z = surface
        figure.add_contour(
            x=x,
            y=y,
            z=z,
            ncontours=14,
            hoverinfo="skip",
            line={"width": 0.5, "color": "rgba(255,255,255,0.6)"},
            zmin=values.min(),
            zmax=values.max(),
            colorbar={"title": {"text": sweep.metric}, "thickness": 14},
            **colours,
        )
    _add_trials(figure, sweep, pair, shown, colours, surface is None, states)
    for key, log, update in zip(pair, logs, (figure.update_xaxes, figure.update_yaxes), strict=True):
        update(**(log_axis(key) if log else {"title": {"text": key}}))
    note = (
        f"Colours: {sweep.comparison}. Surface: smoothed thin-plate spline through "
        "them, over whatever the other keys were; none is drawn outside the trials. Crosses have no value."
        if surface is not None
        else f"Too few trials for a surface (it takes {_FEWEST}). Crosses have no value."
    )
    return [chart(f"Landscape: {pair[0]} × {pair[1]}", note, figure, height=520)]


def interpolate(
    points: Sequence[Sequence[float]], values: np.ndarray, logs: Sequence[bool]
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Axes (n,), (n,) and surface (n, n), NaN outside the points' hull; None if they span no area or are too few.

    `logs`: which axes are logarithmic. The surface stays within the range of the values.
    """
    if len(points) < _FEWEST:
        return None
    places = np.array(points, dtype=float)
    places = np.where(logs, np.log10(np.where(logs, places, 1)), places)
    low, span = places.min(axis=0), np.ptp(places, axis=0)
    if (span == 0).any():
        return None
    unit = (places - low) / span
    try:
        hull = Delaunay(unit)
    except QhullError:
        return None
    line = np.linspace(0, 1, _GRID)
    grid = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
    centre, scale = values.mean(), np.ptp(values) or 1.0
    try:
        surface = RBFInterpolator(unit, (values - centre) / scale, smoothing=_SMOOTHING)(grid) * scale + centre
    except np.linalg.LinAlgError:  # several trials at one point
        return None
    surface = np.clip(surface, values.min(), values.max())
    surface[hull.find_simplex(grid) < 0] = np.nan
    axes = [low[axis] + line * span[axis] for axis in (0, 1)]
    x, y = (10**values_ if log else values_ for values_, log in zip(axes, logs, strict=True))
    return x, y, surface.reshape(_GRID, _GRID)


def _add_trials(
    figure: go.Figure,
    sweep: Sweep,
    pair: Sequence[str],
    shown: Mapping[str, float | None],
    colours: Mapping[str, Any],
    with_scale: bool,
    states: Mapping[str, tuple[str, str]],
) -> None:
    groups = {
        "finished": [trial for trial in sweep.rated if trial.state == "finished"],
        "ended early": [trial for trial in sweep.rated if trial.state != "finished"],
        "no value": [trial for trial in sweep.trials if trial.value is None],
    }
    symbols = {"finished": "circle", "ended early": "diamond", "no value": "x"}
    for name, found in groups.items():
        marker: dict[str, Any] = {"symbol": symbols[name], "size": 11, "line": {"color": "white", "width": 1.5}}
        if name == "no value":
            marker |= {"color": states["diverged"][0], "size": 9}
        else:
            values = [value for value in shown.values() if value is not None]
            limits = {"cmin": min(values, default=0.0), "cmax": max(values, default=1.0)}
            marker |= {"color": [shown[trial.id] for trial in found], **limits, **colours}
            if with_scale and name == "finished":
                marker["colorbar"] = _bar(sweep)
        _scatter(figure, found, pair, name, marker)
    marks = {"starting point": (sweep.start, "star", "white"), "best": (sweep.best, "circle-open", "#ef4444")}
    for name, (trial, symbol, colour) in marks.items():  # on top of the others
        if trial is not None:
            size = 19 if symbol == "circle-open" else 15
            _scatter(
                figure,
                [trial],
                pair,
                name,
                {
                    "symbol": symbol,
                    "size": size,
                    "color": colour,
                    "line": {"width": 3 if name == "best" else 1.2, "color": colour if name == "best" else INK},
                },
            )


def _scatter(
    figure: go.Figure, trials: Sequence[TrialView], pair: Sequence[str], name: str, marker: dict[str, Any]
) -> None:
    if trials:
        figure.add_scatter(
            x=[trial.parameters[pair[0]] for trial in trials],
            y=[trial.parameters[pair[1]] for trial in trials],
            mode="markers",
            name=name,
            marker=marker,
            text=[trial.tooltip for trial in trials],
            hovertemplate="%{text}<extra></extra>",
        )


def _bar(sweep: Sweep) -> dict[str, Any]:
    return {"title": {"text": sweep.metric}, "thickness": 14}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
