"""How much each searched key matters, from a study rebuilt of a sweep's trials."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from larmor.tuning.report.charts import COLOURS, Chart, chart
from larmor.tuning.report.trial_records import Sweep
from larmor.tuning.search.space import parse_dimension

FEWEST = 10  # trials; of fewer the figures are noise
_BEST_SHARE = 0.25  # the trials that count as good ones


@dataclass(frozen=True)
class Importance:
    """Of one key: its share of the importance of all keys, and the rank correlation of key and metric (None: words)."""

    key: str
    share: float
    correlation: float | None


def importance(sweep: Sweep) -> list[Importance]:
    """Of every searched key, the most important first; empty for fewer than `FEWEST` trials with a value.

    The share is PED-ANOVA's (Watanabe et al., 2023, as Optuna has it): how far the best quarter of the trials differs
    from all of them along the key. It needs no more than SciPy, and copes with trials that a sampler has chosen.
    Compared are `sweep.comparable` values.
    """
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize" if sweep.higher_is_better else "minimize")
    distributions = {key: parse_dimension(key, text).distribution() for key, text in sweep.space.items()}
    values = sweep.comparable
    for trial in sweep.rated:
        params, value = dict(trial.parameters), values[trial.id]
        try:
            study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=value))
        except ValueError:
            continue  # outside of the space: it was searched with another one before
    if len(study.trials) < FEWEST:
        return []
    with _quiet():
        shares = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(target_quantile=_BEST_SHARE))
    return [Importance(key, share, _correlation(sweep, key)) for key, share in shares.items()]


def importance_chart(found: Sequence[Importance], comparison: str) -> list[Chart]:
    if not found:
        return []
    figure = go.Figure()
    ordered = list(reversed(found))
    figure.add_bar(
        x=[item.share for item in ordered],
        y=[item.key for item in ordered],
        orientation="h",
        marker={"color": COLOURS[0]},
        text=[f"{item.share:.0%}" for item in ordered],
        textposition="outside",
        cliponaxis=False,
        hoverinfo="skip",
    )
    figure.update_xaxes(tickformat=".0%", range=[0, max(item.share for item in found) * 1.15])
    signs = [f"{item.key} {item.correlation:+.2f}" for item in found if item.correlation is not None]
    note = (
        "PED-ANOVA: how far the best quarter of the trials differs from all trials along each key. "
        f"Rank correlation with the metric: {', '.join(signs)}. Metric: {comparison}."
    )
    return [chart("Importance of each key", note, figure, height=380, width="half")]


def _quiet() -> Any:
    import warnings

    return warnings.catch_warnings(action="ignore")  # optuna's "experimental"


def _correlation(sweep: Sweep, key: str) -> float | None:
    import scipy.stats

    rated = [trial for trial in sweep.rated if isinstance(trial.parameters.get(key), int | float)]
    if len(rated) < len(sweep.rated):
        return None
    values = sweep.comparable
    found = scipy.stats.spearmanr([trial.parameters[key] for trial in rated], [values[trial.id] for trial in rated])
    return None if math.isnan(found.statistic) else float(found.statistic)
