"""What reconstructions changed of what was measured: figures and maps of a batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from larmor.recon.physics.samples import centre_fit


@dataclass(frozen=True)
class Residual:
    """Of a batch: what putting the measured points back would change.

    `changed` and `whole` (batch,) are the norms of that and of the measurement, in the source's intensities. `image`
    (batch, height, width) is its magnitude in the range of the target, `kspace` alike that of its k-space, as a
    fraction of the largest measured value.
    """

    changed: np.ndarray
    whole: np.ndarray
    image: np.ndarray
    kspace: np.ndarray

    def rows(self, chosen: list[int]) -> Residual:
        """Of some images of the batch."""
        return Residual(self.changed[chosen], self.whole[chosen], self.image[chosen], self.kspace[chosen])

    def cut(self, size: tuple[int, int]) -> Residual:
        """The image without what it was padded by; k-space has no such margin."""
        image = centre_fit(torch.from_numpy(self.image), size).numpy()
        return Residual(self.changed, self.whole, image, self.kspace)

    @property
    def shares(self) -> np.ndarray:
        """(batch,) the residual of each image, relative to its measurement; 0 where that is 0."""
        return self.changed / np.where(self.whole > 0, self.whole, 1)


@dataclass
class ResidualSum:
    """The relative residual of many images together."""

    changed: float = 0.0
    whole: float = 0.0

    def add(self, residual: Residual) -> None:
        self.changed += float((residual.changed.astype(np.float64) ** 2).sum())
        self.whole += float((residual.whole.astype(np.float64) ** 2).sum())

    @property
    def share(self) -> float | None:
        """‖changed‖ / ‖measured‖; None if nothing was measured."""
        return (self.changed / self.whole) ** 0.5 if self.whole > 0 else None


def describe_share(share: float) -> str:
    """In words for a table or a caption."""
    return f"{100 * share:.2g} % of the measured norm"
