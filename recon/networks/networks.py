"""The networks by the names that an experiment gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import nn

from larmor.recon.networks.conv_lstm import ConvLstmStage
from larmor.recon.networks.critic import ResNet50Critic
from larmor.recon.networks.dagan import DaganDiscriminator, DaganGenerator
from larmor.recon.networks.data_consistency import ConsistentGenerator
from larmor.recon.networks.deepcomplex import DeepComplexBlock
from larmor.recon.networks.dilated import DilatedGenerator
from larmor.recon.networks.drgan import DrganGenerator
from larmor.recon.networks.fda import FdaGenerator
from larmor.recon.networks.generator import ResNet50Generator
from larmor.recon.networks.guided import GuidedGenerator
from larmor.recon.networks.idpcnn import IdpGenerator
from larmor.recon.networks.lipschitz import apply_spectral_norm
from larmor.recon.networks.own_networks import own_critic, own_generator
from larmor.recon.networks.residual_unet import ResidualUNet
from larmor.recon.networks.sat_net import SatNet
from larmor.recon.networks.similar import SimilarPatchesGenerator
from larmor.recon.networks.unet import UNetGenerator
from larmor.recon.recipe.own_name import is_own
from larmor.recon.recipe.settings import CriticConfig, GeneratorConfig


def build_generator(config: GeneratorConfig, channels: int = 1, stack: int = 1, guide: bool = False) -> nn.Module:
    """A generator for images of 1 (magnitude) or 2 (complex) channels, or 2 for each of several coils.

    `stack` consecutive images belong together; networks of single images treat each alone. With `guide` a second
    contrast is the last argument of a call (see `GuidedGenerator`).

    It is called with zero_filled (batch, channels, height, width), kspace, mask, for several coils maps, and where it
    has one a start that is known already (see `samples.Sample`); it ignores what it does not need.
    """

    def build() -> nn.Module:
        if is_own(config.name):
            return own_generator(config, channels, stack)
        if guide:
            return GuidedGenerator(_GENERATORS[config.name](config, channels + 1, stack))
        return _GENERATORS[config.name](config, channels, stack)

    if config.data_consistency == "none" and not config.start.enabled:
        return build()
    networks = [build() for _ in range(config.cascades)]
    return ConsistentGenerator(networks, config.data_consistency, config.iterations, config.start, stack)


class TrainedPart(NamedTuple):
    """What of a generator the training works on: `module`, whose parameters' names begin with `prefix` in the whole.

    A denoiser is called with a noisy image and its level, all else with what was measured.
    """

    module: nn.Module
    prefix: str = ""
    is_denoiser: bool = False


def trained_part(generator: nn.Module) -> TrainedPart:
    """The generator itself but for `idpcnn`: there the denoiser is trained, and the loop around it is used."""
    if isinstance(generator, IdpGenerator):
        return TrainedPart(generator.denoiser, "denoiser.", is_denoiser=True)
    return TrainedPart(generator)


_Build = Callable[[GeneratorConfig, int, int], nn.Module]
_GENERATORS: Mapping[str, _Build] = {
    "gan_resnet50": lambda config, channels, _: ResNet50Generator(config, channels),
    "dagan": lambda config, channels, _: DaganGenerator(config.width, channels, config.norm),
    "unet": lambda config, channels, _: UNetGenerator(config.width, channels, config.norm),
    "residual_unet": lambda config, channels, _: ResidualUNet(config.width, config.levels, channels, config.norm),
    "drgan": lambda config, channels, _: DrganGenerator(config.width, channels),
    "similar_patches": lambda config, channels, _: SimilarPatchesGenerator(config.width, channels, config.norm),
    "idpcnn": lambda config, channels, _: IdpGenerator(config.width, channels, config.norm, config.turns),
    "fda": lambda config, channels, _: FdaGenerator(config.width, channels, config.norm),
    "dilated": lambda config, channels, _: DilatedGenerator(config.width, channels, config.norm),
    "deepcomplex": lambda config, channels, _: DeepComplexBlock(config.width, channels),
    "conv_lstm": lambda config, channels, stack: ConvLstmStage(config.width, channels, stack),
    "sat_net": lambda config, channels, stack: SatNet(
        config.width, channels, stack, config.norm, config.attention_from_level
    ),
}


def build_critic(config: CriticConfig, channels: int = 1) -> nn.Module:
    """A critic (batch, channels, height, width) → (batch, 1)."""
    network: nn.Module
    if is_own(config.name):
        network = own_critic(config, channels)
    elif config.name == "dagan":
        network = DaganDiscriminator(config.width, channels, config.norm)
    else:
        network = ResNet50Critic(config, channels)
    return apply_spectral_norm(network) if config.lipschitz == "spectral_norm" else network
