"""The line that a person reads of each report."""

from __future__ import annotations

from larmor.cli.console import TIME_SHARES, describe_row

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
    shares = {"share/adversarial": 0.125, "share/content": 0.6, "share/frequency": 0.275}
    scores = {"score/real": 1.25, "score/fake": -0.5}
    line = describe_row({**REPORT, **shares, **scores, "val/psnr": 30.123, "val/ssim": 0.9, "mfu": 0.31}, 250)
    assert "loss 1.6943  gradient critic 12.5%, content 60.0%, frequency 27.5%  scores real +1.25, fake -0.5" in line
    assert "PSNR 30.12 dB, SSIM 0.9000 (preset paper)" in line
    assert "validation: HFEN 0.4000 (preset paper)" in describe_row({**REPORT, "val/hfen": 0.4}, 250)
    assert "MFU 31%" in line
