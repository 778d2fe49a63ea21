"""A training starts from the weights of another (`init_from`): what fits is copied into its run's folder once."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from larmor.cluster.experiments.experiment import Experiment, differing_keys, get_dotted
from larmor.cluster.runs.initial import FOLDER, RECORD, Initial, Taken, read_initial
from larmor.cluster.runs.run_folder import RunFolder
from larmor.cluster.runs.source import Source, Stored, find_source
from larmor.recon.recipe.own_code import check_code, is_own
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore

if TYPE_CHECKING:  # who starts a training from random weights needs no PyTorch
    from larmor.recon.training.initial import Match, Wanted

E = TypeVar("E", bound=Experiment)
_MOST_KEYS = 4  # in a sentence


class Folder(Protocol):
    """The folder of a run or a sweep."""

    store: ObjectStore

    @property
    def url(self) -> str: ...


@dataclass(frozen=True)
class Part:
    """A network of the training beside what the source has of it."""

    wanted: Wanted
    found: Mapping[str, Stored]
    match: Match

    def taken(self) -> Taken:
        """For the record."""
        left = [f"{name} (not there)" for name in self.match.missing]
        left += [self._shapes(name) for name in self.match.differing]
        return Taken(
            len(self.match.fitting),
            len(self.wanted.shapes),
            self.match.parameters,
            tuple(left),
            self.match.unexpected,
        )

    def problem(self) -> str:
        """The first tensors that do not fit, and how many there are of each kind."""
        kinds = (
            ("missing there", self.match.missing, str),
            ("unknown here", self.match.unexpected, str),
            ("of another shape", self.match.differing, self._shapes),
        )
        found = [f"{len(names)} {what}, first {say(names[0])}" for what, names, say in kinds if names]
        return "; ".join(found)

    def _shapes(self, name: str) -> str:
        there, here = ("×".join(map(str, shape)) for shape in (self.found[name].shape, self.wanted.shapes[name]))
        return f"{name} ({there or 'scalar'} there, {here or 'scalar'} here)"


def check_initial(experiment: Experiment, run: Folder, overwrite: bool) -> None:
    """Raises `InputError` if the source of `init_from` is not there or does not fit. Writes nothing.

    A run that has its initial weights already needs no source any more; nor is a sweep that has begun asked again.
    """
    if experiment.init_from is None or (not overwrite and run.store.exists(RECORD)):
        return
    source = find_source(experiment.init_from)
    if f"{source.store.url}/".startswith(f"{run.url}/"):
        raise InputError(f"init_from={source.store.url}: is this run itself; choose another name=…")
    match_source(experiment, source)


def adopt_initial(experiment: Experiment, run: RunFolder) -> Initial | None:
    """Copy what `init_from` names into the folder of a new run; its record, or None if there was nothing to do.

    Raises `InputError` for a source that is not there, is damaged or does not fit.
    """
    if experiment.init_from is None or run.store.exists(RECORD):
        return None
    source = find_source(experiment.init_from)
    parts = match_source(experiment, source)
    with _written(source, parts) as folder:
        files = run.upload_part(folder, FOLDER)
    initial = Initial(source.url, source.sha256, source.step, experiment.init_from.matching, _taken(parts), files)
    run.check_lease()
    run.store.write(RECORD, initial.to_json(), guard=run.check_lease)
    return initial


def pin_initial(experiment: E, folder: Folder) -> E:
    """The experiment of a sweep with `init_from.sha256` as it was when the sweep began: all trials take the same."""
    if experiment.init_from is None:
        return experiment
    if (known := read_initial(folder.store)) is None:
        source = find_source(experiment.init_from)
        known = Initial(source.url, source.sha256, source.step, experiment.init_from.matching)
        folder.store.create(RECORD, known.to_json())
    return experiment.model_copy(update={"init_from": experiment.init_from.model_copy(update={"sha256": known.sha256})})


def match_source(experiment: Experiment, source: Source) -> dict[str, Part]:
    """Each network of the training beside the source's. Raises `InputError` where they do not fit as they should."""
    from larmor.recon.training.initial import match, wanted_networks  # they need PyTorch

    config = experiment.init_from
    assert config, "there is something to start from"
    _check_kind(experiment, source)
    parts = {}
    for name, wanted in wanted_networks(experiment).items():
        found = _found(name, wanted, source, config.averages)
        shapes = {key: stored.shape for key, stored in found.items()}
        parts[name] = Part(wanted, found, match(wanted, shapes))
    if config.matching == "strict":
        _refuse_other_code(experiment, source)
    for name, part in parts.items():
        if not part.match.is_whole and (config.matching == "strict" or not part.match.fitting):
            raise InputError(_mismatch(experiment, source, name, part))
    return parts


def _check_kind(experiment: Experiment, source: Source) -> None:
    """Raises `InputError` if critics or averages are wanted of a source that has none."""
    config = experiment.init_from
    assert config
    if source.is_model and (config.critics or config.averages):
        key = "critics" if config.critics else "averages"
        raise InputError(
            f"init_from.{key}=true: {source.url} is a pulled model, which has the generator alone; name the run that "
            f"it was pulled from, or set init_from.{key}=false"
        )
    if config.averages and not source.setting("training", "ema_decay"):
        raise InputError(
            f"init_from.averages=true: {source.url} has no averaged weights (its training.ema_decay is 0); set it to "
            "false"
        )
    if config.critics and not any(source.trained(role.engine) for role in experiment.loss.critics):
        raise InputError(
            f"init_from.critics=true: {source.url} has no critic (its loss.adversarial is "
            f"{source.setting('loss', 'adversarial')}); set it to false"
        )


def _found(name: str, wanted: Wanted, source: Source, averages: bool) -> dict[str, Stored]:
    """What the source has of a network, by the names that it has here."""
    if name == "generator" and not averages:
        return {key.removeprefix(wanted.prefix): stored for key, stored in source.weights().items()}
    return source.weights() if name == "average" else source.trained(name)


def _refuse_other_code(experiment: Experiment, source: Source) -> None:
    """A network of one's own is what its code makes of the weights."""
    known, now = source.setting("code", "sha256"), check_code(experiment.code)
    if is_own(experiment.generator.name) and known and known != now:
        raise InputError(
            f"init_from={source.url}: was trained with other code than that of this experiment (SHA-256 "
            f"{known[:12]}…, here {now[:12] if now else 'none'}…); give the code of the training, or set "
            "init_from.matching=by_name to take its weights nevertheless"
        )


def _mismatch(experiment: Experiment, source: Source, name: str, part: Part) -> str:
    here = experiment.model_dump(mode="json")
    keys = [
        f"{section}.{key}"
        for section in ("generator", *(["critic"] if name.startswith("critic") else []))
        for key in differing_keys(source.config.get(section) or {}, here[section])
        if source.setting(section, key) is not None
    ]
    settings = [f"{key}={source.setting(*key.split('.'))} there, {get_dotted(experiment, key)} here" for key in keys]
    differs = f" ({'; '.join(settings[:_MOST_KEYS])})" if settings else ""
    if experiment.init_from and experiment.init_from.matching == "by_name":
        return (
            f"init_from={source.url}: no tensor of its {name} has the name and shape of one here{differs}; use the "
            "network that it was trained with"
        )
    return (
        f"init_from={source.url}: its {name} is another network than this one{differs}: {part.problem()}; use the "
        "network that it was trained with, or set init_from.matching=by_name to take what fits"
    )


@contextmanager
def _written(source: Source, parts: Mapping[str, Part]) -> Iterator[Path]:
    """A folder with the tensors that fit, a file for each network."""
    from safetensors import SafetensorError, safe_open

    from larmor.recon.training.initial import write_weights

    with tempfile.TemporaryDirectory(prefix="larmor-initial-") as scratch:
        there, here = Path(scratch, "source"), Path(scratch, FOLDER)
        source.download({part.found[name].file for part in parts.values() for name in part.match.fitting}, there)
        for network, part in parts.items():
            weights = {}
            for name in part.match.fitting:
                stored = part.found[name]
                try:
                    with safe_open(there / stored.file, framework="pt") as file:
                        weights[name] = file.get_tensor(stored.name)
                except SafetensorError as error:
                    raise InputError(f"init_from={source.url}: {stored.file} is damaged ({error})") from error
            write_weights(here / f"{network}.safetensors", weights)
        yield here


def _taken(parts: Mapping[str, Part]) -> dict[str, Taken]:
    return {name: part.taken() for name, part in parts.items()}
