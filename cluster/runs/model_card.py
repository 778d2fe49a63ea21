"""`model-card.md`: what a pulled model is, for people. Made of nothing but what stands in the model directory.

The text is the template `model-card.md` beside this file; here are the rows of its tables.
"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import jinja2
import yaml

from larmor.cluster.runs.front_matter import front_matter
from larmor.cluster.runs.origin import trained_with
from larmor.recon.recipe.metric import TABLE_METRICS
from larmor.recon.recipe.own_name import short_name

_MOST_SOURCES = 40  # rows of the table of volumes; metrics.json has all
_UNKNOWN = "not recorded by the Larmor that made the run"

Row = tuple[str, ...]


def write_card(folder: Path, name: str, evaluation: Path | None = None, method: str = "") -> Path:
    """Write the card of a model directory; `evaluation` is a `summary.json` in which the model is called `method`."""
    record = json.loads((folder / "metrics.json").read_text())
    content = yaml.safe_load((folder / "config.yaml").read_text())
    setting = _Settings(content if isinstance(content, dict) else {})
    origin = record.get("origin", {})
    data, environments = origin.get("data"), trained_with(origin)
    summary = json.loads(evaluation.read_text()) if evaluation else None
    text = _template().render(
        front_matter=front_matter(name, record, setting, summary, method),
        name=name,
        record=record,
        setting=setting,
        unknown=_UNKNOWN,
        parameters=", ".join(_parameter(*item) for item in record.get("parameters", {}).items()),
        summary=summary,
        cells=[
            (cell.get("caption", cell["label"]), *_evaluated(cell, method, summary["models"]))
            for cell in summary["cells"]
        ]
        if summary
        else [],
        validated=[(_title(key), _figure(key, value)) for key, value in _validated(record)],
        data=data,
        splits=_splits(data) if data else [],
        sources=_sources(data) if data else [],
        num_more=len(data["sources"]) - _MOST_SOURCES if data else 0,
        mask=origin.get("mask"),
        decoding=setting("decoding", None),
        pet=setting("signal.mode", None) == "pet" and setting("signal.pet"),
        training=_training(record, setting),
        initial=origin.get("initial"),
        taken=_taken(origin["initial"]) if "initial" in origin else [],
        environments=environments,
        versions=_versions(environments),
        files=[(f"`{file}`", f"`{digest}`") for file, digest in record["sha256"].items()],
    )
    path = folder / "model-card.md"
    path.write_text(text)
    return path


class _Settings:
    """What `config.yaml` says of a dotted key, or "?": an older Larmor may have written it."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        self._content = content

    def __call__(self, key: str, default: Any = "?") -> Any:
        *sections, name = key.split(".")
        return reduce(lambda part, section: part.get(section, {}), sections, self._content).get(name, default)


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )  # Markdown: nothing is escaped but what would end a cell
    environment.filters["cell"] = lambda text: text.replace("|", "\\|")
    environment.filters["rule"] = lambda _: "---"
    text = importlib.resources.files("larmor.cluster.runs").joinpath("model-card.md").read_text(encoding="utf-8")
    return environment.from_string(text)


def _parameter(key: str, value: Any) -> str:
    return f"`{key}` = {value:.6g}" if isinstance(value, float) else f"`{key}` = {value}"


def _validated(record: Mapping[str, Any]) -> Iterable[tuple[str, float]]:
    return ((key.removeprefix("val/"), value) for key, value in record["metrics"].items() if key.startswith("val/"))


def _evaluated(cell: Mapping[str, Any], method: str, models: Collection[str]) -> tuple[Row, list[Row]]:
    """Heading and rows of one cell of an evaluation: the model, and below it methods without training."""
    methods = [method, *(name for name in cell["mean"] if name not in models)]
    names = [name for name in cell["mean"][method] if name != "seconds"]
    is_pet = cell.get("signal", {}).get("mode") == "pet"  # there zero-filled is filtered back-projection
    titles = {"zero_filled": "FBP"} if is_pet else {}
    rows: list[Row] = [(titles.get(row, row), *(_with_interval(cell, row, name) for name in names)) for row in methods]
    return ("", *(_title(name) for name in names)), rows


def _with_interval(cell: Mapping[str, Any], method: str, name: str) -> str:
    interval = (cell.get("interval") or {}).get(method)
    text = _figure(name, cell["mean"][method][name])
    return f"{text} [{_figure(name, interval[name][0])}, {_figure(name, interval[name][1])}]" if interval else text


def _splits(data: Mapping[str, Any]) -> list[Row]:
    return [(name, _listed(entry["subjects"]), str(entry["num_slices"])) for name, entry in data["splits"].items()]


def _sources(data: Mapping[str, Any]) -> list[Row]:
    split_of = {volume["name"]: name for name, entry in data["splits"].items() for volume in entry["volumes"]}
    return [
        (
            source["volume"],
            split_of.get(source["volume"], "–"),
            source["files"][0]["file"] + (", …" if len(source["files"]) > 1 else ""),
            f"{source.get('package', '–')} {source.get('version', '')}".strip(),
            source["licence"],
            f"`{source['files'][0]['sha256']}`",
        )
        for source in data["sources"][:_MOST_SOURCES]
    ]


def _training(record: Mapping[str, Any], setting: _Settings) -> list[Row]:
    batch = setting("training.global_batch_size", None)
    batch = batch and batch * setting("data.stack", 1)
    critic_steps = setting("critic.steps") if setting("loss.adversarial") != "none" else "–"
    rows: list[Row] = [
        ("generator steps until this checkpoint", str(record["step"])),
        ("planned generator steps", str(setting("training.num_steps"))),
        ("slices per step", str(batch or "?")),
        ("images seen by the generator", str(record["step"] * batch) if batch else "?"),
        ("critic steps per generator step", str(critic_steps)),
        ("precision", str(setting("training.dtype"))),
        ("workers", str(setting("cluster.num_workers"))),
        ("seed", str(setting("seed"))),
    ]
    if "seconds" in record:
        rows.insert(4, ("seconds, start-up included", f"{record['seconds']:.0f}"))
    return rows


def _taken(initial: Mapping[str, Any]) -> list[Row]:
    return [
        (name, str(item["tensors"]), str(item["of_tensors"]), f"{100 * item['parameters']:.4g} %")
        for name, item in initial["networks"].items()
    ]


def _versions(environments: Sequence[Mapping[str, str]]) -> tuple[Row, list[Row]]:
    """A column of versions, or one for each start that had others."""
    head = [f"start {number}" for number in range(1, len(environments) + 1)]
    names = dict.fromkeys(name for environment in environments for name in environment)
    rows: list[Row] = [(name, *(environment.get(name, "–") for environment in environments)) for name in names]
    return ("", *(head if len(head) > 1 else ["version"])), rows


def _title(name: str) -> str:
    return TABLE_METRICS[name].title if name in TABLE_METRICS else short_name(name)


def _figure(name: str, value: float) -> str:
    if name not in TABLE_METRICS:
        return f"{value:.4g}"
    metric = TABLE_METRICS[name]
    return f"{metric.write(value)} {metric.unit}".strip()


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:12])
    return f"{len(names)}: {shown}{', …' if len(names) > 12 else ''}"
