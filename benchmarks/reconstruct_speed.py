"""Time to reconstruct a 256×256 slice: `python benchmarks/reconstruct_speed.py [--device cuda] [--width 64]`.

Our generator at full width in float32, bfloat16 and compiled, the other systems' generators, and compressed sensing
(SigPy and BART, where they are installed), on the same slices of a phantom at 10 % of k-space; channels-last where
nothing else is said. The contenders take turns, round after round; printed are the median milliseconds per slice and
its ratio to our float32 (the median of the rounds' ratios, with its range).
Networks have random weights, which cost the same as trained ones.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from larmor.recon.evaluation.bart import bart_available, bart_compressed_sensing
from larmor.recon.evaluation.compressed_sensing import CompressedSensingConfig, compressed_sensing
from larmor.recon.networks.networks import build_generator
from larmor.recon.physics.fourier import fft2c, ifft2c
from larmor.recon.physics.masks import make_mask
from larmor.recon.physics.samples import centre_fit, normalize
from larmor.recon.recipe.mask_config import MaskConfig
from larmor.recon.recipe.settings import GeneratorConfig
from larmor.storage.examples.phantom import phantom_volume

SIZE = (256, 256)
Contender = Callable[[Tensor, Tensor, Tensor], object]
"""zero-filled images, measured k-space and mask of a batch → whatever it makes of them."""


def slices(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Zero-filled images (count, 1, 256, 256), their k-space and mask."""
    volume = phantom_volume(np.random.default_rng(0))
    places = np.linspace(0.35, 0.65, count) * volume.shape[1]
    images = torch.from_numpy(np.stack([volume[:, int(place), ::-1].T for place in places]).copy())[:, None].float()
    target, _ = normalize(centre_fit(images, SIZE))
    mask = torch.from_numpy(make_mask(MaskConfig(kind="gaussian2d", sampling_ratio=0.1), SIZE))
    masks = mask.expand(count, 1, *SIZE)
    kspace = fft2c(target) * masks
    return ifft2c(kspace).abs(), kspace, masks


def network(
    name: str,
    width: int,
    device: str,
    dtype: torch.dtype = torch.float32,
    compiled: bool = False,
    layout: torch.memory_format = torch.channels_last,
) -> Contender:
    """A generator by name."""
    torch.manual_seed(0)
    generator: nn.Module = build_generator(GeneratorConfig(name=name, width=width)).eval()
    generator = generator.to(device, dtype).to(memory_format=layout)  # type: ignore[call-overload]
    if compiled:
        generator.compile()

    def run(zero_filled: Tensor, kspace: Tensor, mask: Tensor) -> object:
        with torch.inference_mode():
            image = zero_filled.to(device, dtype).contiguous(memory_format=layout)
            result = generator(image)
        if device == "cuda":
            torch.cuda.synchronize()
        return result

    return run


def contenders(width: int, device: str, compile_too: bool) -> dict[str, Contender]:
    """All that can run here; ours in float32 first."""
    found = {
        "gan_resnet50 float32": network("gan_resnet50", width, device),
        "gan_resnet50 float32, not channels-last": network(
            "gan_resnet50", width, device, layout=torch.contiguous_format
        ),
        "gan_resnet50 bfloat16": network("gan_resnet50", width, device, torch.bfloat16),
    }
    if compile_too:
        found["gan_resnet50 float32 compiled"] = network("gan_resnet50", width, device, compiled=True)
        found["gan_resnet50 bfloat16 compiled"] = network("gan_resnet50", width, device, torch.bfloat16, True)
    found["unet float32"] = network("unet", width, device)
    found["dagan float32"] = network("dagan", width, device)
    config = CompressedSensingConfig()
    if importlib.util.find_spec("sigpy"):
        found["wavelet (SigPy, CPU)"] = lambda _, kspace, mask: compressed_sensing(kspace, mask, config)
    if bart_available():
        haar = CompressedSensingConfig(wavelet="haar")
        found["wavelet (BART, CPU)"] = lambda _, kspace, mask: bart_compressed_sensing(kspace, mask, haar)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--slices", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args()
    batch = slices(options.slices)
    found = contenders(options.width, options.device, not options.no_compile)
    for run in found.values():
        run(*batch)
    times: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(options.rounds):
        for name, run in found.items():
            began = time.perf_counter()
            run(*batch)
            times[name].append(1000 * (time.perf_counter() - began) / options.slices)
    ours = times["gan_resnet50 float32"]
    on = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    setting = f"{on}, torch {torch.__version__}"
    print(f"width {options.width}, batches of {options.slices} slices of 256×256, {setting}")
    print(f"{'':<40} {'ms/slice':>9}  time / ours in float32")
    for name, seconds in times.items():
        ratios = [theirs / base for theirs, base in zip(seconds, ours, strict=True)]
        middle = statistics.median(ratios)
        print(f"{name:<40} {statistics.median(seconds):>9.2f}  {middle:.2f} ({min(ratios):.2f}–{max(ratios):.2f})")


if __name__ == "__main__":
    main()
