"""From stored k-space to what a network is trained on: target, mask, zero-filled input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from larmor.recon.physics.feed import DeviceBatch, DeviceGroup, to_device
from larmor.recon.physics.fourier import fft2c, ifft2c
from larmor.recon.physics.guide import in_own_units
from larmor.recon.physics.masks import make_mask, with_ratio
from larmor.recon.physics.noise import measurement_noise
from larmor.recon.physics.pet import pet_images
from larmor.recon.physics.sense import complex_to_channels, sense_reduce
from larmor.recon.physics.transfer import sent
from larmor.recon.recipe.mask_config import MaskConfig
from larmor.recon.recipe.pet import PetConfig
from larmor.recon.recipe.signal import SignalConfig
from larmor.storage.dataset.constant import ROUNDING
from larmor.storage.loading.loader import Batch
from larmor.storage.objects.errors import InputError

MAGNITUDE = SignalConfig()


@dataclass(frozen=True)
class Sample:
    """A batch on the device. Images are (batch, channels, height, width) float32.

    Everything is in units of the largest magnitude of the zero-filled image, which a measurement gives whether the
    target is known or not: in training, evaluation and reconstruction alike. `target` is the fully sampled image: a
    magnitude, or real and imaginary part; parts of it may be above 1. `zero_filled` = F⁻¹(mask · F(target)), in
    `magnitude` mode its absolute value. Of several coils together (signal.coils=all) the magnitude is the root sum of
    squares. `kspace` (batch, coil, height, width) complex64 is what was measured, 0
    elsewhere; `mask` (batch, 1, height, width) bool; `scale` (batch, 2): 0 and that largest magnitude in the source's
    intensities; `maps` as `kspace`, None for a single coil; `samples` (batch, 2): epoch and slice index. `start` is the
    image that the generator begins with, as `zero_filled`, where it is known already (`recon/training/starts.py`).
    `guide` (batch, 1, height, width) is the magnitude of a second contrast in units of its own (see `in_own_units`),
    where `signal.guide` wants it.

    The batch holds stacks of `stack` consecutive images, which share their scale: the largest magnitude is the stack's.
    """

    target: Tensor
    zero_filled: Tensor
    kspace: Tensor
    mask: Tensor
    scale: Tensor
    samples: np.ndarray
    maps: Tensor | None = None
    start: Tensor | None = None
    stack: int = 1
    guide: Tensor | None = None

    @property
    def measurement(self) -> tuple[Tensor | None, ...]:
        """What a generator is called with: zero_filled, kspace, mask, and maps, start and guide where there are any."""
        if self.guide is not None:
            return (self.zero_filled, self.kspace, self.mask, self.maps, self.start, self.guide)
        if self.start is not None:
            return (self.zero_filled, self.kspace, self.mask, self.maps, self.start)
        return (self.zero_filled, self.kspace, self.mask, *([] if self.maps is None else [self.maps]))


def centre_fit(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Crop or zero-pad the last two axes about their centre [n // 2], so that slices of any size fit together."""
    pads = []
    for axis in (-1, -2):
        have, wanted = image.shape[axis], size[axis]
        before = wanted // 2 - have // 2
        pads += [before, wanted - have - before]
    return torch.nn.functional.pad(image, pads)


def normalize(image: Tensor, stack: int = 1) -> tuple[Tensor, Tensor]:
    """Eq. (1) with the target range [0, 1], per image of (batch, 1, height, width), or per stack of `stack` images:
    in which images are evaluated.

    Returns the image and (batch, 2) minimum and maximum, which `denormalize` takes. A constant image → 0.
    """
    scale = of_stacks(torch.stack([image.amin(dim=(1, 2, 3)), image.amax(dim=(1, 2, 3))], dim=1), stack)
    return normalize_by(image, scale), scale


def of_stacks(scale: Tensor, stack: int) -> Tensor:
    """Minimum and maximum (batch, 2) of each image → those of its stack of `stack` consecutive images."""
    if stack == 1:
        return scale
    low, high = (scale[:, side].unflatten(0, (-1, stack)) for side in (0, 1))
    return torch.stack([low.amin(dim=1), high.amax(dim=1)], dim=1).repeat_interleave(stack, dim=0)


def normalize_by(image: Tensor, scale: Tensor) -> Tensor:
    """As `normalize`, with the minimum and maximum `scale` (batch, 2) of another image."""
    low, high = (scale[:, side].view(-1, 1, 1, 1) for side in (0, 1))
    return (image - low) / torch.where(high > low, high - low, 1)


def denormalize(image: Tensor, scale: Tensor) -> Tensor:
    """The inverse of `normalize`: back to the intensities of the source."""
    low, high = (scale[:, side].view(-1, 1, 1, 1) for side in (0, 1))
    return image * (high - low) + low


def root_sum_of_squares(images: Tensor) -> Tensor:
    """(batch, coil, height, width) complex → (batch, 1, height, width) magnitudes."""
    return images.abs().square().sum(dim=1, keepdim=True).sqrt()


def magnitude(kspace: Tensor) -> Tensor:
    """Root sum of squares over coils: (batch, coil, height, width) complex → (batch, 1, height, width)."""
    return root_sum_of_squares(ifft2c(kspace))


def display(images: Tensor) -> Tensor:
    """Magnitudes (batch, height, width) of images with one channel or two: not negative, and NaN where infinite."""
    shown = images[:, 0] if images.shape[1] == 1 else torch.linalg.vector_norm(images, dim=1)
    return shown.clamp_min(0) + 0 * shown


Augment = Callable[[Tensor, np.ndarray], Tensor]


def prepare(
    batch: Batch | DeviceBatch,
    crop: tuple[int, int],
    mask: MaskConfig,
    device: torch.device,
    augment: Augment | None = None,
    signal: SignalConfig = MAGNITUDE,
    stack: int = 1,
    intensity: Augment | None = None,
) -> Sample:
    """Fit the images to `crop`, undersample their k-space, scale both; all of it on `device`.

    `augment` moves the images (n, coil, height, width) of the samples (n, 2), and their maps alike, before they are
    cut; `intensity` then changes the images alone, by a factor that is the same for all coils. With maps the target is
    Σ conj(map) · coil image; where `signal` has all coils together, it is their images, with images of zeros for
    missing ones. `signal.noise` is added to k-space before the mask; the target stays as it is. Reproducible from
    (seeds, epoch, slice index) alone. Raises `InputError` for several coils without maps where `signal` wants them.
    """
    moved = batch if isinstance(batch, DeviceBatch) else to_device(batch, device)
    magnitudes, sense = signal.mode == "magnitude", signal.needs_maps
    parts, map_parts, guides = [], [], []
    for group in moved.groups:
        image = magnitude(group.kspace) if magnitudes else ifft2c(group.kspace)
        maps = _wanted_maps(group) if sense else None
        # the images of a stack are moved and changed as its first one
        first = moved.samples[group.rows - group.rows % stack]
        if augment:
            image, maps = _augmented(augment, image, maps, first)
        if intensity:
            image = intensity(image, first)
        parts.append(_cut(image, crop))
        map_parts.append(None if maps is None else centre_fit(maps, crop))
        if signal.guide:
            other = guide_image(group)  # in units of all that is there, whatever is cut
            # moved as the image, by the same draws; how bright it is stays its own
            guides.append(_cut(augment(other, first) if augment else other, crop))
    rows = [group.rows for group in moved.groups]
    images, maps = _in_order(parts, rows, signal.kspace_coils), _maps_in_order(map_parts, rows)
    if signal.mode == "pet":
        return _pet_sample(images, moved.samples, signal.pet, stack)
    measured = _masks(mask, crop, moved.samples, device, stack)
    assert not signal.keeps_coils or images.shape[1] == signal.num_coils, "compressed before (`coils_of_split`)"
    target, kspace = _target(images, maps, signal), fft2c(images)
    if signal.noisy:
        largest = root_sum_of_squares(target).amax(dim=(1, 2, 3))
        kspace = kspace + measurement_noise(signal, moved.samples, kspace, largest)
    kspace = kspace * measured
    zero_filled = _zero_filled(kspace, maps, signal)
    guide = _in_order(guides, rows) if guides else None
    return scaled(
        Sample(target, zero_filled, kspace, measured, torch.empty(0), moved.samples, maps, stack=stack, guide=guide)
    )


def guide_image(group: DeviceGroup) -> Tensor:
    """(n, 1, height, width): the magnitude of the second contrast, in units of its own (see `in_own_units`).

    Raises `InputError` for slices without one.
    """
    if group.guide is None:
        raise InputError(
            "signal.guide=true, but these slices come without a guide, their second contrast; use a data set that was "
            "converted with --guide, or `larmor reconstruct --guide`"
        )
    return in_own_units(magnitude(group.guide))


def _target(images: Tensor, maps: Tensor | None, signal: SignalConfig) -> Tensor:
    """The fully sampled image of coil images or, in `magnitude` mode, of a magnitude image."""
    if signal.needs_maps:
        return sense_reduce(images, maps)
    return images if signal.mode == "magnitude" or signal.keeps_coils else root_sum_of_squares(images)


def _zero_filled(kspace: Tensor, maps: Tensor | None, signal: SignalConfig) -> Tensor:
    """What the measured points alone show."""
    if signal.needs_maps:
        return sense_reduce(ifft2c(kspace), maps)
    return ifft2c(kspace) if signal.keeps_coils else magnitude(kspace)


def _pet_sample(images: Tensor, samples: np.ndarray, config: PetConfig, stack: int) -> Sample:
    """A sample of PET: `zero_filled` is the reconstruction from few counts, `kspace` its sinogram."""
    crop = (images.shape[-2], images.shape[-1])
    target, found, sinogram = pet_images(centre_fit(images.abs(), (max(crop), max(crop))), samples, config)
    measured = torch.ones((len(images), 1, *crop), dtype=torch.bool, device=images.device)
    target, found = centre_fit(target, crop), centre_fit(found, crop)
    return scaled(Sample(target, found, sinogram.to(torch.complex64), measured, torch.empty(0), samples, stack=stack))


def scaled(sample: Sample) -> Sample:
    """A sample in its units, from one in the source's intensities whose images may be complex (see `Sample`)."""
    zero_filled = sample.zero_filled
    shown = root_sum_of_squares(zero_filled) if zero_filled.shape[1] > 1 else zero_filled.abs()
    scale = of_stacks(_largest(shown), sample.stack)
    span = torch.where(scale[:, 1] > 0, scale[:, 1], 1).view(-1, 1, 1, 1)
    target, zero_filled = (
        complex_to_channels(image / span) if image.is_complex() else image / span
        for image in (sample.target, zero_filled)
    )
    return replace(sample, target=target, zero_filled=zero_filled, kspace=sample.kspace / span, scale=scale)


def _cut(images: Tensor, crop: tuple[int, int]) -> Tensor:
    """`centre_fit`; of an image that shows nothing within the crop no rounding is left, which scaling would blow up."""
    fitted = centre_fit(images, crop)
    most, left = (part.abs().amax(dim=(1, 2, 3), keepdim=True) for part in (images, fitted))
    return torch.where(left <= ROUNDING * most, 0, fitted)  # NaN stays


def _wanted_maps(group: DeviceGroup) -> Tensor | None:
    """The maps of a group; one coil needs none."""
    coils = group.kspace.shape[1]
    if group.maps is None and coils > 1:
        raise InputError(
            f"signal.coils=sense with {coils} coils needs their sensitivity maps; convert the data with "
            "--sensitivity-maps, or set signal.coils=rss"
        )
    return group.maps


def _augmented(
    augment: Augment, image: Tensor, maps: Tensor | None, samples: np.ndarray
) -> tuple[Tensor, Tensor | None]:
    """Coil images and maps moved alike, as if the coils moved with the head; interpolated maps are normalised anew."""
    if maps is None:
        return augment(image, samples), None
    image, maps = augment(torch.cat([image, maps], dim=1), samples).chunk(2, dim=1)
    norm = torch.linalg.vector_norm(maps, dim=1, keepdim=True)
    # at the edge of the maps' support interpolation leaves faint ones: they say nothing of the coils any more
    return image, torch.where(norm > 0.5, maps / norm.clamp_min(0.5), 0)


def _largest(magnitudes: Tensor) -> Tensor:
    """(batch, 2): 0 and the largest value of (batch, 1, height, width)."""
    high = magnitudes.amax(dim=(1, 2, 3))
    return torch.stack([torch.zeros_like(high), high], dim=1)


def _maps_in_order(parts: list[Tensor | None], rows: list[np.ndarray]) -> Tensor | None:
    """Coils that a slice does not have see nothing: their maps are 0, as their images are."""
    found = [part for part in parts if part is not None]
    assert len(found) in (0, len(parts)), "all slices come with maps or none"
    return _in_order(found, rows) if found else None


def _in_order(parts: list[Tensor], rows: list[np.ndarray], least_coils: int = 1) -> Tensor:
    """One batch of the groups' images, in the order of the samples; fewer coils are filled up with zeros."""
    coils = max(least_coils, *(part.shape[1] for part in parts))
    if len(parts) == 1 and parts[0].shape[1] == coils:
        return parts[0]
    filled = [torch.nn.functional.pad(part, (0, 0, 0, 0, 0, coils - part.shape[1])) for part in parts]
    order = torch.from_numpy(np.argsort(np.concatenate(rows)))
    return torch.cat(filled)[sent(order, parts[0].device)]


def _masks(mask: MaskConfig, crop: tuple[int, int], samples: np.ndarray, device: torch.device, stack: int) -> Tensor:
    """(batch, 1, height, width) bool on the device. No copy is waited for."""
    if not mask.differs:
        return _fixed_mask(mask, crop, device).expand(len(samples), 1, *crop)
    keys = [(int(epoch), int(index)) for epoch, index in samples]
    # the images of a stack are of one scan: they have the ratio of its first one
    ratios = [with_ratio(mask, keys[row - row % stack]) for row in range(len(keys))]
    patterns = np.stack([make_mask(own, crop, key) for own, key in zip(ratios, keys, strict=True)])
    return sent(torch.from_numpy(patterns), device).unsqueeze(1)


@lru_cache(maxsize=8)
def _fixed_mask(mask: MaskConfig, crop: tuple[int, int], device: torch.device) -> Tensor:
    return sent(torch.from_numpy(make_mask(mask, crop)), device)
