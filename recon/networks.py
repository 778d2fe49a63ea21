"""The networks by the names that an experiment gives them."""

from __future__ import annotations

from torch import nn

from recon.critic import ResNet50Critic
from recon.dagan import DaganDiscriminator, DaganGenerator
from recon.data_consistency import ConsistentGenerator
from recon.generator import ResNet50Generator
from recon.lipschitz import apply_spectral_norm
from recon.settings import CriticConfig, GeneratorConfig
from recon.unet import UNetGenerator


def build_generator(config: GeneratorConfig, channels: int = 1) -> nn.Module:
    """A generator for images of 1 (magnitude) or 2 (complex) channels.

    It is called with zero_filled (batch, channels, height, width), kspace, mask and, for several coils, maps (see
    `recon.samples.Sample`), and ignores what it does not need.
    """
    network: nn.Module
    if config.name == "dagan":
        network = DaganGenerator(config.width, channels, config.norm)
    elif config.name == "unet":
        network = UNetGenerator(config.width, channels, config.norm)
    else:
        network = ResNet50Generator(config, channels)
    if config.data_consistency == "none":
        return network
    return ConsistentGenerator(network, config.data_consistency, config.iterations)


def build_critic(config: CriticConfig, channels: int = 1) -> nn.Module:
    """A critic (batch, channels, height, width) → (batch, 1)."""
    network: nn.Module
    if config.name == "dagan":
        network = DaganDiscriminator(config.width, channels, config.norm)
    else:
        network = ResNet50Critic(config, channels)
    return apply_spectral_norm(network) if config.lipschitz == "spectral_norm" else network
