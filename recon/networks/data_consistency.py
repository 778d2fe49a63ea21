"""Data consistency: what was measured is put back into the k-space of a reconstruction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from larmor.recon.networks.classical_start import classical_start
from larmor.recon.networks.split_bregman import split_bregman_start
from larmor.recon.physics.fourier import fft2c, ifft2c, mirrored
from larmor.recon.physics.samples import root_sum_of_squares
from larmor.recon.physics.sense import channels_to_complex, complex_to_channels, sense_expand, sense_reduce
from larmor.recon.physics.views import shared_views
from larmor.recon.recipe.settings import StartConfig
from larmor.storage.objects.errors import InputError

_REAL_ROUNDS = 10  # each halves, at least, what a real image of another phase lacks of the measured points
Consistency = Literal["soft", "hard"]


class Measured:
    """What was measured of a batch, as data consistency needs it: made once, used for every image of the batch.

    `kspace` (batch, coil, height, width) complex64; `mask` (batch, 1, height, width) bool; `maps` as `kspace`, with
    Σ|maps|² = 1 or 0 in each pixel, None for one coil. `channels` is 1 for a real image, 2 for real and imaginary part,
    2 · coil for those of each coil's own image, without maps.

    A real image seen by one coil has the complex conjugate of each point at the negative frequency, so every measured
    point counts as two, and half of k-space is enough. With the map of its one coil, which is its phase, the same is
    reached round by round: what a real image cannot have is taken off, and the points are put back again.
    """

    def __init__(self, kspace: Tensor, mask: Tensor, maps: Tensor | None, channels: int) -> None:
        self._maps, self._channels, self._width = maps, channels, kspace.shape[-1]
        self.is_one_image = maps is not None or kspace.shape[1] == 1
        """Whether the coils saw one image that is known how: several without maps did not."""
        self._is_half = channels == 1 and maps is None and kspace.shape[1] == 1
        if self._is_half:
            conjugate, mirrored_mask = mirrored(kspace).conj(), mirrored(mask)
            once = torch.where(mask, kspace, conjugate)
            kspace = torch.where(mask & mirrored_mask, (kspace + conjugate) / 2, once)
            kspace, mask = self._half(kspace), self._half(mask | mirrored_mask)
        self._kspace, self._mask = kspace, mask

    def views(self, combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The images (batch, channels, height, width) of the k-space that `combine` makes of points and mask.

        Of several coils without maps the root sum of squares.
        """
        points = combine(self._kspace, self._mask)
        if self._is_half:
            return self._half_to_image(points, (points.shape[-2], self._width))
        coils = ifft2c(points)
        if self._channels == 1 and not self.is_one_image:
            return root_sum_of_squares(coils)
        image = sense_reduce(coils, self._maps)
        return complex_to_channels(image) if self._channels > 1 else image.real

    def put_back(self, image: Tensor, weight: Tensor | None = None) -> Tensor:
        """`image` (batch, channels, height, width) float32 with the measured points in place of its own or, with
        `weight` λ, (its own + λ · measured) / (1 + λ)."""
        if self._is_half:
            predicted = torch.fft.rfft2(torch.fft.ifftshift(image, dim=(-2, -1)), norm="ortho")
            mixed = torch.where(self._mask, self._mixed(predicted, weight), predicted)
            return self._half_to_image(mixed, image.shape[-2:])
        whole = channels_to_complex(image) if self._channels > 1 else torch.complex(image, torch.zeros_like(image))
        predicted = fft2c(sense_expand(whole, self._maps))
        points = self._mixed(predicted, weight)
        corrected = sense_reduce(ifft2c(torch.where(self._mask, points, predicted)), self._maps)
        if self._channels > 1:
            return complex_to_channels(corrected)
        for _ in range(_REAL_ROUNDS - 1):
            predicted = fft2c(sense_expand(torch.complex(corrected.real, torch.zeros_like(image)), self._maps))
            corrected = sense_reduce(ifft2c(torch.where(self._mask, points, predicted)), self._maps)
        return corrected.real

    def coils(self) -> Tensor:
        """The image of the measured points alone for each coil: real where that is what Fourier gives, else complex."""
        if self._is_half:
            return self._half_to_image(self._kspace, (self._kspace.shape[-2], self._width))
        return ifft2c(self._kspace)

    def seen(self, coils: Tensor) -> tuple[Tensor, Tensor | None]:
        """The image (batch, channels, height, width) that the coils' own images show, and what they have beyond it;
        None where that is nothing."""
        if self._is_half:
            return coils, None
        image = sense_reduce(coils, self._maps)
        if self._channels > 1:
            shown = complex_to_channels(image)
            return shown, None if self._maps is None else coils - sense_expand(image, self._maps)
        shown = image.real
        return shown, coils - sense_expand(torch.complex(shown, torch.zeros_like(shown)), self._maps)

    def unmeasured(self, spectrum: Tensor) -> Tensor:
        """`spectrum` (height, width), symmetric, in the order of `torch.fft`, for `moved`: 0 at the measured points."""
        if self._is_half:
            return torch.where(self._mask, 0, spectrum[:, : self._width // 2 + 1])
        return torch.where(torch.fft.ifftshift(self._mask, dim=(-2, -1)), 0, spectrum)

    def moved(self, coils: Tensor, image: Tensor, beyond: Tensor | None, unmeasured: Tensor) -> Tensor:
        """Coils' images, moved by `image` and `beyond` as `seen` gives them, filtered by `unmeasured`: the measured
        points stay what they are."""
        if self._is_half:
            return coils + torch.fft.irfft2(torch.fft.rfft2(image) * unmeasured, s=list(image.shape[-2:]))
        whole = channels_to_complex(image) if self._channels > 1 else torch.complex(image, torch.zeros_like(image))
        step = sense_expand(whole, self._maps)
        step = step if beyond is None else step + beyond
        return coils + torch.fft.ifft2(torch.fft.fft2(step) * unmeasured)

    def _mixed(self, predicted: Tensor, weight: Tensor | None) -> Tensor:
        return self._kspace if weight is None else (predicted + weight * self._kspace) / (1 + weight)

    @staticmethod
    def _half_to_image(points: Tensor, size: Sequence[int]) -> Tensor:
        """The real image of the half of k-space that `_half` gives."""
        return torch.fft.fftshift(torch.fft.irfft2(points, s=list(size), norm="ortho"), dim=(-2, -1))

    def _half(self, points: Tensor) -> Tensor:
        """The half of centred k-space that `torch.fft.rfft2` gives, in its order."""
        return torch.fft.ifftshift(points, dim=(-2, -1))[..., : self._width // 2 + 1].contiguous()


class DataConsistency(nn.Module):
    """Replace (`hard`) or mix (`soft`) the measured points of an image's k-space, in float32.

    Soft: (k + λ · measured) / (1 + λ) with one learned λ, which starts at 1. Source: Schlemper et al., A deep
    cascade of convolutional neural networks for MR image reconstruction, eq. (7).
    """

    def __init__(self, kind: Consistency) -> None:
        super().__init__()
        # one axis, because DeepSpeed cannot broadcast a parameter that has none
        self.log_weight = nn.Parameter(torch.zeros(1)) if kind == "soft" else None

    def forward(self, image: Tensor, measured: Measured) -> Tensor:
        """`image` (batch, channels, height, width): real, or real and imaginary parts (see `Measured`); as the result.

        With `hard` the error of an image never grows, and with one coil, or an image for each coil, the result has
        exactly the measured points; of several coils with maps it is the nearest image that they see to one that has
        them.
        """
        weight = None if self.log_weight is None else self.log_weight.float().exp()
        return measured.put_back(image.float(), weight).to(image.dtype)


class ConsistentGenerator(nn.Module):
    """Networks that take turns with data consistency, from a start that is zero-filled, classical or of shared views.

    (zero_filled, kspace, mask, maps, start, guide) → reconstruction; shapes as in `DataConsistency.forward`. Each of
    `networks` has its own weights (Schlemper et al., A deep cascade of convolutional neural networks for MR image
    reconstruction); the whole is run `iterations` times with the same ones (Aggarwal et al., MoDL: model-based deep
    learning architecture for inverse problems).
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        kind: Literal["none", "soft", "hard"],
        iterations: int = 1,
        start: StartConfig | None = None,
        stack: int = 1,
    ) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.iterations, self.stack = iterations, stack
        self.start_config = start or StartConfig()
        self.consistency = None if kind == "none" else DataConsistency(kind)

    def forward(
        self,
        zero_filled: Tensor,
        kspace: Tensor,
        mask: Tensor,
        maps: Tensor | None = None,
        start: Tensor | None = None,
        guide: Tensor | None = None,
    ) -> Tensor:
        measured = Measured(kspace, mask, maps, zero_filled.shape[1])
        image = self._start(zero_filled, measured) if start is None else start
        for _ in range(self.iterations):
            for network in self.networks:
                image = network(image) if guide is None else network(image, guide)
                if self.consistency is not None:
                    image = self.consistency(image, measured)
        return image

    def start(self, zero_filled: Tensor, kspace: Tensor, mask: Tensor, maps: Tensor | None = None) -> Tensor:
        """The image that the first network is given, as `zero_filled`, without a gradient.

        Raises `InputError` for a classical start from several coils without maps.
        """
        return self._start(zero_filled, Measured(kspace, mask, maps, zero_filled.shape[1]))

    def _start(self, zero_filled: Tensor, measured: Measured) -> Tensor:
        if not self.start_config.enabled:
            return zero_filled
        if not measured.is_one_image:
            raise InputError(
                f"generator.start.method={self.start_config.method} needs the sensitivity maps of the coils; convert "
                "the data with --sensitivity-maps, or set generator.start.method=none"
            )
        if self.start_config.shares_views:
            causal = self.start_config.method == "causal_view_sharing"
            shared = measured.views(partial(shared_views, stack=self.stack, causal=causal))
            return shared.detach().to(zero_filled.dtype)
        if self.start_config.method == "split_bregman":
            made = split_bregman_start(measured, self.start_config.iterations)
        else:
            made = classical_start(zero_filled.float(), measured.put_back, self.start_config)
        return made.to(zero_filled.dtype)
