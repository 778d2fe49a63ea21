"""One table of PSNR, SSIM and time: `python benchmarks/fast_slice.py DATA MODEL [--every 24] [--only TEXT]`.

Slices of the test split of a data set, undersampled as MODEL was trained: compressed sensing by BART and SigPy (where
they are installed), the classical starts, MODEL in every runtime (its networks in float32, channels-last, bfloat16)
and the other systems' generators. Those have random weights, which cost the same as trained ones: they have a time and
no PSNR. All take turns, slice by slice, in one process; printed are PSNR and SSIM (preset `paper`), and the median
milliseconds of a slice: by the clock, and of processor time, which depends less on what else the machine does.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from larmor.recon.evaluation.bart import bart_available
from larmor.recon.evaluation.methods import classical_method
from larmor.recon.inference.inference import network_method, reconstruct_sample, undersampled_split
from larmor.recon.inference.metrics import slice_metrics
from larmor.recon.models.model import Model, load_model
from larmor.recon.models.runtimes import with_runtime
from larmor.recon.networks.networks import build_generator
from larmor.recon.physics.samples import Sample
from larmor.recon.recipe.recipe import Recipe
from larmor.storage.loading.config import DataConfig, open_reader

OTHERS = ("unet", "dagan", "gan_resnet50", "larmor")
Method = Callable[[Sample], Tensor]


def methods_of(model: Model, width: int) -> tuple[dict[str, Method], set[str]]:
    """All that can run here, and those of random weights."""
    found: dict[str, Method] = {}
    if bart_available():
        found["wavelet, BART"] = classical_method("bart", model.physics)
    if importlib.util.find_spec("sigpy"):
        found["wavelet, SigPy"] = classical_method("wavelet", model.physics)
        found["total variation, SigPy"] = classical_method("total_variation", model.physics)
    found["alternating, 100 iterations"] = classical_method("alternating", model.physics)
    own = model.recipe.generator.start
    for iterations in sorted({own.iterations, 25}):
        found[f"{own.method}, {iterations} iterations"] = start_alone(model, iterations)
    for runtime in ("eager", "channels_last", "bfloat16"):
        found[f"MODEL, {runtime}"] = network_method(with_runtime(model, runtime).generator)
    random = set()
    for system in OTHERS:
        content = {"system": system, "data": {"url": "unused"}, "generator": {"width": width}}
        config = Recipe.model_validate(content).generator
        found[f"{system}, width {width}"] = network_method(build_generator(config).eval())
        random.add(f"{system}, width {width}")
    return found, random


def start_alone(model: Model, iterations: int) -> Method:
    """The model's classical start, with another number of iterations."""
    generator: Any = copy.copy(model.generator)
    generator.start_config = generator.start_config.model_copy(update={"iterations": iterations})
    return lambda sample: cast(Tensor, generator.start(*sample.measurement[:4]))


def timed(method: Method, seconds: list[float]) -> Method:
    """The method, which notes the processor's time of this process and those that it starts."""

    def run(sample: Sample) -> Tensor:
        before = os.times()
        result = method(sample)
        seconds.append(1000 * sum(now - then for now, then in zip(os.times()[:4], before[:4], strict=True)))
        return result

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("model", type=Path)
    parser.add_argument("--every", type=int, default=24)
    parser.add_argument("--width", type=int, default=16, help="of the other systems")
    parser.add_argument("--only", default="", help="methods whose names hold this")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load_model(options.model)
    found, random = methods_of(model, options.width)
    busy: dict[str, list[float]] = {name: [] for name in found if options.only in name}
    methods = {name: timed(found[name], seconds) for name, seconds in busy.items()}
    reader = open_reader(DataConfig(url=options.data, memory_cache_bytes=0, disk_cache_bytes=0), "test")
    places = list(range(options.every // 2, reader.info.num_slices, options.every))
    times: dict[str, list[float]] = {name: [] for name in methods}
    quality: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
    for number, (chosen, sample) in enumerate(
        undersampled_split(reader, places, model.physics, 1, torch.device("cpu"))
    ):
        if number == 0:
            reconstruct_sample(methods, sample, chosen)  # warms up
            for seconds in busy.values():
                seconds.clear()
        result = reconstruct_sample(methods, sample, chosen)
        for name in methods:
            times[name].append(1000 * result.seconds[name])
            rated = slice_metrics(result.target[0], result.images[name][0])
            quality[name].append((rated["psnr"], rated["ssim"]))
    print(f"{model.physics.label(model.physics.crop)}, {len(places)} slices, {options.threads} threads")
    print("| | PSNR (dB) | SSIM | ms | ms of processor |\n|---|---|---|---|---|")
    for name, taken in times.items():
        psnr, ssim = (
            f"{value:.{digits}f}" for value, digits in zip(np.mean(quality[name], axis=0), (2, 4), strict=True)
        )
        shown = "– | –" if name in random else f"{psnr} | {ssim}"
        print(f"| {name} | {shown} | {statistics.median(taken):.0f} | {statistics.median(busy[name]):.0f} |")


if __name__ == "__main__":
    main()
