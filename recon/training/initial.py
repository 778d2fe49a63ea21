"""The weights that a training starts from: which of another training's fit its networks, and their way into these."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from larmor.recon.networks.networks import build_critic, build_generator, trained_part
from larmor.recon.recipe.recipe import Recipe
from larmor.recon.training.gan import Gan

AVERAGE = "average"
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Wanted:
    """The tensors of a network: name → shape. `prefix` is what the generator's names have before these in a model;
    `parameters` are those that are trained, the others are buffers."""

    shapes: Mapping[str, Shape]
    parameters: frozenset[str]
    prefix: str = ""

    @staticmethod
    def of(network: nn.Module, prefix: str = "") -> Wanted:
        shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
        return Wanted(shapes, frozenset(name for name, _ in network.named_parameters()), prefix)


@dataclass(frozen=True)
class Match:
    """Names of equal shape, and what keeps the others apart. `parameters` is the share of the network's that fits."""

    fitting: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    differing: tuple[str, ...]
    parameters: float

    @property
    def is_whole(self) -> bool:
        return not (self.missing or self.unexpected or self.differing)


def wanted_networks(recipe: Recipe) -> dict[str, Wanted]:
    """Network → its tensors: generator, critics by the names of their engines, and the average where it is continued.

    The networks are made for it. Raises `InputError` for one of the user's own that cannot be.
    """
    config = recipe.init_from
    assert config, "there is something to start from"
    whole = build_generator(recipe.generator, recipe.signal.channels, recipe.data.stack, recipe.signal.guide)
    part = trained_part(whole)
    found = {"generator": Wanted.of(part.module, part.prefix)}
    if config.critics:
        critic = Wanted.of(build_critic(recipe.critic, recipe.critic_channels))
        found |= {role.engine: critic for role in recipe.loss.critics}
    return found | ({AVERAGE: Wanted.of(whole)} if config.averages else {})


def match(wanted: Wanted, found: Mapping[str, Shape]) -> Match:
    """Compare the tensors of a network with those that there are, by name and shape."""
    common = [name for name in wanted.shapes if name in found]
    fitting = tuple(name for name in common if found[name] == wanted.shapes[name])
    sizes = {name: math.prod(wanted.shapes[name]) for name in wanted.parameters}
    taken = sum(sizes.get(name, 0) for name in fitting)
    return Match(
        fitting,
        missing=tuple(name for name in wanted.shapes if name not in found),
        unexpected=tuple(name for name in found if name not in wanted.shapes),
        differing=tuple(name for name in common if found[name] != wanted.shapes[name]),
        parameters=taken / max(sum(sizes.values()), 1),
    )


def start_from(folder: Path, gan: Gan) -> None:
    """Give the networks of a new training the weights in `folder`, a file NETWORK.safetensors for each.

    Every rank calls, with equal files. After this the engines, with their masters, and the averaged weights hold them
    exactly; a critic that is clipped starts inside. What a file lacks stays as it was made.
    """
    weights = {path.stem: load_file(path) for path in sorted(folder.glob("*.safetensors"))}
    gan.start_from({name: found for name, found in weights.items() if name != AVERAGE}, weights.get(AVERAGE))


def write_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """What `start_from` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.float() if value.is_floating_point() else value for name, value in weights.items()}, path)
