"""Coil sensitivity maps of a fully sampled slice, by ESPIRiT."""

from __future__ import annotations

import numpy as np

from larmor.storage.objects.errors import InputError

KERNEL_WIDTH = 6  # of the calibration kernels, as in the paper


def estimate_sensitivity_maps(kspace: np.ndarray, calibration_width: int = 24) -> np.ndarray:
    """(coil, height, width) centred k-space → maps of the same shape, complex64.

    The maps' squares sum to 1 over the coils, or are all 0 where there is no signal. Their phase is free
    in each pixel; it is fixed such that the coil with the most signal is real. A single coil's map is 1.

    Source: Uecker et al., ESPIRiT, Magn. Reson. Med. 71:990-1001 (2014), as implemented by SigPy.

    Raises `InputError` if SigPy is not installed, for k-space without signal or with values that are not
    finite, and for a calibration region below the kernel's width.
    """
    if kspace.ndim != 3 or kspace.shape[0] < 1:
        raise InputError(f"k-space of shape {kspace.shape}; (coil, height, width) is expected")
    if not np.isfinite(kspace).all():
        raise InputError("the k-space has values that are not finite; no sensitivity maps can be made from it")
    if len(kspace) == 1:
        return np.ones(kspace.shape, np.complex64)
    if not kspace.any():
        raise InputError("the k-space is zero; leave out slices without signal")
    width = min(calibration_width, *kspace.shape[1:])
    if width < KERNEL_WIDTH:
        raise InputError(
            f"the calibration region is {width} wide (of k-space {kspace.shape[1]} x {kspace.shape[2]}); at least "
            f"{KERNEL_WIDTH} is needed"
        )
    try:
        from sigpy.mri.app import EspiritCalib
    except ImportError as error:
        raise InputError(
            f"sensitivity maps need SigPy ({error}); install it with pip install 'larmor-mri[maps]'"
        ) from error

    # SigPy divides by the phase of the first coil: one that sees nothing would leave no map at all
    order = np.argsort(-np.linalg.norm(kspace, axis=(1, 2)), kind="stable")
    ordered = kspace[order].astype(np.complex64)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = EspiritCalib(ordered, calib_width=width, kernel_width=KERNEL_WIDTH, show_pbar=False).run()
    maps = np.empty_like(found)
    maps[order] = np.where(np.isfinite(found).all(axis=0), found, 0)
    norm = np.linalg.norm(maps, axis=0)
    return (maps / np.where(norm > 0, norm, 1)).astype(np.complex64)
