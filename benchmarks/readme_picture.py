"""The picture on top of the README: one slice by every method of its table, with error maps.

    cd build/demo
    python -m benchmarks.readme_picture gan_resnet50 model s3://larmor/heads --to ../../docs/pictures/readme.png

`make demo` has to run first. `--slice` is the slice's place in its volume, as a fraction. `--rows` cuts it: the
default leaves out the lower half of the head, with the face.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from larmor.recon.evaluation.methods import named, table_cells
from larmor.recon.inference.inference import reconstruct_split
from larmor.recon.inference.metrics import slice_metrics
from larmor.recon.models.model import load_model
from larmor.storage.loading.config import DataConfig, open_reader
from larmor.storage.objects.default_store import use_embedded_store

GAIN = 10
TITLES = {
    "zero_filled": "zero-filled",
    "total_variation": "total variation",
    "gan_resnet50": "GAN-ResNet50 (paper)",
    "larmor": "larmor",
}


def draw(target: np.ndarray, images: dict[str, np.ndarray], rows: slice, path: Path) -> None:
    """Target and images (height, width) in [0, 1] beside each other, errors × `GAIN` below."""
    shown = {"target": target, **images}
    height, width = target[rows].shape
    figure = Figure(figsize=(2 * len(shown), 2 * (2 * height / width + 0.25)), facecolor="black")
    for place, (name, image) in enumerate(shown.items()):
        above = figure.add_subplot(2, len(shown), place + 1)
        above.imshow(image[rows], cmap="gray", vmin=0, vmax=1)
        psnr = "" if name == "target" else f"\n{slice_metrics(target, image)['psnr']:.1f} dB"
        above.set_title(f"{TITLES.get(name, name)}{psnr}", fontsize=9, color="white")
        above.axis("off")
        below = figure.add_subplot(2, len(shown), len(shown) + place + 1)
        below.axis("off")
        if name == "target":
            below.text(0.5, 0.5, f"error × {GAIN}", color="white", ha="center", va="center", fontsize=9)
        else:
            below.imshow(GAIN * np.abs(target - image)[rows], cmap="gray", vmin=0, vmax=1)
    figure.tight_layout(pad=0.2)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="model directories, made by `larmor pull`")
    parser.add_argument("data", help="the data set")
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--slice", type=float, default=0.5)
    parser.add_argument("--rows", type=float, nargs=2, default=(0.0, 0.55), help="part of the height, from the top")
    options = parser.parse_args()
    use_embedded_store()
    models = named([load_model(Path(folder)) for folder in options.models])
    (cell,) = table_cells(models, ["total_variation"])
    reader = open_reader(DataConfig(url=options.data, memory_cache_bytes=0, disk_cache_bytes=0), "test")
    indices = reader.info.slices_of(reader.info.volumes[0])
    chosen = [int(indices[int(options.slice * (len(indices) - 1))])]
    (found,) = reconstruct_split(cell.methods, reader, chosen, cell.physics, 1, torch.device("cpu"))
    first, last = (round(part * cell.physics.crop[0]) for part in options.rows)
    images = {name: image[0] for name, image in found.images.items()}
    draw(found.target[0], images, slice(first, last), options.to)


if __name__ == "__main__":
    main()
