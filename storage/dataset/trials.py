"""Trials of an fMRI experiment: the data set that decoding learns from, a kind of its own beside k-space slices.

URL/zarr.json            root group, as of every data set of Larmor; its attributes have `kind: trials`
URL/trials/stimulus      (trial, 1, height, width) float32 in [0, 1]: what the subject looked at
URL/trials/bold          (trial, volume, voxel) float32: the BOLD signal meanwhile
URL/trials/run           (trial,) int64: in which run of the scanner that was

A data set of this kind is small, and is read as a whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from larmor.storage.dataset.dataset import TRIALS, columns_checksum, read_root
from larmor.storage.dataset.writing import publish, refuse_occupied, remove
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore
from larmor.storage.objects.store_errors import again_if_damaged

SIZES = (16, 32, 64, 128)  # of stimuli: what halvings of 4×4 lead to
_DIMENSIONS = {"stimulus": 4, "bold": 3, "run": 1}


@dataclass(frozen=True)
class Trials:
    """`stimulus` (trial, 1, height, width) float32 in [0, 1], `bold` (trial, volume, voxel) float32, `run` (trial,).

    Raises `InputError` for arrays that do not belong together, hold values that are not finite, or stimuli of another
    shape.
    """

    stimulus: np.ndarray
    bold: np.ndarray
    run: np.ndarray

    def __post_init__(self) -> None:
        for name, dimensions in _DIMENSIONS.items():
            values = getattr(self, name)
            if values.ndim != dimensions or 0 in values.shape:
                raise InputError(
                    f"{name} has shape {values.shape}; {dimensions} axes with something in them are expected"
                )
            if len(values) != len(self.bold):
                raise InputError(
                    f"{name} is of {len(values)} trials, bold of {len(self.bold)}; give both of all trials"
                )
            if not np.isfinite(values).all():
                raise InputError(f"{name} holds values that are not finite; leave those trials out")
        _, channels, height, width = self.stimulus.shape
        if channels != 1 or height != width or height not in SIZES:
            raise InputError(
                f"stimuli of shape {self.stimulus.shape[1:]}; (1, size, size) with a size of "
                f"{', '.join(map(str, SIZES))} is expected: resample them"
            )
        if self.stimulus.min() < 0 or self.stimulus.max() > 1:
            raise InputError(
                f"stimuli from {self.stimulus.min():g} to {self.stimulus.max():g}; values in [0, 1] are expected"
            )

    def of_runs(self, runs: Iterable[int], wanted: bool = True) -> Trials:
        """The trials of these runs or, if not `wanted`, of all others.

        Raises `InputError` for a run that there is not, and if no trial is left.
        """
        named, known = sorted(set(runs)), sorted(set(self.run.tolist()))
        unknown = [run for run in named if run not in known]
        if unknown:
            raise InputError(f"no trial is of run {', '.join(map(str, unknown))}; the runs are {known}")
        chosen = np.isin(self.run, named) == wanted
        if not chosen.any():
            what = "all runs are held out" if named else "no run is named"
            raise InputError(f"{what} ({named} of {known}), which leaves no trial; name others")
        return Trials(self.stimulus[chosen], self.bold[chosen], self.run[chosen])


def write_trials(
    store: ObjectStore,
    trials: Trials,
    subject: str,
    sources: Iterable[Mapping[str, Any]],
    stimuli: str,
    overwrite: bool = False,
) -> None:
    """Publish a data set of trials; `sources` as `larmor convert` records them, `stimuli` says what the pictures are.

    Raises `InputError` if something else stands there, or a data set and `overwrite` is False.
    """
    import zarr
    from zarr.codecs import Crc32cCodec
    from zarr.storage import MemoryStore

    refuse_occupied(store, overwrite)
    remove(store)
    contents: dict[str, Any] = {}
    group = zarr.create_group(MemoryStore(contents), zarr_format=3)
    arrays = _arrays(trials)
    for name, values in arrays.items():
        group.create_array(name, data=values, chunks=values.shape, compressors=[Crc32cCodec()])
    for path, value in contents.items():
        store.write(f"{TRIALS}/{path}", value.to_bytes())
    volumes = [{"name": f"run {run}", "subject": subject} for run in np.unique(trials.run)]
    entry = {
        "num_slices": len(trials.run),
        "subjects": [subject],
        "volumes": volumes,
        "checksum": columns_checksum(arrays, _DIMENSIONS),
    }
    publish(store, {TRIALS: entry}, sources, kind=TRIALS, stimuli=stimuli)


def read_trials(store: ObjectStore) -> Trials:
    """The whole data set. Raises `InputError` if there is none, if it is of k-space slices, or damaged."""
    stated = read_root(store, TRIALS)["splits"][TRIALS]["checksum"]
    arrays = again_if_damaged(lambda: _read_arrays(store))
    if columns_checksum(arrays, _DIMENSIONS) != stated:
        raise InputError(f"{store.url}/{TRIALS}: does not match the root document; write the data set again")
    return Trials(**arrays)


def _read_arrays(store: ObjectStore) -> dict[str, np.ndarray]:
    import zarr
    from zarr.buffer import cpu
    from zarr.storage import MemoryStore

    paths = ["zarr.json", *(f"{name}/zarr.json" for name in _DIMENSIONS)]
    paths += [f"{name}/c/{'/'.join('0' * dimensions)}" for name, dimensions in _DIMENSIONS.items()]
    try:
        contents: Any = {path: cpu.Buffer.from_bytes(store.read(f"{TRIALS}/{path}")) for path in paths}
        group: Any = zarr.open_group(MemoryStore(contents), mode="r", zarr_format=3)
        return {name: np.asarray(group[name][:]) for name in _DIMENSIONS}
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{store.url}/{TRIALS}: is damaged ({error}); write the data set again") from error


def _arrays(trials: Trials) -> dict[str, np.ndarray]:
    kinds = {"stimulus": np.float32, "bold": np.float32, "run": np.int64}
    return {
        field.name: np.ascontiguousarray(getattr(trials, field.name), kinds[field.name])
        for field in dataclasses.fields(trials)
    }
