"""Where a network changed what was measured: the residual of its images in the measured points of k-space.

With hard data consistency it is 0, but for rounding, with one coil or an image for each coil. Source: `Measured`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from larmor.recon.inference.residual import Residual, ResidualSum
from larmor.recon.networks.data_consistency import Measured
from larmor.recon.physics.fourier import fft2c
from larmor.recon.physics.samples import Sample, display, normalize
from larmor.recon.physics.sense import channels_to_complex
from larmor.recon.recipe.recipe import Recipe


def uses_measured_points(recipe: Recipe) -> bool:
    """Whether a model works on the measured points themselves, and not on the zero-filled image alone."""
    network = recipe.generator
    return network.data_consistency != "none" or network.start.enabled or network.name == "idpcnn"


def has_residual(recipe: Recipe, as_measured: bool) -> bool:
    """Whether its images can be compared with the points; `as_measured`: with those of a scanner.

    PET has no k-space. Magnitudes have no phase: of a scan it is known to models alone that work on its points.
    """
    if recipe.signal.mode == "pet":
        return False
    return not as_measured or recipe.signal.mode != "magnitude" or uses_measured_points(recipe)


@dataclass
class Residuals:
    """The relative residual of each method over many batches; `note` is told of their images."""

    _sums: dict[str, ResidualSum] = field(default_factory=dict)

    def note(self, name: str, output: Tensor, sample: Sample) -> None:
        """As `Note`."""
        if found := measured_residual(sample, [output]):
            self._sums.setdefault(name, ResidualSum()).add(found)

    @property
    def shares(self) -> dict[str, float]:
        """By the name of the method; those without one are left out."""
        shares = {name: one.share for name, one in self._sums.items()}
        return {name: share for name, share in shares.items() if share is not None}


@torch.no_grad()
def measured_residual(sample: Sample, outputs: Sequence[Tensor]) -> Residual | None:
    """Of the mean of `outputs`, each (batch, channels, height, width) in the sample's units.

    None where images are of another size than the k-space, or magnitudes of several coils together.
    """
    images = torch.stack([output.float() for output in outputs]).mean(dim=0)
    if images.shape[-2:] != sample.kspace.shape[-2:]:
        return None
    measured = Measured(sample.kspace, sample.mask, sample.maps, images.shape[1])
    if images.shape[1] == 1 and not measured.is_one_image:
        return None
    change = measured.put_back(images) - images
    points = measured.put_back(torch.zeros_like(images))
    span = sample.scale[:, 1].to(images.device)
    _, target = normalize(display(sample.target)[:, None] * span.view(-1, 1, 1, 1), sample.stack)
    width = torch.where(target[:, 1] > target[:, 0], target[:, 1] - target[:, 0], 1)
    changed, whole = (span * torch.linalg.vector_norm(one, dim=(1, 2, 3)) for one in (change, points))
    image = torch.linalg.vector_norm(change, dim=1) * (span / width).view(-1, 1, 1)
    spectrum, largest = _spectrum(change), _spectrum(points).amax(dim=(1, 2), keepdim=True)
    kspace = spectrum / torch.where(largest > 0, largest, 1)
    return Residual(*(one.cpu().numpy() for one in (changed, whole, image, kspace)))


def _spectrum(images: Tensor) -> Tensor:
    """(batch, height, width) magnitudes of the k-space of images (batch, channels, height, width)."""
    whole = channels_to_complex(images) if images.shape[1] > 1 else torch.complex(images, torch.zeros_like(images))
    return torch.linalg.vector_norm(fft2c(whole), dim=1)
