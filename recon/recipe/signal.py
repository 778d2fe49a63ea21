"""What the images of a training are: magnitudes, or the complex images that the coils measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from larmor.recon.recipe.pet import PetConfig
from larmor.storage.objects.errors import InputError

_MODALITIES = {  # what is stored, what makes it, the modes that read it
    "mri": ("MRI", "`larmor convert`", "signal.mode=magnitude or complex"),
    "pet": ("activity and attenuation", "`larmor pet simulate` and `larmor convert`", "signal.mode=pet"),
}


def check_modality(found: str, signal: SignalConfig) -> None:
    """Raises `InputError` for data of another modality than `signal` is about, naming the right ones."""
    if found != signal.modality:
        wanted, makers, _ = _MODALITIES[signal.modality]
        stored, _, modes = _MODALITIES.get(found, (found, "", "another version of Larmor"))
        raise InputError(
            f"the data set holds {stored}, but signal.mode={signal.mode} needs {wanted}, made by {makers}. For this "
            f"data set use {modes}"
        )


class SignalConfig(BaseModel):
    """`magnitude` is the paper's: the fully sampled magnitude image is undersampled in its own Fourier transform.

    `complex` undersamples the k-space that was measured, coil by coil. With `sense` the images are complex (two
    channels) and combined with the stored sensitivity maps, which single-coil data do not need; with `rss` they are
    the root sum of squares over the coils (one channel); with `all` they are the complex images of all coils, the real
    parts first (2 · `num_coils` channels), and no maps are read.

    `noise` is added to the measurement, never to the target. The network is not told its level.

    With `guide` the generator sees the magnitude of a second contrast as one more channel; critics do not.

    `pet` is no MRI: the data are activity and attenuation, and the images are reconstructions from simulated counts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["magnitude", "complex", "pet"] = Field(
        "magnitude",
        description="the images: magnitudes, undersampled in their own Fourier transform; the measured k-space "
        "(complex); or simulated PET",
    )
    pet: PetConfig = Field(PetConfig(), description="of `pet` alone: counts and geometry of the scan")
    coils: Literal["sense", "rss", "all"] = Field("sense", description="how `complex` combines the coils")
    num_coils: int = Field(
        12,
        ge=1,
        le=128,
        description="of coils=all: scans with more coils are compressed to so many, with fewer filled with zeros",
    )
    noise: tuple[float, float] = Field(
        (0.0, 0.0),
        json_schema_extra={"prefixItems": [{"type": "number", "minimum": 0, "maximum": 1}] * 2},  # of the check below
        description="least and largest standard deviation of the noise in the measured k-space, per real and imaginary "
        "part, as a fraction of the image's largest magnitude; drawn between them for each image",
    )
    noise_seed: int = Field(0, ge=0, description="seed of the noise")
    guide: bool = Field(
        False,
        description="whether the generator sees a second, registered contrast of each slice too, fully sampled, which "
        "the data set holds (`larmor convert --guide`)",
    )

    @model_validator(mode="after")
    def _noise_is_a_range(self) -> SignalConfig:
        low, high = self.noise
        if not 0 <= low <= high <= 1:
            raise ValueError(
                f"noise=[{low:g}, {high:g}] is no range of standard deviations; give the least and the largest, both "
                "between 0 and 1, such as [0, 0.1]"
            )
        return self

    @model_validator(mode="after")
    def _guide_is_of_mri(self) -> SignalConfig:
        if self.guide and self.mode == "pet":
            raise ValueError("guide=true: data for mode=pet hold no second contrast; set guide=false")
        return self

    @model_validator(mode="after")
    def _noise_is_of_kspace(self) -> SignalConfig:
        if self.mode == "pet" and self.noise[1] > 0:
            raise ValueError(
                f"noise=[{self.noise[0]:g}, {self.noise[1]:g}] is added to k-space, which mode=pet does not have; set "
                "pet.counts instead"
            )
        return self

    @property
    def noisy(self) -> bool:
        """Whether noise is added to the measurement."""
        return self.noise[1] > 0

    def with_noise(self, low: float, high: float) -> SignalConfig:
        """The same with other noise. Raises `ValidationError` if that is none."""
        return SignalConfig.model_validate({**self.model_dump(), "noise": (low, high)})

    @model_validator(mode="after")
    def _coil_images_are_complex(self) -> SignalConfig:
        if self.coils == "all" and self.mode != "complex":
            raise ValueError(
                f"coils=all needs the phase of the coils' images, which mode={self.mode} does not have; set "
                "mode=complex"
            )
        return self

    @property
    def modality(self) -> str:
        """What the data have to be, as `storage/dataset/dataset.py`: `SplitInfo` has it."""
        return "pet" if self.mode == "pet" else "mri"

    @property
    def channels(self) -> int:
        """Channels of an image: real and imaginary part, of one image or of each coil's, or one."""
        if self.keeps_coils:
            return 2 * self.num_coils
        return 2 if self.needs_maps else 1

    @property
    def kspace_coils(self) -> int:
        """Coils of the k-space that belongs to an image of one coil; of all coils with `all`."""
        return self.num_coils if self.keeps_coils else 1

    @property
    def keeps_coils(self) -> bool:
        """Whether an image has the complex images of all coils."""
        return self.mode == "complex" and self.coils == "all"

    @property
    def needs_maps(self) -> bool:
        """Whether images of several coils are combined with their sensitivity maps."""
        return self.mode == "complex" and self.coils == "sense"

    @property
    def beside(self) -> dict[str, bool]:
        """What is read beside the k-space, in the words of `open_reader`."""
        return {"with_maps": self.needs_maps, "with_guide": self.guide}

    @property
    def measured(self) -> bool:
        """Whether image and k-space belong together linearly, which data consistency needs."""
        return self.mode == "magnitude" or (self.mode == "complex" and self.coils != "rss")


def check_phase(signal: SignalConfig, split: str, image_volumes: Sequence[str]) -> None:
    """Raises `InputError` for a split with volumes that were made from images (`image_volumes`), where `signal` has the
    complex images of all coils."""
    if signal.keeps_coils and image_volumes:
        raise no_phase(f"split '{split}' of the data set: {image_volumes[0]}")


def no_phase(name: str) -> InputError:
    """What is wrong with a scan that was made from magnitude images, where all coils' complex images are wanted."""
    return InputError(
        f"{name} holds magnitude images, which have no phase and one coil; signal.coils=all works on measured k-space: "
        "use k-space (fastMRI, ISMRMRD, BART, complex .npy), or make some from images with `larmor simulate coils`"
    )
