"""Models of `multi_contrast.py` on a real slice in several contrasts: is a real guide worth anything to them?

    python -m benchmarks.real_contrasts --slice VFA_cart_smalltest.h5 MODEL…

The file is `test/VFA_cart_smalltest.h5` of the source distribution of pyqmri 1.3.0: one axial slice of a head, measured
by 13 coils at ten flip angles. Targets are the root sums of squares at 7°, 11°, 15° and 19° (T1-weighted), the guide is
that at 1° (nearly proton density). Prints the PSNR of each target: zero-filled, the classical start, and each model,
with the guide and with the guide upside down.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import h5py
import numpy as np
import torch

from larmor.recon.evaluation.methods import classical_method, with_guide
from larmor.recon.inference.inference import network_method, reconstruct_sample
from larmor.recon.models.model import Model, load_model
from larmor.recon.physics.samples import prepare
from larmor.storage.formats.volumes import image_to_kspace
from larmor.storage.loading.loader import Batch

TARGETS, GUIDE = (3, 5, 7, 9), 0  # of the flip angles 1°, 3°, …, 19°


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slice", type=Path, required=True)
    parser.add_argument("models", type=Path, nargs="+")
    options = parser.parse_args()
    images = read(options.slice)
    for place in options.models:
        model = load_model(place)
        for name, guide in (("guide", images[GUIDE]), ("upside down", images[GUIDE, ::-1])):
            figures = psnr(model, images[list(TARGETS)], np.stack([guide] * len(TARGETS)))
            for method, values in figures.items():
                print(f"{place.name}, {name}: {method} " + " ".join(f"{value:.2f}" for value in values), flush=True)


def read(path: Path) -> np.ndarray:
    """(flip angle, height, width) float32."""
    with h5py.File(path) as file:
        measured = file["real_dat"][()][:, :, 0] + 1j * file["imag_dat"][()][:, :, 0]
    # zero frequency lies in the corner, the middle of the image in its middle
    return np.linalg.norm(np.fft.ifft2(measured, norm="ortho"), axis=1).astype(np.float32)


def psnr(model: Model, targets: np.ndarray, guides: np.ndarray) -> dict[str, list[float]]:
    """By method, of each target in [0, 1]."""
    physics = with_guide(model.physics, True)
    methods = {"start": classical_method("alternating", physics), "model": network_method(model.generator)}
    own, other = (image_to_kspace(images)[:, None] for images in (targets, guides))
    samples = np.array([(0, number) for number in range(len(targets))])
    batch = Batch.of(own, samples, guide=other)
    sample = prepare(batch, physics.crop, physics.mask, torch.device("cpu"), signal=physics.signal)
    found = reconstruct_sample(methods, sample, tuple(range(len(targets))))
    return {
        name: [
            float(-10 * np.log10(np.mean((image - target) ** 2)))
            for image, target in zip(images, found.target, strict=True)
        ]
        for name, images in found.images.items()
    }


if __name__ == "__main__":
    main()
