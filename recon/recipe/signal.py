"""What the images of a training are: magnitudes, or the complex images that the coils measured."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class SignalConfig(BaseModel):
    """`magnitude` is the paper's: the fully sampled magnitude image is undersampled in its own Fourier transform.

    `complex` undersamples the k-space that was measured, coil by coil. With `sense` the images are complex (two
    channels) and combined with the stored sensitivity maps, which single-coil data do not need; with `rss` they are
    the root sum of squares over the coils (one channel).

    `noise` is added to the measurement, never to the target. The network is not told its level.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["magnitude", "complex"] = "magnitude"
    coils: Literal["sense", "rss"] = Field("sense", description="how `complex` combines the coils")
    noise: tuple[float, float] = Field(
        (0.0, 0.0),
        description="least and largest standard deviation of the noise in the measured k-space, per real and imaginary "
        "part, as a fraction of the image's largest magnitude; drawn between them for each image",
    )
    noise_seed: int = Field(0, ge=0, description="of the noise")

    @model_validator(mode="after")
    def _noise_is_a_range(self) -> SignalConfig:
        low, high = self.noise
        if not 0 <= low <= high <= 1:
            raise ValueError(
                f"noise=[{low:g}, {high:g}] is no range of standard deviations; give the least and the largest, both "
                "between 0 and 1, such as [0, 0.1]"
            )
        return self

    @property
    def noisy(self) -> bool:
        """Whether noise is added to the measurement."""
        return self.noise[1] > 0

    def with_noise(self, low: float, high: float) -> SignalConfig:
        """The same with other noise. Raises `ValidationError` if that is none."""
        return SignalConfig.model_validate({**self.model_dump(), "noise": (low, high)})

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
