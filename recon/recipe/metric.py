"""One table of the metrics: how each is called, written, read and defined.

A metric is one entry of `METRICS` and one value of `slice_metrics` and `volume_metrics` (`metrics.py`); validation,
tables, model card, console, report, configuration and `larmor pull` take its name, title, format and direction from the
entry. Two presets, because SSIM's data range alone moves it by 0.07–0.22.

A metric of one's own is named `MODULE:NAME` throughout, and says itself what an entry says (`own_metric.py`). Its run
records that, so that whoever reads the run needs no code.

Importing this file is cheap: the table serves the command line and `larmor pull`, where NumPy may not be installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from larmor.recon.recipe.own_name import declared_parts, is_own, short_name
from larmor.storage.objects.errors import InputError

Preset = Literal["paper", "fastmri"]
PRESETS: dict[Preset, str] = {
    "paper": "per slice, target in [0, 1], data range 1, SSIM window 7, mean over slices",
    "fastmri": "per volume, data range = maximum of the volume, NMSE without root, SSIM window 7",
}
DICE = "dice"


@dataclass(frozen=True)
class Metric:
    """How a metric is called, written and read: `format` in a table; `brief` in a log line, if it stands there."""

    title: str
    format: str
    higher_is_better: bool
    definition: str
    unit: str = ""
    brief: str = ""

    @property
    def heading(self) -> str:
        """The title with the unit, as a table has it."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    @property
    def direction(self) -> str:
        return "Higher is better" if self.higher_is_better else "Lower is better"

    def write(self, value: float) -> str:
        """A value without its unit."""
        return self.format.format(value)


METRICS: Mapping[str, Metric] = {
    "psnr": Metric("PSNR", "{:.3f}", True, "10·log₁₀(data range² / MSE)", "dB", "PSNR {:.2f} dB"),
    "ssim": Metric(
        "SSIM", "{:.4f}", True, "structural similarity, uniform window of 7 (Wang et al., 2004)", "", "SSIM {:.4f}"
    ),
    "mse": Metric("MSE", "{:.4g}", False, "mean of the squared error"),
    "rmse": Metric("RMSE", "{:.4g}", False, "√MSE"),
    "nmse": Metric("NMSE", "{:.4g}", False, "‖error‖² / ‖target‖²"),
    "hfen": Metric(
        "HFEN",
        "{:.4f}",
        False,
        "‖LoG(error)‖ / ‖LoG(target)‖, Laplacian of Gaussian of 15×15 with σ = 1.5 (Ravishankar & Bresler, 2011)",
        brief="HFEN {:.4f}",
    ),
    "gmsd": Metric(
        "GMSD",
        "{:.4f}",
        False,
        "standard deviation of the gradients' similarity over the image, at half size (Xue et al., 2014)",
        brief="GMSD {:.4f}",
    ),
}
HIGHER_IS_BETTER: Mapping[str, bool] = {name: metric.higher_is_better for name, metric in METRICS.items()}
# what a table of an evaluation may hold: validation has no segmentation
TABLE_METRICS: Mapping[str, Metric] = {
    **METRICS,
    DICE: Metric("Dice", "{:.4f}", True, "mean overlap of three tissues with the target's segmentation"),
}


def check_preset(name: str) -> Preset:
    """The preset of that name. Raises `InputError` for another name."""
    for preset in PRESETS:
        if preset == name:
            return preset
    raise InputError(f"preset '{name}': choose one of {', '.join(PRESETS)}")


def check_metric(name: str) -> str:
    """`psnr` or `val/psnr` → "psnr"; `MODULE:NAME` stays, and the name that a package gives to one becomes that.

    Raises `InputError` for an unknown metric.
    """
    short = name.removeprefix("val/")
    if short in METRICS or is_own(short):
        return short
    installed = declared_parts("larmor.metrics")
    if short not in installed:
        raise InputError(
            f"'{name}' is not a validation metric; choose one of {', '.join([*METRICS, *sorted(installed)])}, or "
            "MODULE:NAME of your own code"
        )
    return installed[short]


def own_entry(title: str, higher_is_better: bool, definition: str = "", unit: str = "") -> Metric:
    """The entry of a metric of one's own."""
    plain = title.replace("{", "{{").replace("}", "}}")
    return Metric(title, "{:.4g}", higher_is_better, definition, unit, f"{plain} {{:.4g}}")


def to_record(metric: Metric) -> dict[str, Any]:
    """What a run records of a metric of one's own."""
    return {
        "title": metric.title,
        "higher_is_better": metric.higher_is_better,
        "definition": metric.definition,
        "unit": metric.unit,
    }


def from_record(record: Mapping[str, Any]) -> Metric:
    """The inverse of `to_record`."""
    title, higher = str(record["title"]), bool(record["higher_is_better"])
    return own_entry(title, higher, str(record["definition"]), str(record["unit"]))


def brief_figures(figures: Mapping[str, float]) -> str:
    """The metrics among `figures` (`val/psnr` → value) that stand in one line: `PSNR 30.12 dB, SSIM 0.9000`."""
    named = [(metric.brief, figures.get(f"val/{name}")) for name, metric in METRICS.items()]
    named.append(("identification {:.3f}", figures.get("val/identification")))  # of a decoding alone
    own = [key for key in figures if is_own(key.removeprefix("val/"))]
    named += [(f"{short_name(key)} {{:.4g}}", figures[key]) for key in own]
    return ", ".join(brief.format(value) for brief, value in named if brief and value is not None)
