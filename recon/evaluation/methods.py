"""What stands in a table: models by the name of their system, and methods that need no training."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from pydantic import ValidationError
from torch import Tensor

from larmor.recon.evaluation.bart import bart_compressed_sensing
from larmor.recon.evaluation.compressed_sensing import CompressedSensingConfig, compressed_sensing
from larmor.recon.inference.inference import Method, Physics, network_method
from larmor.recon.models.model import Model
from larmor.recon.networks.classical_start import classical_start
from larmor.recon.networks.data_consistency import Measured
from larmor.recon.physics.pet import blurred
from larmor.recon.physics.samples import Sample
from larmor.recon.physics.views import mean_view, shared_views
from larmor.recon.recipe.mask_config import MaskConfig, RatioRange
from larmor.recon.recipe.settings import StartConfig
from larmor.recon.recipe.signal import SignalConfig
from larmor.storage.objects.errors import InputError

SMOOTHED_MM = 6.0
CLASSICAL = ("wavelet", "total_variation", "alternating", "bart")


def classical_method(name: str, physics: Physics) -> Method:
    """Compressed sensing by name, in the library's default settings (see `recon/evaluation/compressed_sensing.py`).

    `alternating`, wavelets and total variation by turns, is what the system `larmor` starts from (see
    `recon/networks/classical_start.py`): batches, on the device where they lie. Raises `InputError` for another name.
    """
    if name not in CLASSICAL:
        raise InputError(f"method '{name}': choose one of {', '.join(CLASSICAL)}; zero-filled is always in the table")
    if name == "alternating":
        return _alternating
    solve = bart_compressed_sensing if name == "bart" else compressed_sensing
    kind = "total_variation" if name == "total_variation" else "wavelet"
    config = CompressedSensingConfig(kind=kind, signal=physics.signal.mode)

    def reconstruct(sample: Sample) -> Tensor:
        return solve(sample.kspace, sample.mask, config, sample.maps).to(sample.target.device)

    return reconstruct


def standing_methods(physics: Physics) -> dict[str, Method]:
    """The rows that every table of a kind has: what needs no training, and what a result is held against.

    Of stacks, `view_sharing`: each point of k-space from the image of the stack nearest in time that measured it, and
    `temporal_mean`: one image for all of a stack, of each point's mean over those that measured it. Of PET,
    `smoothed`: filtered back-projection after a Gaussian of 6 mm full width at half maximum.
    """
    if physics.signal.mode == "pet":
        return {"smoothed": partial(_smoothed, SMOOTHED_MM / physics.signal.pet.pixel_mm)}
    if physics.stack == 1:
        return {}
    ways = {"view_sharing": shared_views, "temporal_mean": mean_view}
    return {name: partial(_combined, combine) for name, combine in ways.items()}


def _smoothed(fwhm: float, sample: Sample) -> Tensor:
    return blurred(sample.zero_filled, fwhm)


def _combined(combine: Callable[..., Tensor], sample: Sample) -> Tensor:
    measured = Measured(sample.kspace, sample.mask, sample.maps, sample.target.shape[1])
    return measured.views(partial(combine, stack=sample.stack))


def _alternating(sample: Sample) -> Tensor:
    measured = Measured(sample.kspace, sample.mask, sample.maps, sample.target.shape[1])
    if not measured.is_one_image:
        raise InputError(
            "method 'alternating' needs the sensitivity maps of the coils; convert the data with --sensitivity-maps, "
            "or leave the method out where signal.coils=all reads none"
        )
    return classical_start(sample.zero_filled, measured.put_back, StartConfig(method="alternating"))


@dataclass(frozen=True)
class Cell:
    """One table: how slices are undersampled, and what reconstructs them."""

    physics: Physics
    methods: Mapping[str, Method]


def table_cells(
    models: Mapping[str, Model],
    classical: Sequence[str],
    sizes: Sequence[tuple[int, int]] = (),
    kinds: Sequence[str] = (),
    ratios: Sequence[float] = (),
    noises: Sequence[float] = (),
) -> list[Cell]:
    """The tables of some models and of methods that need no training.

    Without sizes, kinds and ratios of masks and `noises` (standard deviations as in `signal.noise`) every model is
    evaluated on what it was trained for, equals together. With some, every model is evaluated on each combination;
    what is not given stays as the model has it. Raises `InputError` for a method that there is not and for masks or
    noise that cannot be.
    """
    if any(model.physics.signal.mode == "pet" for model in models.values()) and (
        classical or kinds or ratios or noises
    ):
        raise InputError(
            "--method, --mask, --ratio and --noise are about k-space, and a model with signal.mode=pet has none; leave "
            "them out: filtered back-projection is always in the table"
        )
    members: dict[Physics, dict[str, Method]] = {}
    guide = any(model.physics.signal.guide for model in models.values())
    for name, model in models.items():
        own = with_guide(model.physics, guide)  # those with one and those without stand in one table
        own_ratios: list[float | RatioRange] = [own.mask.sampling_ratio]
        signals = [noisy_signal(own.signal, level) for level in noises] or [own.signal]
        for size, kind, ratio, signal in itertools.product(
            sizes or [own.crop], kinds or [own.mask.kind], ratios or own_ratios, signals
        ):
            physics = Physics(size, mask_of(own.mask, kind, ratio), signal, own.stack)
            members.setdefault(physics, {})[name] = network_method(model.generator)
    return [
        Cell(physics, {**standing_methods(physics), **_classical(classical, physics), **networks})
        for physics, networks in members.items()
    ]


def with_guide(physics: Physics, guide: bool) -> Physics:
    """The same, where slices come with a second contrast or without."""
    return replace(physics, signal=physics.signal.model_copy(update={"guide": guide}))


def _classical(names: Sequence[str], physics: Physics) -> dict[str, Method]:
    return {name: classical_method(name, physics) for name in names}


def noisy_signal(own: SignalConfig, level: float) -> SignalConfig:
    """A signal as `own`, with noise of one standard deviation. Raises `InputError` if there is no such noise."""
    if not 0 <= level <= 1:
        raise InputError(
            f"--noise {level:g}: the standard deviation is a fraction of the image's largest magnitude; give a number "
            "between 0 and 1, such as 0.05"
        )
    return own.with_noise(level, level)


def mask_of(own: MaskConfig, kind: str, ratio: float | RatioRange) -> MaskConfig:
    """A mask as `own`, of another kind and ratio. Raises `InputError` if there is no such mask."""
    try:
        return MaskConfig.model_validate({**own.model_dump(), "kind": kind, "sampling_ratio": ratio})
    except ValidationError as error:
        problem = error.errors()[0]
        raise InputError(f"mask {kind} at ratio {ratio}: {problem['msg'].removeprefix('Value error, ')}") from error


def parse_size(text: str) -> tuple[int, int]:
    """`128x256` → (128, 256). Raises `InputError` for anything else and for images below 8×8."""
    parts = text.lower().replace("×", "x").split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) >= 8 for part in parts):
        raise InputError(f"size '{text}': expected HEIGHTxWIDTH of at least 8x8, such as 128x256")
    return int(parts[0]), int(parts[1])


def named(models: Sequence[Model]) -> dict[str, Model]:
    """Models by the name of their system or own generator, with the folder's name where that occurs twice.

    Raises `InputError` if that does not tell two models apart either.
    """
    systems = [model.recipe.title for model in models]
    found: dict[str, Model] = {}
    for system, model in zip(systems, models, strict=True):
        name = system if systems.count(system) == 1 else f"{system} ({model.folder.name})"
        if name in found:
            raise InputError(
                f"{model.folder} and {found[name].folder} would both stand in the table as '{name}'; rename one"
            )
        found[name] = model
    return found
