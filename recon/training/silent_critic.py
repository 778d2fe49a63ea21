"""Whether the critic of a training has a say. Imports no torch: who follows a training has no other use for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class SilentCritic:
    """Notices a training whose critic has no say."""

    SHARE = 0.01
    REPORTS = 3

    def __init__(self) -> None:
        self._in_a_row = 0

    def add(self, row: Mapping[str, Any]) -> str | None:
        """Take a report; once, after three in a row with a share below 1 %, what to tell the person."""
        share = row.get("share/adversarial")
        if share is None or self._in_a_row >= self.REPORTS:
            return None
        self._in_a_row = self._in_a_row + 1 if share < self.SHARE else 0
        if self._in_a_row < self.REPORTS:
            return None
        return (
            f"The critic has {share:.2%} of the gradient at the reconstruction (step {int(row['step'])}; it was below "
            f"{self.SHARE:.0%} in {self.REPORTS} reports): this is hardly a GAN. Raise critic.clip or "
            "critic_optimizer.learning_rate, or lower loss.a and loss.b."
        )
