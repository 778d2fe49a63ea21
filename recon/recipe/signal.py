"""What the images of a training are: magnitudes, or the complex images that the coils measured."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class SignalConfig(BaseModel):
    """`magnitude` is the paper's: the fully sampled magnitude image is undersampled in its own Fourier transform.

    `complex` undersamples the k-space that was measured, coil by coil. With `sense` the images are complex (two
    channels) and combined with the stored sensitivity maps, which single-coil data do not need; with `rss` they are
    the root sum of squares over the coils (one channel).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["magnitude", "complex"] = "magnitude"
    coils: Literal["sense", "rss"] = Field("sense", description="how `complex` combines the coils")

    @property
    def channels(self) -> int:
        """Channels of an image: real and imaginary part, or one."""
        return 2 if self.needs_maps else 1

    @property
    def needs_maps(self) -> bool:
        """Whether images of several coils are combined with their sensitivity maps."""
        return self.mode == "complex" and self.coils == "sense"

    @property
    def measured(self) -> bool:
        """Whether image and k-space belong together linearly, which data consistency needs."""
        return self.mode == "magnitude" or self.coils == "sense"
