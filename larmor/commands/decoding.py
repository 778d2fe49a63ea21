"""Decoding, a task of its own: trials of an fMRI experiment, and models that make pictures of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from larmor.commands.feedback import QUIET, Feedback
from larmor.commands.model_places import model_folder, tables_folder
from larmor.storage.dataset.dataset import TRIALS, read_root
from larmor.storage.dataset.trials import Trials, read_trials, write_trials
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.file_digest import file_digest
from larmor.storage.objects.home import cache_home
from larmor.storage.objects.object_store import ObjectStore

if TYPE_CHECKING:
    from larmor.recon.decoding.evaluate import DecodingEvaluation
    from larmor.storage.examples.heads import Head
    from larmor.storage.examples.simulated_bold import SimulatedBold

_SYMBOLS = "drawn symbols of the categories, not the photographs that the subject saw"
_DIGITS = "real handwritten digits; the fMRI is simulated"


def fetch(
    source: str,
    to: str,
    simulation: SimulatedBold | None = None,
    *,
    overwrite: bool = False,
    feedback: Feedback = QUIET,
) -> Trials:
    """Make a data set of trials of data that anyone can have (`larmor decode fetch`).

    `haxby`: real fMRI with a drawn symbol of its category for each block. `digits`: real digits with fMRI that is
    simulated as `simulation` says. Raises `InputError` for another source, for files that cannot be had, and for a data
    set that already exists (unless `overwrite`).
    """
    from larmor.storage.examples import haxby, simulated_bold

    folder = cache_home() / "trials"
    if source == "haxby":
        trials = haxby.fetch_haxby(folder, feedback.progress)
        about = [_described(head, folder, haxby.SUBJECT) for head in haxby.FILES]
        _write(to, trials, haxby.SUBJECT, about, _SYMBOLS, overwrite)
    elif source == "digits":
        config = simulation or simulated_bold.SimulatedBold()
        trials = simulated_bold.simulate_trials(simulated_bold.fetch_digits(folder, feedback.progress), config)
        record = {**_described(simulated_bold.DIGITS, folder, "digits"), "synthetic": dataclasses.asdict(config)}
        _write(to, trials, simulated_bold.SUBJECT, [record], _DIGITS, overwrite)
    else:
        raise InputError(f"source '{source}': choose haxby or digits, or convert arrays with `larmor decode convert`")
    return trials


def convert(source: str | Path, to: str, stimuli: str = "as given", *, overwrite: bool = False) -> Trials:
    """Make a data set of trials of your own arrays (`larmor decode convert`).

    `source` is a .npz with `stimulus` (trial, 1, size, size) in [0, 1], `bold` (trial, volume, voxel), standardised
    within each run, and `run` (trial,). `stimuli` says what the pictures are, in every table. Raises `InputError` for a
    file without these arrays, and for a data set that already exists (unless `overwrite`).
    """
    path = Path(source)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            trials = Trials(
                arrays["stimulus"].astype(np.float32), arrays["bold"].astype(np.float32), arrays["run"].astype(np.int64)
            )
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (ValueError, KeyError, OSError, EOFError, AttributeError) as error:
        raise InputError(f"{path}: is no .npz with the arrays stimulus, bold and run ({error})") from error
    about = {
        "volume": path.stem,
        "subject": path.stem,
        "files": [{"file": path.name, "sha256": file_digest(path)}],
        "licence": "not stated",
    }
    _write(to, trials, path.stem, [about], stimuli, overwrite)
    return trials


@dataclass(frozen=True)
class Decoded:
    """The scores, lines that show them, and the files that were written."""

    evaluation: DecodingEvaluation
    lines: tuple[str, ...]
    files: tuple[Path, ...]


def evaluate(
    model_dirs: str | Path | Sequence[str | Path], url: str, *, to: str | Path | None = None, device: str = "cpu"
) -> Decoded:
    """Evaluate models that decode on the runs that each held out (`larmor decode evaluate`).

    `model_dirs` are model directories, or URLs as for `load_model`.
    Several models are folds of one experiment: their held-out trials are scored together. A table, its numbers and a
    picture are written to `to`; default: the folder `evaluation` of the first model. Raises `InputError` for models
    that reconstruct, and for data that hold no trials, or trials of another shape.
    """
    from larmor.recon.decoding.evaluate import evaluate_decoding
    from larmor.recon.decoding.model import load_decoding_model
    from larmor.recon.decoding.report import text_lines, write_report

    places = [model_dirs] if isinstance(model_dirs, str | Path) else model_dirs
    target = tables_folder(places, to)
    models = [load_decoding_model(model_folder(place), device) for place in places]
    store = ObjectStore(url)
    stimuli = read_root(store, TRIALS).get("stimuli", "not stated")
    result = evaluate_decoding(models, read_trials(store))
    files = write_report(result, stimuli, target)
    return Decoded(result, tuple(text_lines(result, stimuli)), tuple(files))


def _write(
    to: str, trials: Trials, subject: str, sources: Sequence[Mapping[str, Any]], stimuli: str, overwrite: bool
) -> None:
    write_trials(ObjectStore(to), trials, subject, sources, stimuli, overwrite)


def _described(head: Head, folder: Path, subject: str) -> dict[str, Any]:
    """What is recorded of a fetched file, as of a volume that was converted."""
    return {
        "volume": head.subject,
        "subject": subject,
        "files": [{"file": head.file_name, "sha256": file_digest(folder / head.file_name)}],
        "package": head.package,
        "version": head.version,
        "member": head.member,
        "licence": f"{head.licence} (declared by the package)",
        "source": head.source,
    }
