"""What is said of trials whose parameters are numbers, zero, or words."""

from __future__ import annotations

from typing import Any

from tuning.report import sweep_charts
from tuning.sweep import describe_trial


def trial(name: str, psnr: float, **parameters: Any) -> dict[str, Any]:
    return {"id": name, "parameters": parameters, "metrics": {"val/psnr": psnr}, "state": "finished", "seconds": 3.0}


TRIALS = [
    trial("one", 28.0, a=15.0, kind="wasserstein", b=0.0),
    trial("two", 29.0, a=0.123456, kind="bce", b=1.0),
]


def test_a_trial_is_described_whatever_its_values_are() -> None:
    line = describe_trial(TRIALS[1], "psnr")
    assert "a = 0.1235, kind = bce, b = 1 → val/psnr 29.0000" in line


def test_axes_fit_their_values() -> None:
    charts = {chart["title"]: chart["html"] for chart in sweep_charts(TRIALS, "val/psnr")}
    expected = {"a": "log", "kind": "category", "b": "linear"}
    for key, scale in expected.items():
        assert f'"type":"{scale}"' in charts[f"Sweep: val/psnr against {key}"]
    assert '"type":"category"' in charts["Sweep: a × kind"]
