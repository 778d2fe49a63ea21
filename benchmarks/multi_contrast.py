"""What a second contrast is worth: the same training with a guide, without one, and with that of another person.

    python -m benchmarks.multi_contrast --heads heads --guides t2 --to DIR [--seeds 3] [--cell gaussian1d-0.3]

`--heads` are T1 heads with `splits.yaml`, `--guides` their second contrast by the same names (`larmor simulate
contrast`). Makes two data sets, `both`, and `other` in which each head is guided by another one; trains the system
`larmor` on one core; and prints mean and standard deviation over the seeds on the test split. Started again, it goes
on where it was stopped.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from larmor.commands.data import convert, held_out_subjects, is_converted
from larmor.commands.models import EvaluateOptions, evaluate, pull
from larmor.commands.training import train
from larmor.recon.evaluation.head_tissues import find_heads
from larmor.storage.conversion.convert import ConvertOptions
from larmor.tuning.search.experiment import load_sweep_experiment

CELLS = {
    "gaussian2d-0.1": ("mask.kind=gaussian2d", "mask.sampling_ratio=0.1"),
    "gaussian1d-0.3": ("mask.kind=gaussian1d", "mask.sampling_ratio=0.3"),
}
KINDS = {"without": ("both", "false"), "guide": ("both", "true"), "other": ("other", "true")}
METRICS = ("psnr", "ssim", "hfen")
SETTINGS = (
    "data.crop=[128,128]",
    "data.client=s3fs",
    "cluster.num_workers=1",
    "generator.width=8",
    "loss.adversarial=none",
    "training.backend=plain",
    "training.zero_stage=0",
    "training.validate_every=100000",
    "training.checkpoint_every=100",
)


def main() -> None:
    options = parsed()
    folder = options.to
    make_sets(options.heads, options.guides, folder)
    cells = options.cell or list(CELLS)
    for seed, cell, kind in itertools.product(range(options.seeds), cells, KINDS):
        if not options.tables:
            trained(folder, cell, kind, seed, options.steps)
    for cell in cells:
        print("\n".join(table(folder, cell, options.seeds, options.every)), flush=True)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--heads", type=Path, required=True)
    parser.add_argument("--guides", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--every", type=int, default=4, help="one slice in so many is evaluated")
    parser.add_argument("--tables", action="store_true", help="train nothing more")
    parser.add_argument("--cell", action="append", choices=CELLS)
    return parser.parse_args()


def make_sets(heads: Path, guides: Path, folder: Path) -> None:
    """`both` and `other`."""
    options = ConvertOptions(held_out=held_out_subjects(heads / "splits.yaml"))
    for name, source in (("both", guides), ("other", folder / "shuffled")):
        if is_converted(str(folder / name)):
            continue
        if name == "other":
            shuffle(guides, source)
        names = {path.name.partition(".")[0] for path in find_heads([guides])}
        guided = [head for head in find_heads([heads]) if head.name.partition(".")[0] in names]
        convert(guided, str(folder / name), options, guide=source)


def shuffle(guides: Path, folder: Path) -> None:
    """Each guide's place is taken by the next one's image, cut or padded about its centre."""
    folder.mkdir(parents=True, exist_ok=True)
    volumes: list[Any] = [nibabel.as_closest_canonical(nibabel.load(path)) for path in find_heads([guides])]
    for path, own, other in zip(find_heads([guides]), volumes, [*volumes[1:], volumes[0]], strict=True):
        image = nibabel.Nifti1Image(fitted(np.asarray(other.dataobj), own.shape), own.affine)
        original: Any = nibabel.load(path)
        from_canonical = nibabel.orientations.ornt_transform(
            nibabel.io_orientation(own.affine), nibabel.io_orientation(original.affine)
        )
        nibabel.save(image.as_reoriented(from_canonical), folder / path.name)


def fitted(image: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    for axis, wanted in enumerate(shape):
        have = image.shape[axis]
        image = np.take(image, range(max(0, (have - wanted) // 2), min(have, (have - wanted) // 2 + wanted)), axis)
        before = (wanted - image.shape[axis]) // 2
        pads = [(0, 0)] * 3
        pads[axis] = (before, wanted - image.shape[axis] - before)
        image = np.pad(image, pads)
    return image


def trained(folder: Path, cell: str, kind: str, seed: int, steps: int) -> Path:
    """The model directory of one training."""
    name = f"{cell}-{kind}-{seed}"
    model, (data, guide) = folder / "models" / name, KINDS[kind]
    if is_trained(folder, name):
        return model
    given = (f"name={name}", f"seed={seed}", f"data.url={folder / data}", f"output_url={folder / 'runs'}")
    more = (f"signal.guide={guide}", f"training.num_steps={steps}")
    experiment = load_sweep_experiment("laptop", (*given, *CELLS[cell], *SETTINGS, *more)).training_part()
    train(experiment, local=True)
    pull(experiment.run_url, model)
    return model


def is_trained(folder: Path, name: str) -> bool:
    return (folder / "models" / name / "metrics.json").exists()


def table(folder: Path, cell: str, seeds: int, every: int) -> list[str]:
    """Rows of Markdown."""
    names = {kind: [f"{cell}-{kind}-{seed}" for seed in range(seeds)] for kind in KINDS}
    models = {
        kind: [folder / "models" / name for name in given if is_trained(folder, name)] for kind, given in names.items()
    }
    both = rated(folder, "both", [*models["guide"], *models["without"]], every, ("wavelet", "total_variation"))
    other = rated(folder, "other", [*models["other"], *models["guide"]], every)
    lines = [f"| {cell} | PSNR (dB) | SSIM | HFEN |", "|---|---|---|---|"]
    lines += [row(name, [both[name]]) for name in ("zero_filled", "wavelet", "total_variation")]
    for title, kind, found in (
        ("larmor without a guide", "without", both),
        ("larmor with the guide", "guide", both),
        ("larmor trained with guides of other persons", "other", other),
        ("larmor with the guide, tested with that of another person", "guide", other),
    ):
        lines.append(row(title, [found[model.name] for model in models[kind]]))
    return lines


def rated(
    folder: Path, data: str, models: Sequence[Path], every: int, methods: Sequence[str] = ()
) -> dict[str, Mapping[str, float]]:
    """The means of each method, and of each model by its folder's name."""
    options = EvaluateOptions(methods=methods, every=every)
    (result,) = evaluate(models, str(folder / data), options, to=folder / "tables" / f"{models[0].name}-{data}").tables
    names = {f"({model.name})": model.name for model in models}
    return {names.get(method.split(" ")[-1], method): result.mean(method) for method in result.methods}


def row(title: str, means: Sequence[Mapping[str, float]]) -> str:
    cells = []
    for name, digits in zip(METRICS, (3, 4, 4), strict=True):
        values = [mean[name] for mean in means]
        spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.{digits}f}{spread}")
    return f"| {title} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
