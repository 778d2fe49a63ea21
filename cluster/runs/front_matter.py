"""The YAML at the top of a model card, for hubs: licence, library, tags, data, and the figures as `model-index`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import yaml

from larmor.recon.recipe.metric import TABLE_METRICS
from larmor.storage.objects.errors import InputError

UNKNOWN = "unknown"  # the hub's word for a licence that nobody stated
_FENCE = "---\n"
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


def front_matter(
    name: str,
    record: Mapping[str, Any],
    setting: Callable[..., Any],
    summary: Mapping[str, Any] | None,
    method: str,
) -> str:
    """The whole block with its fences. `setting` gives a key of the configuration, or its second argument.

    The figures are those of the evaluation in which the model is called `method`, else those of the validation.
    """
    kind, task = _kind(setting)
    data = _data_name(record, setting)
    results = list(_results(record, setting, summary, method, data, task))
    content = {
        "license": record.get("licence", UNKNOWN),
        "library_name": "larmor",
        **({"pipeline_tag": task} if kind != "fmri" else {}),
        "tags": list(dict.fromkeys(["larmor", kind, "medical-imaging", task, str(setting("system"))])),
        "datasets": [data],
        "metrics": list(dict.fromkeys(metric["type"] for result in results for metric in result["metrics"])),
        "model-index": [{"name": name, "results": results}],
    }
    return f"{_FENCE}{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}{_FENCE}"


def with_licence(card: str, licence: str) -> str:
    """The card with this licence in its front matter. Raises `InputError` for a word that is no licence's id."""
    if not _LICENCE.fullmatch(licence):
        raise InputError(f"licence '{licence}': is no id of a licence; write one such as apache-2.0, mit or cc-by-4.0")
    return re.sub(r"\A(---\nlicense: ).*", rf"\g<1>{licence}", card)


def _kind(setting: Callable[..., Any]) -> tuple[str, str]:
    if setting("decoding", None):
        return "fmri", "image-generation"
    return ("pet" if setting("signal.mode", None) == "pet" else "mri"), "image-to-image"


def _data_name(record: Mapping[str, Any], setting: Callable[..., Any]) -> str:
    """The last part of the data set's URL, as hubs write names: where it lies is the owner's own affair."""
    url = (record.get("origin", {}).get("data") or {}).get("url") or str(setting("data.url"))
    return re.sub(r"[^\w.-]+", "-", url.rstrip("/").rpartition("/")[2]) or "data"


def _results(
    record: Mapping[str, Any],
    setting: Callable[..., Any],
    summary: Mapping[str, Any] | None,
    method: str,
    data: str,
    task: str,
) -> Iterable[dict[str, Any]]:
    origin = record.get("origin", {})
    about = {"task": {"type": task, "name": f"system {setting('system')}"}}
    if summary:
        for cell in summary["cells"]:
            where = _data_set(data, cell["label"], summary["split"], summary.get("data_sha256"))
            yield {**about, "dataset": where, "metrics": list(_metrics(cell["mean"][method]))}
        return
    found = {key.removeprefix("val/"): value for key, value in record["metrics"].items() if key.startswith("val/")}
    mask = origin.get("mask") or {}
    label = f"{mask['kind']} {_percent(mask['sampling_ratio'])}" if mask else "as trained"
    split = str(setting("data.validation_split", "validation"))
    where = _data_set(data, label, split, (origin.get("data") or {}).get("sha256"))
    yield {**about, "dataset": where, "metrics": list(_metrics(found))}


def _percent(ratio: float | Mapping[str, float]) -> str:
    ends = (ratio["min"], ratio["max"]) if isinstance(ratio, Mapping) else (ratio,)
    return f"{' to '.join(f'{100 * end:g}' for end in ends)} %"


def _data_set(data: str, label: str, split: str, sha256: str | None) -> dict[str, Any]:
    more = {"args": {"sha256": sha256}} if sha256 else {}
    return {"type": data, "name": f"{data}, {label}", "split": split, **more}


def _metrics(figures: Mapping[str, float]) -> Iterable[dict[str, Any]]:
    for name, value in figures.items():
        if name != "seconds" and math.isfinite(value):
            title = TABLE_METRICS[name].title if name in TABLE_METRICS else name
            yield {"type": name, "name": title, "value": float(f"{value:.6g}")}
