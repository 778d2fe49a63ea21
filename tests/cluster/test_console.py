"""The line that a person reads of each report."""

from __future__ import annotations

from cluster.console import TIME_SHARES, describe_row

REPORT = {
    "step": 40,
    "loss": 1.69432,
    "slices_per_second": 15.23,
    "goodput": 0.512,
    **{f"{name}_share": 0.0 for name in TIME_SHARES},
    "compute_share": 0.86,
    "data_share": 0.1,
    "checkpoint_share": 0.036,
    "report_share": 0.004,
}


def test_a_line_says_what_holds_the_training_up() -> None:
    line = describe_row(REPORT, 250)
    assert line.split()[:4] == ["step", "40/250", "loss", "1.6943"]
    assert "15.2 slices/s  time: compute 86%, data 10%, checkpoint 4%  goodput 51%" in line
    assert "critic" not in line
    assert "MFU" not in line


def test_what_is_there_is_said() -> None:
    line = describe_row({**REPORT, "critic_loss": -0.25, "val/psnr": 30.123, "val/ssim": 0.9, "mfu": 0.31}, 250)
    assert "critic -0.25000" in line
    assert "PSNR 30.12 dB, SSIM 0.9000 (preset paper)" in line
    assert "validation: HFEN 0.4000 (preset paper)" in describe_row({**REPORT, "val/hfen": 0.4}, 250)
    assert "MFU 31%" in line
