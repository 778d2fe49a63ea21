"""Reconstruct scans into files: slice by slice, in bounded memory, each scan's files whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from larmor.recon.inference.inference import (
    ZERO_FILLED,
    Reconstructed,
    check_finite,
    network_method,
    reconstruct_sample,
    whole_stacks,
)
from larmor.recon.inference.residual import ResidualSum, describe_share
from larmor.recon.inference.slices_page import DEVIATION
from larmor.recon.models.ensemble import Calibration, check_alike, combined, member_methods
from larmor.recon.models.measured import measured_sample
from larmor.recon.models.model import Model
from larmor.recon.models.pictures import Pictures
from larmor.recon.models.residual import has_residual, measured_residual
from larmor.recon.models.results import SUFFIXES, ResultOptions, write_result
from larmor.recon.models.runtimes import AUTO, EAGER, with_runtime
from larmor.recon.models.scans import Scan, Slices
from larmor.recon.physics.feed import to_device
from larmor.recon.physics.samples import Sample, denormalize, prepare
from larmor.recon.recipe.mask_config import RatioRange
from larmor.storage.formats.dicom_writer import DEVIATIONS
from larmor.storage.loading.loader import Batch
from larmor.storage.loading.stacks import in_stacks
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.progress import Count, Progress, silent
from larmor.storage.objects.store_errors import StoreAway

_MODEL = "the model"


@dataclass(frozen=True)
class ScanReport:
    """What became of a scan: its `files`, or the `problem` because of which there are none.

    `generator_seconds` is the time of the generator alone, for all `num_slices`; `notes` are those of `Source`, and of
    what was undersampled; `calibration` is there for an ensemble whose target is known, `residual` (of all slices, see
    `Residual`) where images can be compared with the measurement.
    """

    name: str
    files: tuple[Path, ...] = ()
    num_slices: int = 0
    generator_seconds: float = 0.0
    problem: str = ""
    notes: tuple[str, ...] = ()
    calibration: Calibration | None = None
    residual: float | None = None

    @property
    def changed(self) -> str:
        """The residual in words."""
        return "" if self.residual is None else f"measured points changed by {describe_share(self.residual)}"


def reconstruct_scans(
    model: Model,
    scans: Sequence[Scan],
    folder: Path,
    batch_size: int,
    progress: Progress = silent,
    options: ResultOptions | None = None,
    others: Sequence[Model] = (),
    runtime: str = EAGER,
) -> list[ScanReport]:
    """Reconstruct every scan into `folder`: `NAME-reconstruction` in the format of `options`, float32, in the source's
    intensities, a PNG, and a page of slices to look at. A bad scan does not stop the others. With `others` the images
    are the mean of all models, and `NAME-uncertainty` is their standard deviation. The networks run as `runtime` says
    (see `recon.models.runtimes`); `auto` is measured once the first scan is known to be good.

    Memory: two batches of slices beside what the scan's format holds. Raises `StoreAway` if a store is gone,
    `OSError` if the files cannot be written, and `InputError` for `others` of another kind
    and for a runtime that cannot be had.
    """
    check_alike(model, others)
    models = [model, *others]
    ready = None if runtime == AUTO else [with_runtime(each, runtime) for each in models]
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    reports, wanted = [], options or ResultOptions()
    for number, scan in enumerate(scans, start=1):
        try:
            with scan.open() as slices:
                wanted.check(scan.name, slices)
                shown = partial(progress, "slices")
                ready = ready or [with_runtime(each, runtime) for each in models]
                results = _results(ready[0], slices, batch_size, ready[1:], wanted.pictured)
                reports.append(_reconstruct(model, results, scan.name, slices, folder, shown, wanted))
        except StoreAway:
            raise  # the scan may be good
        except InputError as error:
            named = scan.name in str(error)
            reports.append(ScanReport(scan.name, problem=str(error) if named else f"{scan.name}: {error}"))
        progress("scans", number, len(scans))
    if is_new and not any(report.files for report in reports):
        folder.rmdir()
    return reports


def images_of(model: Model, slices: Slices, batch_size: int) -> Iterator[np.ndarray]:
    """(slice, height, width) float32: the images of a scan in the intensities of its k-space, a batch at a time.

    Raises `InputError` for a slice that the model cannot take.
    """
    for result in _results(model, slices, batch_size, watched=False):
        yield np.ascontiguousarray(_intensities(result, _MODEL) + slices.offset, np.float32)


def check_places(source: str, folder: Path) -> None:
    """Raises `InputError` if the results would lie among the scans, where the next call would find them."""
    place = Path(source).expanduser()
    if place.is_dir() and folder.resolve().is_relative_to(place.resolve()):
        raise InputError(f"--to {folder}: lies in {source}, whose scans are read; choose a folder outside it")


def describe_speed(reports: Sequence[ScanReport], seconds: float, device: str) -> str:
    """One line: the generator's time for a slice, and slices in a second with reading and writing."""
    done = [report for report in reports if not report.problem]
    slices = sum(report.num_slices for report in done)
    each = sum(report.generator_seconds for report in done) / slices
    return (
        f"{slices} slices of {len(done)} scan(s): {each * 1000:.1f} ms per slice for the generator on {device}, "
        f"{slices / seconds:.1f} slices/s with reading and writing"
    )


def _reconstruct(
    model: Model,
    results: Iterator[Reconstructed],
    name: str,
    slices: Slices,
    folder: Path,
    progress: Count,
    options: ResultOptions,
) -> ScanReport:
    if not slices.num_slices:
        raise InputError(f"{name}: holds no slices to reconstruct")
    if slices.num_slices < model.physics.stack:
        raise InputError(
            f"{name}: has {slices.num_slices} slices or frames, and the model sees {model.physics.stack} together "
            "(data.stack); reconstruct longer scans, or train a model with a smaller data.stack"
        )
    with tempfile.TemporaryDirectory(prefix=".larmor-", dir=folder) as scratch:
        images = Path(scratch, f"{name}-reconstruction.npy")
        pictures = Pictures(slices.num_slices, _MODEL) if options.pictured else None
        deviations = images.with_name(f"{name}-uncertainty.npy")
        seconds, calibration, residual = _stream(results, (images, deviations), slices, pictures, progress)
        files = [write_result(images, slices, options)]
        if pictures:
            files += pictures.write(images, name, slices.volume.letters if slices.volume else None)
        if deviations.exists():
            files.append(write_result(deviations, slices, options, DEVIATIONS))
        written = tuple(_publish(file, folder / file.name) for file in files)
        _remove_older(folder / f"{name}-uncertainty", written)
    notes = (*slices.notes, *_of_ratios(model, slices))
    done = ScanReport(name, written, slices.num_slices, seconds, notes=notes)
    return replace(done, calibration=calibration, residual=residual)


def _of_ratios(model: Model, slices: Slices) -> list[str]:
    """What is to be known of images that are undersampled by a model of many ratios."""
    mask = model.physics.mask
    if slices.measured or not isinstance(mask.sampling_ratio, RatioRange):
        return []
    return [f"undersampled at {mask.ratio_in_words}, a ratio drawn for each slice; --ratio chooses one for all"]


def _publish(made: Path, place: Path) -> Path:
    """Move a file or folder to its place. A folder of an earlier call goes where `made` was, and goes with that."""
    if place.is_dir() and made.is_dir():
        place.replace(made.with_name(f"{made.name}-before"))
    return made.replace(place)


def _remove_older(map_: Path, written: Sequence[Path]) -> None:
    """A map of an earlier call, or in another format, is not of the images that lie there now."""
    for suffix in SUFFIXES:
        found = map_.with_name(map_.name + suffix)
        if found in written:
            continue
        if found.is_dir() and not found.is_symlink():
            shutil.rmtree(found)
        else:
            found.unlink(missing_ok=True)


def _results(
    model: Model, slices: Slices, batch_size: int, others: Sequence[Model] = (), watched: bool = True
) -> Iterator[Reconstructed]:
    """`watched`: with what was changed of the measurement, where it can be known."""
    device, physics = next(model.generator.parameters()).device, model.physics
    noiseless = physics.signal.with_noise(0, 0)  # a scan has its own
    methods = member_methods([model, *others]) if others else {_MODEL: network_method(model.generator)}
    watched = watched and all(has_residual(one.recipe, slices.measured) for one in (model, *others))
    seen: set[int] = set()
    file = physics.mask.file
    for batch in _read_ahead(slices, batch_size, physics.stack):
        moved = slices.coils(to_device(batch, device))
        size = slices.size_of(moved, physics.crop)
        if not slices.measured and file is not None and size != physics.crop:
            raise InputError(
                f"the model's mask is the file {file} of {'×'.join(map(str, physics.crop))}, but the whole images are "
                f"{'×'.join(map(str, size))} (height×width); choose --field-of-view model"
            )
        if slices.measured:
            sample = measured_sample(moved, model, device, size)
        else:
            sample = prepare(moved, size, physics.mask, device, signal=noiseless, stack=physics.stack)
        outputs: list[Tensor] = []
        note = partial(_keep, outputs) if watched else None
        result = reconstruct_sample(methods, sample, tuple(int(place) for place in batch.samples[:, 1]), note)
        result = replace(result, residual=measured_residual(sample, outputs) if watched else None).without(seen)
        seen.update(result.indices)
        check_finite(result, "slice {}".format)
        result = combined(result, _MODEL) if others else result
        yield result if slices.size else result.cut(moved.size)


def _keep(outputs: list[Tensor], _name: str, output: Tensor, _sample: Sample) -> None:
    outputs.append(output)


def _read_ahead(slices: Slices, batch_size: int, stack: int) -> Iterator[Batch]:
    """All slices in order, in stacks (see `in_stacks`); the next batch is read while one is reconstructed."""
    order, size = in_stacks(range(slices.num_slices), stack).reshape(-1).tolist(), whole_stacks(batch_size, stack)
    ahead: Future[Batch] | None = None
    with ThreadPoolExecutor(1, thread_name_prefix="larmor-scan") as pool:
        for first in range(0, len(order), size):
            reading = pool.submit(slices.read, order[first : first + size])
            if ahead:
                yield ahead.result()
            ahead = reading
        if ahead:
            yield ahead.result()


def _stream(
    results: Iterator[Reconstructed],
    paths: tuple[Path, Path],
    slices: Slices,
    pictures: Pictures | None,
    progress: Count,
) -> tuple[float, Calibration | None, float | None]:
    """Write the images as they come to the first .npy file, and deviations, of an ensemble, to the second; the
    generator's seconds, the calibration where targets are known, and the residual where it is."""
    done, seconds, calibration, residual = 0, 0.0, None, ResidualSum()
    with ExitStack() as opened:
        files: dict[Path, BinaryIO] = {}
        for result in results:
            images, zero_filled = (_intensities(result, key) + slices.offset for key in (_MODEL, ZERO_FILLED))
            made = [zero_filled, images]
            if DEVIATION in result.images:
                low, high = result.scale.T
                made.append(result.images[DEVIATION] * (high - low)[:, None, None])
                if not slices.measured and result.shows.any():
                    calibration = calibration or Calibration()
                    calibration.add(*(image[result.shows] for image in _rated(result)))
            if result.residual:
                residual.add(result.residual)
            if pictures:
                pictures.add(done, *made)
                pictures.add_to_page(done, result, not slices.measured)
            for path, array, least in zip(paths, made[1:], (-np.inf, 0.0), strict=False):
                if path not in files:
                    files[path] = opened.enter_context(path.open("wb"))
                _append(files[path], array, slices, not done, least)
            done, seconds = done + len(images), seconds + result.seconds[_MODEL]
            progress(done, slices.num_slices)
    assert done == slices.num_slices
    return seconds, calibration, residual.share


def _append(file: BinaryIO, images: np.ndarray, slices: Slices, is_first: bool, least: float = -np.inf) -> None:
    """Images (n, height, width) on the source's voxels, at the end of a .npy file of all slices; what interpolation
    leaves below `least` is raised to it."""
    images = images if slices.volume is None else slices.volume.to_voxels(images)
    images = np.maximum(images, least) if least > -np.inf else images
    if is_first:
        header = {"descr": "<f4", "fortran_order": False, "shape": (slices.num_slices, *images.shape[1:])}
        np.lib.format.write_array_header_1_0(file, header)
    # written, not mapped: a full disk is then an error and not a crash
    file.write(np.ascontiguousarray(images, "<f4").data)


def _rated(result: Reconstructed) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return result.target, result.images[_MODEL], result.images[DEVIATION]


def _intensities(result: Reconstructed, key: str) -> np.ndarray:
    images: Tensor = torch.from_numpy(result.images[key])[:, None]
    return denormalize(images, torch.from_numpy(result.scale))[:, 0].numpy()
