"""The networks of TIGAN: sizes, the course of time, and what an engine passes on."""

from __future__ import annotations

import pytest
import torch

from larmor.recon.decoding.networks import Tigan, build_critic, shape_of, unpacked
from larmor.recon.decoding.trials import TrialShape
from larmor.recon.recipe.decoding import DecodingConfig

SMALL = DecodingConfig(width=4, units=8, code=6)


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def small_network(shape: TrialShape, seed: int = 0) -> Tigan:
    torch.manual_seed(seed)
    return Tigan(shape, SMALL).eval()


def test_the_number_of_parameters_is_that_of_the_document() -> None:
    shape = TrialShape(9, 530, 32)
    network = Tigan(shape, DecodingConfig())
    assert count(network.bold) + count(network.decoder) == 2_024_961
    assert count(network.image) == 1_181_248
    assert count(build_critic(shape, DecodingConfig())) == 660_929


@pytest.mark.parametrize("size", [16, 32, 64])
def test_images_are_in_the_range_and_of_the_size_of_the_stimuli(size: int) -> None:
    shape = TrialShape(5, 7, size)
    network, trials = small_network(shape), torch.randn(3, 5, 7)
    images = network(trials)
    assert images.shape == (3, 1, size, size)
    assert 0 < float(images.detach().min()) < float(images.detach().max()) < 1
    assert build_critic(shape, SMALL)(images).shape == (3, 1)


def test_the_order_of_the_volumes_counts() -> None:
    network, trials = small_network(TrialShape(5, 7, 16)), torch.randn(2, 5, 7)
    assert not torch.allclose(network(trials), network(trials.flip(1)), atol=1e-4)


def test_a_trial_does_not_depend_on_the_others_of_its_batch() -> None:
    network, trials = small_network(TrialShape(5, 7, 16)), torch.randn(3, 5, 7)
    alone = torch.cat([network(trial[None]) for trial in trials])
    torch.testing.assert_close(network(trials), alone)


def test_what_an_engine_passes_on_is_taken_apart_again() -> None:
    network, trials, stimuli = small_network(TrialShape(5, 7, 16)), torch.randn(3, 5, 7), torch.rand(3, 1, 16, 16)
    parts = unpacked(network(trials, stimuli), 16)
    torch.testing.assert_close(parts.decoded, network(trials))
    torch.testing.assert_close(parts.image_code, network.image(stimuli))
    torch.testing.assert_close(parts.bold_code, network.bold(trials))
    torch.testing.assert_close(parts.again, network.decoder(parts.image_code))


@pytest.mark.parametrize("shape", [TrialShape(5, 7, 16), TrialShape(10, 3, 64)])
def test_the_weights_say_what_trials_they_are_for(shape: TrialShape) -> None:
    assert shape_of(small_network(shape).state_dict()) == shape
