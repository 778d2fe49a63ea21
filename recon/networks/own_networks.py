"""Networks of one's own: what they are called with, and what is checked before a training begins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from larmor.recon.recipe.own_code import call_part
from larmor.recon.recipe.settings import CriticConfig, GeneratorConfig
from larmor.storage.objects.errors import InputError


class OwnGenerator(nn.Module):
    """A network of one's own in the place of a generator: images of one size, unless it says more by `multiple`.

    It is called with what was measured: zero_filled (batch, channels, height, width) float32, kspace (batch, coil,
    height, width) complex64 and mask (batch, 1, height, width) bool, and maps where there are any; in a cascade with
    data consistency with the image alone. Raises `InputError` for an output of another shape.
    """

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        self.network, self._name = network, name
        self.multiple = int(getattr(network, "multiple", 1))

    def forward(self, image: Tensor, *measurement: Tensor | None) -> Tensor:
        found = self.network(image, *measurement)
        if not isinstance(found, Tensor) or found.shape != image.shape:
            shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise InputError(
                f"generator.name={self._name}: expected an image {list(image.shape)}, as it was given, got {shape}"
            )
        return found


def own_generator(config: GeneratorConfig, channels: int, stack: int) -> nn.Module:
    """The generator `config.name`, made as NAME(channels=…, **options). Raises `InputError` if that fails."""
    return OwnGenerator(_made(config.name, channels, config.options), config.name)


def own_critic(config: CriticConfig, channels: int) -> nn.Module:
    """The critic `config.name`, made as NAME(channels=…, **options). Raises `InputError` if that fails."""
    return _made(config.name, channels, config.options)


def _made(name: str, channels: int, options: Mapping[str, Any]) -> nn.Module:
    given = {"channels": channels, **options}
    how = f"{name.rpartition(':')[2]}({', '.join(f'{key}={value!r}' for key, value in given.items())})"
    network = call_part(name, lambda part: part(**given), how)
    if not isinstance(network, nn.Module):
        raise InputError(f"{name}: called as {how}: expected a torch.nn.Module, got a {type(network).__name__}")
    return network


def check_generator(generator: nn.Module, measurement: tuple[Tensor | None, ...], name: str) -> Tensor:
    """What a generator makes of one measurement. Raises `InputError` if it fails, or has no parameters."""
    if not any(parameter.requires_grad for parameter in generator.parameters()):
        raise InputError(f"generator.name={name}: has no parameters to train")
    return _tried(f"generator.name={name}", generator, *measurement)


def check_critic(critic: nn.Module, image: Tensor, name: str) -> None:
    """Raises `InputError` if a critic fails, or gives anything but one score for each image."""
    scores = _tried(f"critic.name={name}", critic, image)
    if scores.shape != (image.shape[0], 1):
        raise InputError(f"critic.name={name}: expected scores {[image.shape[0], 1]}, got {list(scores.shape)}")


def _tried(what: str, network: nn.Module, *given: Tensor | None) -> Tensor:
    try:
        with torch.no_grad():
            return network.eval()(*given)
    except InputError:
        raise
    except Exception as error:
        shapes = ", ".join("none" if item is None else str(list(item.shape)) for item in given)
        raise InputError(f"{what}: called with {shapes}: {type(error).__name__}: {error}") from error
