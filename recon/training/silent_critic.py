"""Whether the critics of a training have a say. Imports no torch: who follows a training has no other use for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from larmor.recon.recipe.critic_role import CRITICS

_SHARES = {f"share/adversarial{suffix}": name for suffix, name in CRITICS.items()}


class SilentCritic:
    """Notices a training with a critic that has no say."""

    SHARE = 0.01
    REPORTS = 3

    def __init__(self) -> None:
        self._in_a_row = dict.fromkeys(_SHARES, 0)

    def add(self, row: Mapping[str, Any]) -> str | None:
        """Take a report; once for each critic, after three in a row with a share below 1 %, what to tell the person."""
        told = [message for name, whose in _SHARES.items() if (message := self._add(row, name, whose))]
        return " ".join(told) or None

    def _add(self, row: Mapping[str, Any], name: str, whose: str) -> str | None:
        share = row.get(name)
        if share is None or self._in_a_row[name] >= self.REPORTS:
            return None
        self._in_a_row[name] = self._in_a_row[name] + 1 if share < self.SHARE else 0
        if self._in_a_row[name] < self.REPORTS:
            return None
        return (
            f"The {whose} has {share:.2%} of the gradient at the reconstruction (step {int(row['step'])}; it was below "
            f"{self.SHARE:.0%} in {self.REPORTS} reports): this is hardly a GAN. Raise critic.clip or "
            "critic_optimizer.learning_rate, or lower loss.a and loss.b."
        )
