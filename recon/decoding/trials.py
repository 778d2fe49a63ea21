"""The trials of a recipe, and which of them train, validate and test: by runs of the scanner."""

from __future__ import annotations

from dataclasses import dataclass

from larmor.recon.recipe.decoding import DecodingConfig
from larmor.storage.dataset.dataset import read_identity
from larmor.storage.dataset.trials import Trials, read_trials
from larmor.storage.loading.config import DataConfig, check_identity
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore

SMALLEST = 4  # height and width of the smallest feature maps


@dataclass(frozen=True)
class TrialShape:
    """Of one trial: its volumes and voxels, and the height and width of the stimulus."""

    num_volumes: int
    num_voxels: int
    size: int

    @property
    def num_levels(self) -> int:
        """Halvings of the stimulus down to 4×4."""
        return (self.size // SMALLEST).bit_length() - 1


@dataclass(frozen=True)
class SplitTrials:
    """Trials that train, and trials that choose the best checkpoint."""

    train: Trials
    validation: Trials


def open_trials(data: DataConfig) -> Trials:
    """The trials behind `data.url`. Raises `InputError` for data of another kind, or not those of `data.sha256`."""
    store = ObjectStore(data.url)
    trials = read_trials(store)
    check_identity(data, read_identity(store))
    return trials


def shape_of_trials(trials: Trials) -> TrialShape:
    _, num_volumes, num_voxels = trials.bold.shape
    return TrialShape(num_volumes, num_voxels, trials.stimulus.shape[-1])


def split_trials(trials: Trials, config: DecodingConfig) -> SplitTrials:
    """Trials that train and that validate; those of `test_runs` are in neither.

    Raises `InputError` for runs that the data set does not have, or that leave nothing to train or validate with.
    """
    if not config.validation_runs:
        known = sorted(set(trials.run.tolist()))
        raise InputError(f"decoding.validation_runs is empty; name one of the runs {known} at least")
    held_out = (*config.validation_runs, *config.test_runs)
    return SplitTrials(trials.of_runs(held_out, wanted=False), trials.of_runs(config.validation_runs))
