"""What an evaluation of decoding is written as: a table, its numbers, and a picture."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from larmor.recon.decoding.evaluate import DecodingEvaluation
from larmor.recon.decoding.scores import NUM_PERMUTATIONS
from larmor.storage.objects.text_table import aligned

HEADING = "Decoding, not reconstruction"
_HEAD = ("method", "identification", "p", "correlation", "SSIM")
_SHOWN = 12  # trials in the picture


def table_rows(result: DecodingEvaluation) -> list[tuple[str, ...]]:
    """A row for each method, below the heading."""
    rows = [
        (
            name,
            f"{found.identification:.3f}",
            f"{found.p:.4f}",
            f"{found.correlation:.3f}",
            f"{found.metrics['ssim']:.3f}",
        )
        for name, found in result.scores.items()
    ]
    return [_HEAD, *rows]


def caption(result: DecodingEvaluation, stimuli: str) -> str:
    """What the figures are of, and how they are defined."""
    runs = len(np.unique(result.trials.run))
    kinds = len(np.unique(result.trials.stimulus.reshape(len(result.trials.run), -1), axis=0))
    return (
        f"{HEADING}: pictures from fMRI, {len(result.trials.run)} held-out trials of {runs} runs with {kinds} "
        f"different stimuli, by {result.num_models} training(s). Stimuli: {stimuli}. identification: how often a "
        "picture correlates more with its own stimulus than with another one (chance 0.5); p: by "
        f"{NUM_PERMUTATIONS} permutations of the stimuli within runs; correlation: of pixels; SSIM: window 7, range 1."
    )


def text_lines(result: DecodingEvaluation, stimuli: str) -> list[str]:
    """What the command prints."""
    return [caption(result, stimuli), *aligned(table_rows(result), first_right=1)]


def write_report(result: DecodingEvaluation, stimuli: str, folder: Path) -> list[Path]:
    """`decoding.md`, `decoding.json` and `decoding.png` in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    head, *rows = table_rows(result)
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    markdown = folder / "decoding.md"
    markdown.write_text(f"{caption(result, stimuli)}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines))
    numbers = folder / "decoding.json"
    content = {
        "task": HEADING,
        "stimuli": stimuli,
        "num_trials": len(result.trials.run),
        "runs": sorted({int(run) for run in result.trials.run}),
        "scores": {name: dataclasses.asdict(found) for name, found in result.scores.items()},
    }
    numbers.write_text(json.dumps(content, indent=1))
    picture = folder / "decoding.png"
    _draw(result, picture)
    return [markdown, numbers, picture]


def _draw(result: DecodingEvaluation, path: Path) -> None:
    """Evenly spaced trials, a column each: the stimulus, and below it what each method makes of the trial."""
    chosen = np.unique(np.linspace(0, len(result.trials.run) - 1, _SHOWN).round().astype(int))
    rows = {"stimulus": result.trials.stimulus, **result.images}
    figure = Figure(figsize=(1.0 * len(chosen) + 0.9, 1.05 * len(rows) + 0.4))
    figure.suptitle(HEADING, fontsize=8)
    for number, (name, images) in enumerate(rows.items()):
        for column, trial in enumerate(chosen):
            axes = figure.add_subplot(len(rows), len(chosen), number * len(chosen) + column + 1)
            axes.imshow(images[trial, 0], cmap="gray", vmin=0, vmax=1)
            axes.set_xticks([])
            axes.set_yticks([])
            if column == 0:
                axes.set_ylabel(name, fontsize=7)
            if number == 0:
                axes.set_title(f"run {result.trials.run[trial]}", fontsize=6)
    figure.tight_layout(pad=0.4)
    figure.savefig(path, dpi=110)
