"""Compressed sensing: the sparse image that explains the measured k-space, without any training, by SigPy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from larmor.recon.physics.sense import undersample
from larmor.storage.objects.errors import InputError

_SHIFTS = 16  # of cycle spinning; the coarsest of four levels repeats after 16 pixels
_FIRST_THRESHOLD = 0.03  # of an image in [0, 1]
_RESTART = 50  # iterations, after which the momentum, and the errors that it carries along, start again from 0
_INNER_ITERATIONS = 10  # of total variation's denoising, in each iteration

# image (height, width), weight → argmin ½‖x − image‖² + weight · ‖Ψx‖₁
Denoiser = Callable[[np.ndarray, float], np.ndarray]


class CompressedSensingConfig(BaseModel):
    """Settings of the methods `wavelet` and `total_variation`; the defaults suit both, at 10 % as at 50 % of k-space.

    `signal` says what the image is. A `magnitude` is real and not negative, which the solver enforces; that holds
    for k-space made from a magnitude image, and is wrong for k-space as measured: that is `complex`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["wavelet", "total_variation"] = "wavelet"
    weight: float = Field(
        3e-4, ge=0, description="λ, for images scaled to [0, 1]; above 0.01 few iterations solve poorly"
    )
    num_iterations: int = Field(100, ge=1)
    wavelet: str = Field("db2", description="an orthogonal wavelet of PyWavelets; unused by total variation")
    signal: Literal["magnitude", "complex"] = "magnitude"


def compressed_sensing(
    kspace: Tensor, mask: Tensor, config: CompressedSensingConfig, maps: Tensor | None = None
) -> Tensor:
    """argmin_x ½‖mask · F(maps · x) − kspace‖² + λ‖Ψx‖₁, Ψ a wavelet transform or, for total variation, the gradient.

    kspace (batch, coil, height, width) complex, 0 or anything where `mask` (batch, 1, height, width) is False; maps
    as kspace. Returns |x| (batch, 1, height, width) float32 on the CPU: of a `magnitude` that is x itself, of a
    `complex` image what is compared and shown. Several coils without maps are solved one by one, and combined by
    the root sum of squares. A pure function of its arguments: the shifts below are the same in every call.

    Source: Lustig et al., Sparse MRI, Magn. Reson. Med. 58:1182-1195 (2007), by FISTA (Beck & Teboulle, SIAM J.
    Imaging Sci. 2:183-202, 2009). Thresholds fall to λ in the first half of the iterations, without which small
    weights need several times as many. The wavelets' grid is shifted at random in each (Figueiredo & Nowak 2003, as
    BART does); isotropic total variation is denoised by its dual (Beck & Teboulle, IEEE Trans. Image Process.
    18:2419-2434, 2009).

    Raises `InputError` if SigPy is not installed, for an unknown wavelet, for shapes that do not fit, and for coils
    in a `magnitude`.
    """
    check_measurement(kspace, mask, config, maps)
    solve = _solver(config)
    patterns = mask.cpu().numpy()
    images = []
    for number, measured in enumerate(undersample(kspace.cpu(), mask.cpu()).to(torch.complex64).numpy()):
        if maps is None:
            flat = np.ones((1, *measured.shape[1:]), np.complex64)
            parts = [solve(coil[None], patterns[number], flat) for coil in measured]
        else:
            parts = [solve(measured, patterns[number], maps[number].to("cpu", torch.complex64).numpy())]
        images.append(np.linalg.norm(np.stack(parts), axis=0))
    return torch.from_numpy(np.stack(images).astype(np.float32)).unsqueeze(1)


def check_measurement(kspace: Tensor, mask: Tensor, config: CompressedSensingConfig, maps: Tensor | None) -> None:
    """Raise `InputError` unless the shapes fit each other and the configured signal."""
    if kspace.ndim != 4 or not len(kspace) or mask.shape != (len(kspace), 1, *kspace.shape[2:]):
        raise InputError(
            f"k-space of shape {tuple(kspace.shape)} and a mask of {tuple(mask.shape)}; expected are (batch, coil, "
            "height, width) and (batch, 1, height, width)"
        )
    if maps is not None and maps.shape != kspace.shape:
        raise InputError(f"maps of shape {tuple(maps.shape)} do not fit k-space of {tuple(kspace.shape)}")
    if config.signal == "magnitude" and (maps is not None or kspace.shape[1] > 1):
        raise InputError(
            f"signal=magnitude with {kspace.shape[1]} coils: coil images are complex; set signal=complex, or combine "
            "the coils first"
        )


def _solver(config: CompressedSensingConfig) -> Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
    """(kspace and maps (coil, height, width), mask (1, height, width)) → image (height, width), real or complex."""
    try:
        import pywt
        import sigpy
    except ImportError as error:
        raise InputError(
            f"compressed sensing needs SigPy ({error}); install it with pip install 'larmor-mri[classical]'"
        ) from error
    if config.kind == "wavelet" and config.wavelet not in pywt.wavelist(kind="discrete"):
        raise InputError(f"wavelet '{config.wavelet}' is unknown; choose one such as haar, db2, db4 or sym8")
    make_denoiser = _wavelet_denoiser if config.kind == "wavelet" else _total_variation_denoiser
    real = config.signal == "magnitude"

    def solve(kspace: np.ndarray, mask: np.ndarray, maps: np.ndarray) -> np.ndarray:
        operator = (
            sigpy.linop.Multiply(kspace.shape, mask.astype(np.float32))
            * sigpy.linop.FFT(kspace.shape, axes=(-2, -1))
            * sigpy.linop.Multiply(kspace.shape[1:], maps)
        )
        denoise = make_denoiser(sigpy, operator.ishape, config)

        # ‖operator‖² is at most this; SigPy's own estimate would draw from the global random generator
        largest = max(float(np.square(np.abs(maps)).sum(axis=0).max()), 1e-12)
        thresholds = iter(_thresholds(config.weight / largest, config.num_iterations))

        def proximal_step(_: float, image: np.ndarray) -> np.ndarray:
            return denoise(image.real if real else image, next(thresholds))

        image = None
        with np.errstate(invalid="ignore"):  # SigPy's threshold divides by zero, and sets 0 there
            for done in range(0, config.num_iterations, _RESTART):
                method = sigpy.app.LinearLeastSquares(
                    operator,
                    kspace,
                    x=image,
                    proxg=proximal_step,
                    solver="GradientMethod",
                    alpha=1 / largest,
                    max_iter=min(_RESTART, config.num_iterations - done),
                    tol=-1,  # a first threshold above all of a faint image would else be the end
                    show_pbar=False,
                )
                image = method.run()
        assert image is not None
        return image.real if real else image

    return solve


def _thresholds(last: float, num_iterations: int) -> list[float]:
    """Falling by a constant factor from `_FIRST_THRESHOLD`, from the half of the iterations on at `last`."""
    rest = np.maximum(0, 1 - 2 * np.arange(num_iterations) / num_iterations)
    ratio = max(1.0, _FIRST_THRESHOLD / last) if last > 0 else 1.0
    return (last * ratio**rest).tolist()


def _wavelet_denoiser(sigpy: Any, shape: tuple[int, int], config: CompressedSensingConfig) -> Denoiser:
    transform = sigpy.linop.Wavelet(shape, wave_name=config.wavelet)
    rng = np.random.default_rng(0)

    def denoise(image: np.ndarray, weight: float) -> np.ndarray:
        # without the shifts the blocks of the wavelet grid stay in the image, and cost about 1.5 dB
        shift = rng.integers(_SHIFTS, size=2)
        coefficients = transform(np.roll(image, shift, axis=(0, 1)))
        image = transform.H(sigpy.thresh.soft_thresh(weight, coefficients))
        return _constrain(np.roll(image, -shift, axis=(0, 1)), config)

    return denoise


def _total_variation_denoiser(_: Any, shape: tuple[int, int], config: CompressedSensingConfig) -> Denoiser:
    # kept from step to step, which makes few inner iterations enough; in units of the weight, which changes
    dual = np.zeros((2, *shape), np.float32 if config.signal == "magnitude" else np.complex64)

    def denoise(image: np.ndarray, weight: float) -> np.ndarray:
        nonlocal dual
        if weight == 0:
            return _constrain(image, config)
        extrapolated, momentum = dual, 1.0
        for _ in range(_INNER_ITERATIONS):
            primal = _constrain(image - weight * _gradient_adjoint(extrapolated), config)
            before, dual = dual, extrapolated + _gradient(primal) / (8 * weight)  # 8 ≥ ‖gradient‖²
            dual = dual / np.maximum(1, np.sqrt(np.square(np.abs(dual)).sum(axis=0)))
            last, momentum = momentum, (1 + math.sqrt(1 + 4 * momentum**2)) / 2
            extrapolated = dual + (last - 1) / momentum * (dual - before)
        return _constrain(image - weight * _gradient_adjoint(dual), config)

    return denoise


def _gradient(image: np.ndarray) -> np.ndarray:
    """(height, width) → (2, height, width): differences from the neighbours above and to the left, cyclic."""
    return np.stack([image - np.roll(image, 1, axis=axis) for axis in (0, 1)])


def _gradient_adjoint(field: np.ndarray) -> np.ndarray:
    return sum((part - np.roll(part, -1, axis=axis) for axis, part in enumerate(field)), np.zeros_like(field[0]))


def _constrain(image: np.ndarray, config: CompressedSensingConfig) -> np.ndarray:
    return np.maximum(image.real, 0) if config.signal == "magnitude" else image
