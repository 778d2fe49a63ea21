"""What GPUs can compute at most: dense FLOP/s of NVIDIA's data sheets, by the precision of the multiplications."""

from __future__ import annotations

import torch

# name as PyTorch gives it contains the key; the longest key that fits counts; (float32, TF32, bfloat16) in TFLOP/s
_TERAFLOPS: dict[str, tuple[float, float | None, float | None]] = {
    "V100": (15.7, None, None),
    "T4": (8.1, None, None),
    "A10G": (31.5, 35.0, 70.0),
    "A100": (19.5, 156.0, 312.0),
    "L4": (30.3, 60.0, 121.0),
    "L40S": (91.6, 183.0, 362.0),
    "H100": (67.0, 494.7, 989.4),
    "H100 PCIe": (51.0, 378.0, 756.0),
    "H100 NVL": (60.0, 417.5, 835.5),
    "H200": (67.0, 494.7, 989.4),
}


def peak_flops(gpu: str, dtype: str, tf32: bool) -> float | None:
    """FLOP/s that a GPU of this name can reach, or None if it is not in the table.

    `dtype` is `training.dtype`; with `tf32` float32 convolutions are computed in TF32, PyTorch's default for them.
    """
    words = gpu.split()
    fitting = [key for key in _TERAFLOPS if all(any(_is(part, word) for word in words) for part in key.split())]
    if not fitting:
        return None
    float32, tensor_float, bfloat = _TERAFLOPS[max(fitting, key=len)]
    teraflops = bfloat if dtype == "bfloat16" else (tensor_float or float32) if tf32 else float32
    return teraflops * 1e12 if teraflops else None


def peak_of(device: torch.device, dtype: str) -> float | None:
    """`peak_flops` of a device; None for a CPU."""
    if device.type != "cuda":
        return None
    return peak_flops(torch.cuda.get_device_name(device), dtype, torch.backends.cudnn.allow_tf32)


def _is(key: str, word: str) -> bool:
    """`A100` is the word A100 or A100-SXM4-80GB, but `L4` is not L40S."""
    return word == key or word.startswith(f"{key}-")
