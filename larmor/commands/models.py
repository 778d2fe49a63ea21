"""A trained model in use: pull, reconstruct, evaluate, export, report."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from larmor.cluster.runs.model_card import write_card
from larmor.cluster.runs.published import is_published
from larmor.cluster.runs.pull import Pulled, pull_run
from larmor.cluster.runs.push import Pushed, push_model
from larmor.commands.feedback import QUIET, Feedback
from larmor.commands.model_places import is_url, model_folder, pull_place, tables_folder
from larmor.storage.formats.source import Plane
from larmor.storage.objects.errors import InputError
from larmor.tuning.search.choice import choose_best
from larmor.tuning.search.sweep_folder import SweepFolder

if TYPE_CHECKING:  # `pull` needs no PyTorch
    import torch

    from larmor.recon.evaluation.evaluate import Evaluation
    from larmor.recon.models.model import Model
    from larmor.recon.models.reconstruct import ScanReport

TrustCode = Sequence[str | Path] | None
"""Where the code of a model lies whose parts are not Larmor's; `installed` for installed packages. None: nowhere."""


def pull(
    url: str,
    to: str | Path,
    metric: str | None = None,
    *,
    trial: str | None = None,
    prefer: str | None = None,
    full: bool = False,
    overwrite: bool = False,
) -> Pulled:
    """Pull a model into the model directory `to`, verified by checksum (`larmor pull`).

    `url` is that of a run or a sweep, whose best checkpoint is meant, or of a published model: a folder that `push`
    wrote, `hf://OWNER/NAME[@REVISION]`, `https://…` (a folder, or a .zip) or `larmor://NAME`, which is shipped. The
    validation metric `metric` decides which checkpoint is the best; default: the run's or the sweep's own. For a
    sweep, `trial` names one trial. For a sweep by two metrics, `prefer` chooses from the front: METRIC, or
    METRIC=WEIGHT,METRIC=WEIGHT. With `full` the whole training state is pulled too. Raises `InputError` for a URL
    without a checkpoint, for files that do not match their checksum and for an existing folder (unless `overwrite`).
    """
    return pull_place(url, Path(to), metric, trial, prefer, full, overwrite)


def push(
    model: str | Path, url: str, *, licence: str | None = None, overwrite: bool = False, public: bool = False
) -> Pushed:
    """Publish a model at `url`: `s3://…`, a folder, or `hf://OWNER/NAME[@REVISION]` (`larmor push`).

    `model` is a model directory, or the URL of a run or a sweep. `licence` is an id for the card, such as `apache-2.0`.
    A new repository of a hub is private unless `public`. Raises `InputError` for weights that have changed since they
    were pulled, and for a place that holds another model (unless `overwrite`) or anything else.
    """
    return push_model(model_folder(model), url, licence=licence, overwrite=overwrite, public=public)


def load_model(
    place: str | Path,
    metric: str | None = None,
    trial: str | None = None,
    device: str = "cpu",
    prefer: str | None = None,
    trust_code: TrustCode = None,
) -> torch.nn.Module:
    """Load the generator of a model directory, or of the URL of a run, a sweep or a published model, as a
    `torch.nn.Module`.

    The module is ready to use (evaluation mode, on `device`). It takes zero-filled images (batch, channels, height,
    width), float32, whose largest magnitude is 1. A generator with data consistency also takes the measured k-space
    and the mask, as `samples.Sample` has them. From a URL the model is pulled, verified and kept in the cache;
    `metric`, `trial` and `prefer` choose as in `pull`. A model with parts that are not Larmor's runs only the code at
    `trust_code` (see `recon.models.model.load_model`). Raises `errors.InputError`.
    """
    from larmor.recon.models import model

    return model.load_model(model_folder(place, metric, trial, prefer), device, trust_code).generator


@dataclass(frozen=True)
class ReconstructOptions:
    """What to reconstruct, and how.

    `split`: of a data set, default test. `undersample`: measured k-space is fully sampled and is undersampled with the
    model's mask. `mask`: a .npy (height, width) of the measured points. `plane`: of slices cut from images, as for
    `convert`. `format`: auto, nifti, dicom, h5 or npy; `anonymous`: DICOM that names nobody. `field_of_view`: whole, or
    that of the model's training. `uncertainty`: further models, or URLs of sweeps, of which the `members`
    best trials count; the images are then the mean of all models. `ratio`: the sampling ratio of what is undersampled,
    instead of the models' own. `guide`: the second contrast of the scans, as `source`, for models with signal.guide.
    `runtime`: eager is bit for bit the trained network; auto, channels_last and bfloat16 are as in
    `recon.models.runtimes`.
    """

    split: str | None = None
    undersample: bool = False
    mask: Path | None = None
    batch_size: int = 8
    plane: Plane = "coronal"
    format: str = "auto"
    anonymous: bool = False
    field_of_view: str = "whole"
    uncertainty: Sequence[str | Path] = ()
    members: int = 3
    ratio: float | None = None
    guide: str | None = None
    runtime: str = "eager"


def reconstruct(
    model_dir: str | Path,
    source: str,
    to: str | Path,
    options: ReconstructOptions | None = None,
    *,
    device: str = "cpu",
    feedback: Feedback = QUIET,
    trust_code: TrustCode = None,
) -> list[ScanReport]:
    """Reconstruct scans, or a data set, with a model (`larmor reconstruct`).

    `model_dir` is a model directory, or a URL as for `load_model`.
    `source` is a file, folder, pattern or URL as for `convert`, or the URL of a data set. Images (undersampled first)
    and measured k-space of any size are written to the folder `to`, volumes on their source's own grid,
    with a PNG. Returns a report for each scan; its `problem` says why the scan could not be reconstructed. Raises
    `InputError` for a model or a source that does not exist.
    """
    from larmor.recon.models.model import at_ratio, load_model
    from larmor.recon.models.reconstruct import check_places, reconstruct_scans
    from larmor.recon.models.results import ResultOptions, check_format
    from larmor.recon.models.runtimes import check_runtime
    from larmor.recon.models.scans import check_field_of_view, open_scans

    chosen = options or ReconstructOptions()
    results = ResultOptions(check_format(chosen.format), chosen.anonymous)
    whole = check_field_of_view(chosen.field_of_view)
    check_runtime(chosen.runtime)
    model = load_model(model_folder(model_dir), device, trust_code)
    others = [
        other
        for place in chosen.uncertainty
        for other in _ensemble(str(place), chosen.members, model, device, trust_code)
    ]
    if chosen.ratio is not None:
        if chosen.mask is not None:
            raise InputError(f"--ratio {chosen.ratio:g}: --mask says what was measured; leave one of them out")
        model, *others = (at_ratio(each, chosen.ratio) for each in (model, *others))
    check_places(source, Path(to))
    mask = str(chosen.mask) if chosen.mask else None
    with open_scans(
        source, model.physics, chosen.split, chosen.undersample, mask, feedback.say, chosen.plane, whole, chosen.guide
    ) as scans:
        return reconstruct_scans(
            model, scans, Path(to), chosen.batch_size, feedback.progress, results, others, chosen.runtime
        )


def _ensemble(place: str, count: int, model: Model, device: str, trust_code: TrustCode) -> list[Model]:
    """The model of a place, or those of a sweep's best trials without the one that `model` is."""
    from larmor.recon.models.model import load_model

    if is_published(place) or not SweepFolder(place).exists():
        return [load_model(model_folder(place), device, trust_code)]
    own = model.record.get("trial") if model.record.get("sweep") == place.rstrip("/") else None
    found = []
    with tempfile.TemporaryDirectory(prefix="larmor-") as scratch:
        for choice in choose_best(place, count, own):
            assert choice.about is not None, "it is a trial"
            folder = Path(scratch) / choice.about.trial
            pull_run(choice.run, choice.metric, folder, about=choice.about)
            found.append(load_model(folder, device, trust_code))
    return found


@dataclass(frozen=True)
class EvaluateOptions:
    """What to evaluate, and how.

    `methods`: those without training, of wavelet, total_variation, alternating, bart. `sizes`, `masks`, `ratios` and
    `noises` replace the models' own; a noise is a standard deviation, as a fraction of the image's largest magnitude.
    `metrics`: metrics of your own beside Larmor's, each MODULE:NAME; `trust_code` has their code.
    `every`: one slice in so many of each volume is evaluated. `preset`: paper or fastmri (`metric.py`).
    `uncertainty`: the models are an ensemble; whether their deviation says where their mean errs is measured.
    """

    methods: Sequence[str] = ()
    sizes: Sequence[tuple[int, int]] = ()
    masks: Sequence[str] = ()
    ratios: Sequence[float] = ()
    noises: Sequence[float] = ()
    metrics: Sequence[str] = ()
    segmentation: bool = False
    every: int = 1
    split: str = "test"
    preset: str = "paper"
    batch_size: int = 8
    uncertainty: bool = False


@dataclass(frozen=True)
class Evaluated:
    """The tables, and the files that were written."""

    tables: tuple[Evaluation, ...]
    files: tuple[Path, ...]


def evaluate(
    model_dirs: str | Path | Sequence[str | Path],
    url: str,
    options: EvaluateOptions | None = None,
    *,
    to: str | Path | None = None,
    device: str = "cpu",
    feedback: Feedback = QUIET,
    trust_code: TrustCode = None,
) -> Evaluated:
    """Evaluate models and methods without training on a data set, zero-filled first (`larmor evaluate`).

    `model_dirs` are model directories, or URLs as for `load_model`. Tables (CSV, Markdown, LaTeX) and pictures are
    written to `to`; default: the folder `evaluation` of the first model, if it is a directory. The results are
    added to the card of each model directory. Raises `InputError` for a model, a data set or a method that does not
    exist.
    """
    from larmor.recon.evaluation.calibration import check_members
    from larmor.recon.evaluation.evaluate import evaluate as evaluate_cell
    from larmor.recon.evaluation.methods import named, table_cells
    from larmor.recon.evaluation.segmentation import SegmentationConfig
    from larmor.recon.evaluation.tables import write_evaluation
    from larmor.recon.models.model import load_model
    from larmor.recon.recipe.metric import check_preset
    from larmor.recon.recipe.own_metric import own_metrics
    from larmor.recon.recipe.signal import SignalConfig
    from larmor.storage.loading.config import DataConfig, open_reader

    chosen = options or EvaluateOptions()
    places = [model_dirs] if isinstance(model_dirs, str | Path) else model_dirs
    target = tables_folder(places, to)
    models = named([load_model(model_folder(place), device, trust_code) for place in places])
    cells = table_cells(models, chosen.methods, chosen.sizes, chosen.masks, chosen.ratios, chosen.noises)
    beside = {kind: any(cell.physics.signal.beside[kind] for cell in cells) for kind in SignalConfig().beside}
    data = DataConfig(url=url, memory_cache_bytes=0, disk_cache_bytes=0)
    reader = open_reader(data, chosen.split, **beside)
    rules, tissues = check_preset(chosen.preset), SegmentationConfig() if chosen.segmentation else None
    own = own_metrics(chosen.metrics, trust_code)
    results = []
    members = [[name for name in cell.methods if name in models] if chosen.uncertainty else [] for cell in cells]
    if chosen.uncertainty:
        for ensemble in members:
            check_members(ensemble)
    for number, (cell, ensemble) in enumerate(zip(cells, members, strict=True), start=1):
        show = partial(feedback.progress, f"evaluating {number}/{len(cells)}")
        results.append(
            evaluate_cell(
                cell.methods,
                cell.physics,
                reader,
                rules,
                chosen.batch_size,
                show,
                device,
                tissues,
                chosen.every,
                ensemble,
                own,
            )
        )
    records = {name: model.record for name, model in models.items()}
    written = write_evaluation(results, reader.info, records, target)
    summary = next(path for path in written if path.name == "summary.json")
    for place, (name, model) in zip(places, models.items(), strict=True):
        if model.record and not is_url(place):  # pulled: its card gets the figures
            written.append(write_card(model.folder, model.folder.resolve().name, summary, name))
    return Evaluated(tuple(results), tuple(written))


def export(
    model_dir: str | Path,
    to: str | Path,
    *,
    size: tuple[int, int] | None = None,
    dynamic_size: bool = False,
    coils: int = 1,
    overwrite: bool = False,
    trust_code: TrustCode = None,
) -> list[str]:
    """Write a model as ONNX (`to` ends in .onnx) or for torch.export (.pt2), checked to 1e-4 (`larmor export`).

    `model_dir` is a model directory, or a URL as for `load_model`. `size` (height, width) is that of the
    images, default as trained. Returns lines that describe the file. Raises `InputError` for a file that exists (unless
    `overwrite`) and for a model that cannot be exported.
    """
    from larmor.recon.models.export import ExportConfig, describe_export, export_model
    from larmor.recon.models.model import load_model, read_recipe

    place = Path(to)
    if place.exists() and not overwrite:
        raise InputError(f"{place}: already exists; pass --overwrite or choose another --to")
    folder = model_folder(model_dir)
    if read_recipe(folder)[0].decoding is not None:
        from larmor.recon.decoding.export import export_decoding_model
        from larmor.recon.decoding.model import load_decoding_model

        return list(describe_export(export_decoding_model(load_decoding_model(folder), place)))
    model = load_model(folder, trust_code=trust_code)
    config = ExportConfig(size or model.physics.crop, dynamic_size, coils)
    return list(describe_export(export_model(model, place, config)))
