"""The ranking loss: matching pairs of image and trial above the others."""

from __future__ import annotations

import torch

from larmor.recon.decoding.losses import generator_loss, ranking_loss
from larmor.recon.decoding.networks import Tigan
from larmor.recon.decoding.trials import TrialShape
from larmor.recon.recipe.decoding import DecodingConfig

CODES = torch.eye(4)
STIMULI = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def test_matching_codes_cost_nothing_and_shuffled_ones_do() -> None:
    assert ranking_loss(CODES, CODES, STIMULI, margin=0.2) == 0
    # each pair now has cosine 0 for its own and 1 for another
    shuffled = ranking_loss(CODES, CODES.roll(1, dims=0), STIMULI, margin=0.2)
    assert float(shuffled) > 0.2


def test_the_loss_is_that_of_its_definition() -> None:
    image_code, bold_code = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(1)).unbind()
    cosine = torch.nn.functional.cosine_similarity(image_code[:, None], bold_code[None], dim=2)
    expected = [
        max(0.0, 0.3 + float(cosine[i, j] - cosine[i, i])) + max(0.0, 0.3 + float(cosine[j, i] - cosine[i, i]))
        for i in range(4)
        for j in range(4)
        if i != j
    ]
    found = ranking_loss(image_code, bold_code, STIMULI, margin=0.3)
    torch.testing.assert_close(found, torch.tensor(sum(expected) / len(expected)))


def test_trials_of_one_stimulus_are_not_told_apart() -> None:
    same = STIMULI[[0, 0, 1, 1]]
    codes = CODES[[0, 0, 1, 1]]
    assert ranking_loss(codes, codes, same, margin=0.2) == 0
    assert ranking_loss(codes, codes, STIMULI, margin=0.2) > 0
    assert ranking_loss(codes[:2], codes[:2], same[:2], margin=0.2) == 0, "a batch of one stimulus has nothing to rank"


def test_every_term_counts_with_its_weight() -> None:
    torch.manual_seed(0)
    config = DecodingConfig(width=4, units=8, code=6, content=3, autoencoder=5, ranking=7, adversarial=2)
    network = Tigan(TrialShape(5, 7, 16), config)
    terms = generator_loss(STIMULI, network(torch.randn(4, 5, 7), STIMULI), [torch.zeros(4, 1)], config)
    weighted = 3 * terms["content"] + 5 * terms["autoencoder"] + 7 * terms["ranking"] + 2 * terms["adversarial"]
    torch.testing.assert_close(terms["loss"], weighted)
    assert "adversarial" not in generator_loss(STIMULI, network(torch.randn(4, 5, 7), STIMULI), [], config)
