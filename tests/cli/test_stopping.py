"""Commands that run until somebody stops them."""

from __future__ import annotations

import signal

import pytest

from larmor.cli.stopping import until_stopped


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_both_signals_end_the_block_and_nothing_else(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with until_stopped():
        signal.raise_signal(number)
        raise AssertionError("the block goes on")
    assert capsys.readouterr().out == "closed\n"
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_defect_in_the_block_is_one() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), until_stopped():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGTERM) == before
