"""Compressed sensing by the BART toolbox, where its program is installed: a check on our own, and a second opinion."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from larmor.recon.evaluation.compressed_sensing import CompressedSensingConfig, check_measurement
from larmor.recon.physics.sense import undersample
from larmor.storage.formats.bart import read_cfl, write_cfl
from larmor.storage.objects.errors import InputError

WAVELETS = {"haar": "haar", "db1": "haar", "db2": "dau2", "bior4.4": "cdf44"}  # ours → BART's names
LONGEST_SECONDS = 600


def bart_available() -> bool:
    """Whether the program `bart` is on the PATH."""
    return shutil.which("bart") is not None


def bart_compressed_sensing(
    kspace: Tensor, mask: Tensor, config: CompressedSensingConfig, maps: Tensor | None = None
) -> Tensor:
    """As `compressed_sensing.compressed_sensing`, by `bart pics`: (batch, 1, height, width) float32 on the CPU.

    BART can hold a `magnitude` real, but not above zero: negative values are cut off at the end only. Its threshold
    stays at λ from the start.

    Raises `InputError` if BART is not installed or fails, for a wavelet that it does not know, and for shapes that
    do not fit.
    """
    check_measurement(kspace, mask, config, maps)
    if not bart_available():
        raise InputError(
            "the program bart is not on the PATH; install the BART toolbox (https://mrirecon.github.io/bart, "
            "apt-get install bart), or use compressed_sensing, which needs SigPy only"
        )
    options = _options(config)
    patterns = mask.cpu().numpy()
    images = []
    for number, measured in enumerate(undersample(kspace.cpu(), mask.cpu()).to(torch.complex64).numpy()):
        if maps is None:
            flat = np.ones((1, *measured.shape[1:]), np.complex64)
            parts = [_pics(coil[None], patterns[number], flat, options) for coil in measured]
        else:
            parts = [_pics(measured, patterns[number], maps[number].to("cpu", torch.complex64).numpy(), options)]
        if config.signal == "magnitude":
            parts = [np.maximum(part.real, 0) for part in parts]
        images.append(np.linalg.norm(np.stack(parts), axis=0))
    return torch.from_numpy(np.stack(images).astype(np.float32)).unsqueeze(1)


def _options(config: CompressedSensingConfig) -> list[str]:
    # -w 1: the weight is meant for the image as it is, not for BART's own scaling of it
    options = ["-d0", "-w", "1", "-i", str(config.num_iterations)]
    if config.signal == "magnitude":
        options.append("-c")
    if config.kind == "total_variation":
        # BART's own penalty of 0.5 takes thousands of iterations for images in [0, 1] with small weights
        return [*options, "-u", "0.001", "-R", f"T:3:0:{config.weight:g}"]
    if config.wavelet not in WAVELETS:
        raise InputError(f"BART does not know the wavelet '{config.wavelet}'; choose one of {', '.join(WAVELETS)}")
    return [*options, "--wavelet", WAVELETS[config.wavelet], "-R", f"W:3:0:{config.weight:g}"]


def _pics(kspace: np.ndarray, mask: np.ndarray, maps: np.ndarray, options: list[str]) -> np.ndarray:
    """kspace and maps (coil, height, width), mask (1, height, width) → complex image (height, width)."""
    with tempfile.TemporaryDirectory(prefix="larmor-bart-") as name:
        folder = Path(name)
        # BART's order is read, phase1, phase2, coil
        for stem, array in (("kspace", kspace), ("maps", maps), ("pattern", mask)):
            write_cfl(folder / stem, np.moveaxis(array, 0, -1)[:, :, None])
        command = ["bart", "pics", *options, "-p", "pattern", "kspace", "maps", "image"]
        try:
            result = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=LONGEST_SECONDS
            )
        except subprocess.TimeoutExpired as error:
            raise InputError(
                f"`{' '.join(command)}` took more than {LONGEST_SECONDS} s; lower num_iterations"
            ) from error
        except OSError as error:
            raise InputError(f"`bart` cannot be run: {error}") from error
        if result.returncode != 0:
            said = [line.strip() for line in (result.stdout + result.stderr).splitlines() if line.strip()]
            raise InputError(
                f"`{' '.join(command)}` failed with status {result.returncode}: {said[-1] if said else 'no message'}"
            )
        return np.array(read_cfl(folder / "image")).reshape(kspace.shape[1:])
