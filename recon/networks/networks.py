"""The networks by the names that an experiment gives them."""

from __future__ import annotations

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
from larmor.recon.networks.idpcnn import IdpGenerator
from larmor.recon.networks.lipschitz import apply_spectral_norm
from larmor.recon.networks.residual_unet import ResidualUNet
from larmor.recon.networks.sat_net import SatNet
from larmor.recon.networks.similar import SimilarPatchesGenerator
from larmor.recon.networks.unet import UNetGenerator
from larmor.recon.recipe.settings import CriticConfig, GeneratorConfig


def build_generator(config: GeneratorConfig, channels: int = 1, stack: int = 1) -> nn.Module:
    """A generator for images of 1 (magnitude) or 2 (complex) channels, or 2 for each of several coils.

    `stack` consecutive images belong together; networks of single images treat each alone.

    It is called with zero_filled (batch, channels, height, width), kspace, mask, for several coils maps, and where it
    has one a start that is known already (see `samples.Sample`); it ignores what it does not need.
    """
    if config.data_consistency == "none" and not config.start.enabled:
        return _network(config, channels, stack)
    networks = [_network(config, channels, stack) for _ in range(config.cascades)]
    return ConsistentGenerator(networks, config.data_consistency, config.iterations, config.start, stack)


def trained_part(generator: nn.Module) -> tuple[str, nn.Module]:
    """What of a generator the training works on, and what its parameters' names begin with in the whole.

    It is the generator itself but for `idpcnn`: there the denoiser is trained, on noisy targets, and the loop is used.
    """
    return ("denoiser.", generator.denoiser) if isinstance(generator, IdpGenerator) else ("", generator)


def _network(config: GeneratorConfig, channels: int, stack: int) -> nn.Module:
    if config.name == "dagan":
        return DaganGenerator(config.width, channels, config.norm)
    if config.name == "unet":
        return UNetGenerator(config.width, channels, config.norm)
    if config.name == "residual_unet":
        return ResidualUNet(config.width, config.levels, channels, config.norm)
    if config.name == "drgan":
        return DrganGenerator(config.width, channels)
    if config.name == "similar_patches":
        return SimilarPatchesGenerator(config.width, channels, config.norm)
    if config.name == "idpcnn":
        return IdpGenerator(config.width, channels, config.norm, config.turns)
    if config.name == "fda":
        return FdaGenerator(config.width, channels, config.norm)
    if config.name == "dilated":
        return DilatedGenerator(config.width, channels, config.norm)
    if config.name == "deepcomplex":
        return DeepComplexBlock(config.width, channels)
    if config.name == "conv_lstm":
        return ConvLstmStage(config.width, channels, stack)
    if config.name == "sat_net":
        return SatNet(config.width, channels, stack, config.norm, config.attention_from_level)
    return ResNet50Generator(config, channels)


def build_critic(config: CriticConfig, channels: int = 1) -> nn.Module:
    """A critic (batch, channels, height, width) → (batch, 1)."""
    network: nn.Module
    if config.name == "dagan":
        network = DaganDiscriminator(config.width, channels, config.norm)
    else:
        network = ResNet50Critic(config, channels)
    return apply_spectral_norm(network) if config.lipschitz == "spectral_norm" else network
