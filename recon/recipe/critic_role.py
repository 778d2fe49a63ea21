"""Which critics a training has, and what each of them is shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

CRITICS = {"": "critic", "_residual": "residual critic"}
"""Suffix of a critic's figures → what a person calls it."""

Sight = Literal["image", "measurement", "residual"]


@dataclass(frozen=True)
class CriticRole:
    """One critic: what it sees, and the weight of its term in the generator's loss.

    `suffix` tells its figures from those of the first critic, which has none: `critic_loss_residual`,
    `share/adversarial_residual`.
    """

    suffix: str
    sees: Sight
    weight: float

    @property
    def engine(self) -> str:
        """The name of its engine, and of its folder in a checkpoint."""
        return f"critic{self.suffix}"

    @property
    def term(self) -> str:
        """The name of its term in the generator's loss."""
        return f"adversarial{self.suffix}"
