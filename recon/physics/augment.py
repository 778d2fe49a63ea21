"""Random flips, rotations, shifts, zooms and bends of training images, after the augmentation published with DAGAN."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from larmor.recon.physics.elastic import displacements
from larmor.recon.physics.intensity import change_intensity
from larmor.recon.physics.transfer import constant, sent
from larmor.recon.recipe.settings import AugmentConfig

# Sets these draws apart from those of masks and orders, which are seeded by [seed, epoch, …]: no epoch reaches it.
# Below 2³², where numpy takes it as one word.
AUGMENT_STREAM = 0x4D6F7665

Change = Callable[[Tensor, np.ndarray], Tensor]
"""Images (batch, coil, height, width) and their samples (batch, 2) → images."""


@dataclass(frozen=True)
class Motion:
    """What is done to one image, in this order: flip, zoom and rotation about the image's centre, shift."""

    flip: bool
    rotation: float  # degrees, counter-clockwise as displayed
    zoom: float  # above 1 enlarges
    shift: tuple[float, float]  # down and right, as a part of height and width


def draw_motion(config: AugmentConfig, seed: int, epoch: int, index: int) -> Motion:
    """The motion of slice `index` in epoch `epoch`, a pure function of its arguments.

    Every kind has its own place in the stream: to switch one on leaves the draws of the others as they were.
    """
    flip, *others = np.random.default_rng([seed, AUGMENT_STREAM, epoch, index]).random(5).tolist()
    rotation, zoom, down, right = (2 * value - 1 for value in others)
    return Motion(
        flip=flip < config.flip,
        rotation=config.rotation * rotation,
        zoom=1 + config.zoom * zoom,
        shift=(config.shift * down, config.shift * right),
    )


def changes(config: AugmentConfig, seed: int) -> tuple[Change | None, Change | None]:
    """What moves images (`augment`) and what changes them where they are (`change_intensity`); None for neither."""
    move = partial(augment, config=config, seed=seed) if config.moves else None
    return move, partial(change_intensity, config=config, seed=seed) if config.changes_intensity else None


def augment(image: Tensor, samples: np.ndarray, config: AugmentConfig, seed: int) -> Tensor:
    """Move and bend each image of a real or complex (batch, channel, height, width) at random, all its channels alike.

    `samples` (batch, 2) holds epoch and slice index. With `seed` they decide an image's motion, whatever batch,
    rank or device it is on. What comes in from outside is 0. Values stay within the range that the channel had
    (0 included); real and imaginary parts count as channels. Without interpolation pixels are only reordered, and
    without any setting the image itself is returned.
    """
    assert image.ndim == 4
    assert len(image) == len(samples)
    if not config.moves:
        return image
    motions = [draw_motion(config, seed, int(epoch), int(index)) for epoch, index in samples]
    flipped = sent(torch.tensor([motion.flip for motion in motions]), image.device)
    image = torch.where(flipped.view(-1, 1, 1, 1), image.flip(-1), image)
    if not config.interpolates and not config.elastic:
        return image
    size = (image.shape[-2], image.shape[-1])
    bend = sent(displacements(size, samples, config.elastic, seed), image.device) if config.elastic else None
    if image.is_complex():
        parts = _resample(torch.cat([image.real, image.imag], dim=1), motions, bend)
        return torch.complex(*parts.chunk(2, dim=1))
    return _resample(image, motions, bend)


def _resample(image: Tensor, motions: list[Motion], bend: Tensor | None = None) -> Tensor:
    """Zoom, rotate, shift and bend real images (batch, channel, height, width) in one interpolation.

    Bicubic: bilinear interpolation takes away much of the fine detail that the networks are to learn. It
    overshoots at edges, hence the limits, without which magnitudes would become negative.
    """
    points = _source_points(image, motions)
    if bend is not None:
        height, width = image.shape[-2:]
        points = points + bend.to(points.dtype) / constant((width / 2, height / 2), points)
    moved = F.grid_sample(image, points, "bicubic", "zeros", align_corners=False)
    low = image.amin(dim=(2, 3), keepdim=True).clamp(max=0)
    high = image.amax(dim=(2, 3), keepdim=True).clamp(min=0)
    return torch.clamp(moved, low, high)


def _source_points(image: Tensor, motions: list[Motion]) -> Tensor:
    """(batch, height, width, 2): where each pixel's value comes from, x then y, as `grid_sample` wants it.

    Angles and factors hold in pixels, so that nothing is sheared where height and width differ. Not by
    `affine_grid`: its matrix product may round by batch size, and to 10 bits where TF32 is allowed.
    """
    height, width = image.shape[-2:]
    inverse = np.stack([_inverse(motion, height, width) for motion in motions])
    matrix = sent(torch.from_numpy(inverse).to(image.dtype), image.device)[:, None, None]
    x = torch.arange(width, device=image.device, dtype=image.dtype)[:, None] - (width - 1) / 2
    y = torch.arange(height, device=image.device, dtype=image.dtype)[:, None, None] - (height - 1) / 2
    return matrix[..., 0] * x + (matrix[..., 1] * y + matrix[..., 2])


def _inverse(motion: Motion, height: int, width: int) -> np.ndarray:
    """(2, 3): from pixels off the centre after the motion to half sizes off the centre before it, flip aside."""
    angle = np.deg2rad(motion.rotation)
    # y points down: a counter-clockwise turn is undone by this one
    back = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / motion.zoom
    down, right = motion.shift
    offset = -back @ np.array([right * width, down * height])
    return np.column_stack([back, offset]) / (np.array([[width], [height]]) / 2)
