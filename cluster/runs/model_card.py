"""`model-card.md`: what a pulled model is, for people. Made of nothing but what stands in the model directory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from larmor.cluster.runs.origin import trained_with
from larmor.recon.recipe.metric import TABLE_METRICS

_MOST_SOURCES = 40  # rows of the table of volumes; metrics.json has all
_UNKNOWN = "not recorded by the Larmor that made the run"


def write_card(folder: Path, name: str, evaluation: Path | None = None, method: str = "") -> Path:
    """Write the card of a model directory; `evaluation` is a `summary.json` in which the model is called `method`."""
    record = json.loads((folder / "metrics.json").read_text())
    content = yaml.safe_load((folder / "config.yaml").read_text())
    config = content if isinstance(content, dict) else {}
    origin = record.get("origin", {})
    summary = json.loads(evaluation.read_text()) if evaluation else None
    parts = [
        [f"# {name}", "", *_what(record, config)],
        ["## Intended use", "", *_USE],
        ["## Figures", "", *(_evaluated(summary, method) if summary else _validated(record, config))],
        ["## Data", "", *_data(origin.get("data"), config)],
        ["## Mask", "", *_mask(origin.get("mask"), config)],
        ["## Training", "", *_training(record, config)],
        ["## Made with", "", *_versions(trained_with(origin))],
        ["## Files", "", *_files(record)],
    ]
    path = folder / "model-card.md"
    path.write_text("\n\n".join("\n".join(part) for part in parts) + "\n")
    return path


_USE = (
    "Research on the reconstruction of undersampled MRI. It is **not a medical device**: a network of this kind can",
    "add what is not there and remove what is, and nothing here says how it does on other scanners, contrasts,",
    "patients, masks or ratios than those below. Do not use it for diagnosis or treatment.",
)


def _what(record: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    generator, signal = config.get("generator", {}), config.get("signal", {})
    height, width = config.get("data", {}).get("crop", ("?", "?"))
    text = (
        f"A generator that reconstructs {signal.get('mode', 'magnitude')} MR images of {height}×{width} from "
        f"undersampled k-space: system `{config.get('system', 'gan_resnet50')}`, network "
        f"`{generator.get('name', 'resnet50')}` of width {generator.get('width', '?')}, trained by Larmor. "
        f"Step {record['step']} of `{record['source'].rpartition('/checkpoints/')[0]}`, chosen by "
        f"`{record['chosen_by']}`."
    )
    lines = [text]
    if record.get("sweep"):
        values = ", ".join(
            f"`{key}` = {value:.6g}" if isinstance(value, float) else f"`{key}` = {value}"
            for key, value in record.get("parameters", {}).items()
        )
        lines += [
            "",
            f"Trial `{record['trial']}` of the sweep `{record['sweep']}`: {values or 'parameters not recorded'}.",
        ]
    for note in record.get("notes", ()):
        lines += ["", f"Note: {note}."]
    return lines


def _validated(record: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    slices = config.get("training", {}).get("validation_slices")
    found = [(key.removeprefix("val/"), value) for key, value in record["metrics"].items() if key.startswith("val/")]
    return [
        f"Of validation, while it trained ({f'{slices} evenly spaced slices' if slices else 'all slices'} of the split",
        f"`{config.get('data', {}).get('validation_split', 'validation')}`), preset `{record['preset']}`: mean over",
        "slices, target in [0, 1], data range 1. The checkpoint was chosen by them, so they flatter it, and they have",
        "no interval: `larmor evaluate` rates it on subjects that no training has seen, and writes the result here.",
        "",
        *_table(("metric", "value"), ((_title(name), _figure(name, value)) for name, value in found)),
    ]


def _evaluated(summary: Mapping[str, Any], method: str) -> list[str]:
    """Figures of an evaluation, each with its 95 % interval over subjects."""
    subjects = summary["subjects"]
    about = (
        f"Split `{summary['split']}`: {len(subjects)} subject(s), {len(summary['volumes'])} volume(s), "
        f"{summary['num_slices']} slices. Preset `{summary['preset']}`: {summary['definition']}. "
    )
    about += (
        "Mean over subjects [its 95 % interval, Student's t]." if len(subjects) > 1 else "One subject, so no interval."
    )
    lines = [about]
    for cell in summary["cells"]:
        rows = [method, *(["zero_filled"] if "zero_filled" in cell["mean"] else [])]
        names = [name for name in cell["mean"][method] if name != "seconds"]
        lines += ["", f"{cell['label']}:", ""]
        lines += _table(
            ("", *(_title(name) for name in names)),
            ((row.replace("_", "-"), *(_with_interval(cell, row, name) for name in names)) for row in rows),
        )
    return lines


def _with_interval(cell: Mapping[str, Any], method: str, name: str) -> str:
    interval = (cell.get("interval") or {}).get(method)
    text = _figure(name, cell["mean"][method][name])
    return f"{text} [{_figure(name, interval[name][0])}, {_figure(name, interval[name][1])}]" if interval else text


def _data(data: Mapping[str, Any] | None, config: Mapping[str, Any]) -> list[str]:
    if not data:
        return [f"`{config.get('data', {}).get('url', '?')}`; sources {_UNKNOWN}."]
    lines = [f"`{data['url']}`, SHA-256 of its root document `{data['sha256']}`. Split by subject:", ""]
    lines += _table(
        ("split", "subjects", "slices"),
        ((name, _listed(entry["subjects"]), str(entry["num_slices"])) for name, entry in data["splits"].items()),
    )
    split_of = {volume["name"]: name for name, entry in data["splits"].items() for volume in entry["volumes"]}
    sources = data["sources"]
    lines += [
        "",
        "Licences as the sources declare them; a licence that a package declares is no proof of the data's own.",
        "",
    ]
    lines += _table(
        ("volume", "split", "file", "package", "licence", "SHA-256"),
        (
            (
                source["volume"],
                split_of.get(source["volume"], "–"),
                source["files"][0]["file"] + (", …" if len(source["files"]) > 1 else ""),
                f"{source.get('package', '–')} {source.get('version', '')}".strip(),
                source["licence"],
                f"`{source['files'][0]['sha256']}`",
            )
            for source in sources[:_MOST_SOURCES]
        ),
    )
    if len(sources) > _MOST_SOURCES:
        licences = sorted({source["licence"] for source in sources})
        lines += [
            "",
            f"And {len(sources) - _MOST_SOURCES} more volumes, in `metrics.json`; all licences: {', '.join(licences)}.",
        ]
    return lines


def _mask(mask: Mapping[str, Any] | None, config: Mapping[str, Any]) -> list[str]:
    if not mask:
        wanted = config.get("mask", {})
        return [f"`{wanted.get('kind', '?')}`, ratio {wanted.get('sampling_ratio', '?')}; pattern {_UNKNOWN}."]
    which = "a mask of its own for every slice; of the first one" if mask["per_slice"] else "one for all slices;"
    return [
        f"`{mask['kind']}`, {100 * mask['achieved_ratio']:.3f} % of k-space measured (wanted: "
        f"{100 * mask['sampling_ratio']:g} %), fully sampled centre {100 * mask['center_fraction']:g} % of an axis, "
        f"seed {mask['seed']}; {which} the pattern's SHA-256 is `{mask['sha256']}`."
    ]


def _training(record: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    training, critic, loss = (config.get(name, {}) for name in ("training", "critic", "loss"))
    batch = training.get("global_batch_size")
    rows = [
        ("generator steps until this checkpoint", str(record["step"])),
        ("planned generator steps", str(training.get("num_steps", "?"))),
        ("slices per step", str(batch or "?")),
        ("images seen by the generator", str(record["step"] * batch) if batch else "?"),
        (
            "critic steps per generator step",
            str(critic.get("steps", "?")) if loss.get("adversarial") != "none" else "–",
        ),
        ("precision", str(training.get("dtype", "?"))),
        ("workers", str(config.get("cluster", {}).get("num_workers", "?"))),
        ("seed", str(config.get("seed", "?"))),
    ]
    if "seconds" in record:
        rows.insert(4, ("seconds, start-up included", f"{record['seconds']:.0f}"))
    return [*_table(("", ""), rows), "", "`config.yaml` holds all of it."]


def _versions(environments: Sequence[Mapping[str, str]]) -> list[str]:
    if not environments:
        return [f"Versions were {_UNKNOWN}."]
    head = ("", *(f"start {number}" for number in range(1, len(environments) + 1)))
    names = list(dict.fromkeys(name for environment in environments for name in environment))
    rows = ((name, *(environment.get(name, "–") for environment in environments)) for name in names)
    return _table(head if len(environments) > 1 else ("", "version"), rows)


def _files(record: Mapping[str, Any]) -> list[str]:
    rows = ((f"`{name}`", f"`{digest}`") for name, digest in record["sha256"].items())
    return [
        *_table(("file", "SHA-256"), rows),
        "",
        "`from larmor import load_model` gives the generator as a `torch.nn.Module`.",
    ]


def _title(name: str) -> str:
    return TABLE_METRICS[name].title if name in TABLE_METRICS else name


def _figure(name: str, value: float) -> str:
    if name not in TABLE_METRICS:
        return f"{value:.4g}"
    metric = TABLE_METRICS[name]
    return f"{metric.write(value)} {metric.unit}".strip()


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:12])
    return f"{len(names)}: {shown}{', …' if len(names) > 12 else ''}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(head), line(["---"] * len(head)), *map(line, rows)]
