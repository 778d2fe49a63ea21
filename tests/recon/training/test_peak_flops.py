"""Names of GPUs as PyTorch gives them lead to the right line of the table."""

from __future__ import annotations

import pytest
import torch

from larmor.recon.training.peak_flops import peak_flops, peak_of


@pytest.mark.parametrize(
    ("gpu", "dtype", "tf32", "teraflops"),
    [
        ("NVIDIA A100-SXM4-80GB", "bfloat16", True, 312),
        ("NVIDIA A100 80GB PCIe", "float32", True, 156),
        ("NVIDIA A100-SXM4-40GB", "float32", False, 19.5),
        ("NVIDIA H100 80GB HBM3", "bfloat16", True, 989.4),
        ("NVIDIA H100 PCIe", "bfloat16", True, 756),
        ("NVIDIA L40S", "bfloat16", True, 362),
        ("NVIDIA L4", "bfloat16", True, 121),
        ("Tesla T4", "float32", True, 8.1),
        ("Tesla T4", "bfloat16", True, None),
        ("NVIDIA GeForce GTX 1080", "float32", True, None),
    ],
)
def test_peaks(gpu: str, dtype: str, tf32: bool, teraflops: float | None) -> None:
    assert peak_flops(gpu, dtype, tf32) == (None if teraflops is None else teraflops * 1e12)


def test_a_cpu_has_none() -> None:
    assert peak_of(torch.device("cpu"), "float32") is None
