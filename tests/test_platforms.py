"""What is not supported says so."""

from __future__ import annotations

import sys

import pytest

from larmor.cli import main


def test_windows_is_sent_to_wsl(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is imported that is not there."""
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(sys, "argv", ["larmor", "--help"])
    with pytest.raises(SystemExit, match="Windows is not supported; install Larmor in WSL"):
        main.main()
