"""Evaluations as tables: for the terminal, as CSV, Markdown and LaTeX, beside the paper's own figures."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from larmor.recon.evaluation.calibration import describe_calibration, mean_calibration, write_calibration
from larmor.recon.evaluation.evaluate import Evaluation
from larmor.recon.evaluation.segmentation_figure import write_segmentation_figure
from larmor.recon.inference.figures import Example, comparison
from larmor.recon.inference.inference import ZERO_FILLED, Physics
from larmor.recon.inference.residual import describe_share
from larmor.recon.inference.slices_page import example_stack, write_page
from larmor.recon.physics.masks import describe_mask
from larmor.recon.recipe.metric import METRICS, PRESETS, to_record
from larmor.storage.dataset.dataset import SplitInfo
from larmor.storage.objects.text_table import aligned

# Tables I to VI: (size, ratio) → system → PSNR in dB and SSIM, on the paper's own heads and with its unnamed mask
PAPER: Mapping[tuple[tuple[int, int], float], Mapping[str, tuple[float, float]]] = {
    ((256, 256), 0.1): {"dagan": (30.272, 0.891), "wdagan": (31.689, 0.920), "gan_resnet50": (35.281, 0.950)},
    ((256, 256), 0.5): {"dagan": (44.939, 0.954), "wdagan": (39.976, 0.990), "gan_resnet50": (50.111, 0.998)},
    ((64, 128), 0.1): {"dagan": (24.22, 0.744), "wdagan": (24.90, 0.765), "gan_resnet50": (27.8, 0.789)},
    ((64, 128), 0.5): {"dagan": (38.1, 0.973), "wdagan": (38.4, 0.975), "gan_resnet50": (40.4, 0.981)},
    ((128, 256), 0.1): {"dagan": (28.3, 0.886), "wdagan": (30.1, 0.915), "gan_resnet50": (37.4, 0.953)},
    ((128, 256), 0.5): {"dagan": (39.7, 0.969), "wdagan": (43.1, 0.981), "gan_resnet50": (50.3, 0.991)},
}
PAPER_NOTE = "paper: its own figures, on unpublished heads with an unpublished mask"


def table_text(result: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Heading and rows of one evaluation, as text. The paper's column stands where it has this size and ratio."""
    is_mri = result.physics.signal.modality == "mri"
    least, largest = result.physics.mask.ratios
    theirs = PAPER.get((result.physics.crop, round(least, 6)), {}) if is_mri and least == largest else {}
    heading = [
        "",
        *(metric.heading for metric in result.metrics.values()),
        "ms/image",
        *(["paper: dB / SSIM"] if theirs else []),
    ]
    rows = []
    for method in result.methods:
        mean, interval = result.mean(method), result.interval(method)
        row = [result.title(method)]
        for name, metric in result.metrics.items():
            write = metric.write
            row.append(
                write(mean[name]) + (f" [{write(interval[name][0])}, {write(interval[name][1])}]" if interval else "")
            )
        row.append(f"{mean['seconds'] * 1000:.1f}" if mean["seconds"] else "–")
        if theirs:
            row.append("{:g} / {:g}".format(*theirs[method]) if method in theirs else "–")
        rows.append(row)
    return heading, rows


def caption(result: Evaluation) -> str:
    """What the figures of one evaluation are of."""
    subjects = len(set(result.subject_of.values()))
    slices = _counted(len(result.slices) // len(result.methods), "slice")
    if result.every > 1:
        one = "one stack" if result.physics.stack > 1 else "one"
        slices += f", {one} in {result.every} of each volume, the same ones in every row"
    parts = [_counted(len(result.subject_of), "volume"), slices]
    if result.num_constant:
        parts.append(f"{result.num_constant} constant ones left out")
    spread = "; [95 % interval of that mean, Student's t]" if subjects > 1 else "; one subject, so no interval"
    return (
        f"{result.label}: mean over {_counted(subjects, 'subject')} ({', '.join(parts)}); "
        f"preset '{result.preset}': {PRESETS[result.preset]}{spread}"
    )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def text_table(result: Evaluation) -> list[str]:
    """The lines that `larmor evaluate` prints, the gain over zero-filled last."""
    heading, rows = table_text(result)
    lines = [caption(result), *aligned([heading, *rows], first_right=1)]
    lines += [f"measured points changed by {name}: {describe_share(one)}" for name, one in result.residuals.items()]
    zero_filled = result.mean(ZERO_FILLED)
    for method in result.methods[1:]:
        gain = {name: result.mean(method)[name] - zero_filled[name] for name in ("psnr", "ssim")}
        lines.append(f"gain of {method}: {gain['psnr']:+.3f} dB, SSIM {gain['ssim']:+.4f}")
    if result.calibrations:
        lines.append(describe_calibration(len(result.members), result.calibrations))
    return lines


def markdown(results: Sequence[Evaluation]) -> str:
    """All cells as one Markdown document, best figures bold."""
    parts = []
    for result in results:
        heading, rows = table_text(result)
        rows = _emphasised(result, rows, "**{}**".format)
        lines = [f"### {caption(result)}", "", _bars(heading), _bars(["---"] * len(heading)), *map(_bars, rows)]
        parts.append("\n".join(lines))
    if any(_is_papers(result) for result in results):
        parts.append(PAPER_NOTE)
    return "\n\n".join(parts) + "\n"


def latex(results: Sequence[Evaluation]) -> str:
    """All cells as LaTeX tables (booktabs), best figures bold."""
    parts = []
    for result in results:
        heading, rows = table_text(result)
        rows = _emphasised(result, [[_escaped(cell) for cell in row] for row in rows], "\\textbf{{{}}}".format)
        body = [" & ".join(row) + r" \\" for row in rows]
        note = caption(result) + ("; " + PAPER_NOTE if _is_papers(result) else "")
        parts.append(
            "\n".join(
                [
                    r"\begin{table}",
                    rf"\caption{{{_escaped(note)}}}",
                    rf"\begin{{tabular}}{{l{'r' * (len(heading) - 1)}}}",
                    r"\toprule",
                    " & ".join(map(_escaped, heading)) + r" \\",
                    r"\midrule",
                    *body,
                    r"\bottomrule",
                    r"\end{tabular}",
                    r"\end{table}",
                ]
            )
        )
    return "\n\n".join(parts) + "\n"


def write_csv(results: Sequence[Evaluation], path: Path) -> None:
    """One line per slice and method, then one per volume (slice empty), with size, mask and preset in every line."""
    columns = list(dict.fromkeys([*METRICS, *(name for result in results for name in result.metrics)]))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        head = ["height", "width", "mask", "sampling_ratio", "volume", "subject", "slice", "method", "preset"]
        writer.writerow([*head, *columns, "seconds_per_image"])
        for result in results:
            mask = result.physics.mask
            cell = [*result.physics.crop, mask.kind, "-".join(map(str, dict.fromkeys(mask.ratios)))]
            for row in [*result.slices, *result.volumes]:
                # a single slice is always evaluated as preset `paper` does; `fastmri` evaluates volumes
                preset = "paper" if row.slice_index is not None else result.preset
                place = "" if row.slice_index is None else row.slice_index
                values = [f"{row.metrics[name]:.6g}" if name in row.metrics else "" for name in columns]
                who = [row.volume, result.subject_of[row.volume], place, row.method, preset]
                writer.writerow([*cell, *who, *values, f"{row.seconds:.6g}"])


def write_tables(results: Sequence[Evaluation], folder: Path, about: str = "") -> None:
    """`metrics.csv`, `tables.md` (with `about` above) and `tables.tex`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(results, folder / "metrics.csv")
    (folder / "tables.md").write_text(f"{about}\n\n{markdown(results)}" if about else markdown(results))
    (folder / "tables.tex").write_text(latex(results))


def write_evaluation(
    results: Sequence[Evaluation], info: SplitInfo, models: Mapping[str, Any], folder: Path
) -> list[Path]:
    """Write `metrics.csv`, `summary.json`, `tables.md`, `tables.tex` and a figure for each cell; returns the files.

    `models` is what is known of each model's origin, by its name in the tables.
    """
    write_tables(results, folder)
    cells, figures = [], []
    for result in results:
        figure = f"comparison-{slug(result.physics)}.png"
        comparison([_titled(result, example) for example in result.examples], folder / figure)
        page = figure.replace(".png", ".html")
        write_page(folder / page, result.label, [example_stack(result.label, result.examples)])
        figures += [figure, page]
        if result.segmented:
            figures.append(f"segmentation-{slug(result.physics)}.png")
            write_segmentation_figure(result.segmented, folder / figures[-1])
        more: dict[str, Any] = {}
        if result.calibrations:
            figures.append(f"calibration-{slug(result.physics)}.png")
            write_calibration(result.calibrations, folder / figures[-1])
            more = {"uncertainty": {"models": list(result.members), **mean_calibration(result.calibrations)}}
        cells.append(
            {
                "label": result.label,
                "caption": caption(result),
                "size": list(result.physics.crop),
                "mask": describe_mask(result.physics.mask, result.physics.crop),
                "signal": result.physics.signal.model_dump(),
                "stack": result.physics.stack,
                "mean": {method: result.mean(method) for method in result.methods},
                "interval": {method: result.interval(method) for method in result.methods},
                "residual": dict(result.residuals),
                "figure": figure,
                "page": page,
                **more,
            }
        )
    own = {name: to_record(metric) for result in results for name, metric in result.own.items()}
    summary = {
        "preset": results[0].preset,
        "definition": PRESETS[results[0].preset],
        "split": info.name,
        "data_sha256": info.identity,
        "volumes": list(info.volumes),
        "subjects": list(info.subjects),
        "num_slices": info.num_slices,
        "cells": cells,
        **({"metrics": own} if own else {}),
        "models": dict(models),
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2))
    names = ["metrics.csv", "summary.json", "tables.md", "tables.tex", *figures]
    return [folder / name for name in names]


def slug(physics: Physics) -> str:
    """Size and mask as a part of a file's name, with a checksum: masks differ in more than kind and ratio."""
    height, width = physics.crop
    mask = physics.mask
    stack = [physics.stack] if physics.stack > 1 else []
    whole = repr((mask.model_dump(), physics.signal.model_dump(), *stack)).encode()
    checksum = hashlib.sha256(whole).hexdigest()[:8]
    ratios = "-".join(f"{100 * ratio:g}" for ratio in dict.fromkeys(mask.ratios))
    what = "pet" if physics.signal.mode == "pet" else f"{mask.kind.replace(':', '.')}-{ratios}"
    return f"{height}x{width}-{what}-{checksum}"


def _titled(result: Evaluation, example: Example) -> Example:
    return replace(example, images={result.title(name): image for name, image in example.images.items()})


def _is_papers(result: Evaluation) -> bool:
    return table_text(result)[0][-1].startswith("paper")


def _emphasised(result: Evaluation, rows: list[list[str]], emphasis: Callable[[str], str]) -> list[list[str]]:
    """The best figure of each metric is marked."""
    means = [result.mean(method) for method in result.methods]
    for column, (name, metric) in enumerate(result.metrics.items(), start=1):
        sign = 1 if metric.higher_is_better else -1
        best = max(range(len(rows)), key=lambda row: sign * means[row][name])
        rows[best][column] = emphasis(rows[best][column])
    return rows


def _bars(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _escaped(text: str) -> str:
    for plain, written in (
        ("\\", r"\textbackslash "),
        *((sign, f"\\{sign}") for sign in "_%&#$"),
        ("×", r"$\times$"),
        ("–", "--"),
    ):
        text = text.replace(plain, written)
    return text
