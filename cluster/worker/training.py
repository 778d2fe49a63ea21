"""Which training loop an experiment needs."""

from __future__ import annotations

from larmor.recon.recipe.recipe import Recipe
from larmor.recon.training.worker import Worker


def train_recipe(recipe: Recipe, worker: Worker) -> bool:
    """Train what the recipe is about, a reconstruction or a decoding. See `recon.training.train.train`."""
    if recipe.decoding is not None:
        from larmor.recon.decoding.train import train_decoding

        return train_decoding(recipe, worker)
    from larmor.recon.training.train import train

    return train(recipe, worker)
