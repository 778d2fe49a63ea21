"""Real fMRI of a person who looked at pictures of eight categories (Haxby et al., Science 293:2425, 2001), subject 1.

PyMVPA's package has the back half of one axial slice: 40×20 voxels, 1,452 volumes of 2.5 s, 12 runs with a block of
nine volumes for each category. It does not have the photographs that were shown: the stimulus of a trial is a drawn
symbol of its category (`symbols.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.signal import detrend

from larmor.storage.dataset.trials import Trials
from larmor.storage.examples.heads import Head, fetch_heads
from larmor.storage.examples.symbols import category_symbols
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.progress import Progress, silent

SUBJECT = "haxby1"
_REST = "rest"


def _file(name: str, sha256: str) -> Head:
    stem = name.partition(".")[0]
    source = f"the package's example data, {name}: Haxby et al. 2001, subject 1, the back half of one axial slice"
    return Head(
        f"{SUBJECT}_{stem}", "pymvpa2", "2.6.5", "sdist", f"pymvpa2-2.6.5/mvpa2/data/{name}", sha256, "MIT", source
    )


FILES: tuple[Head, ...] = (
    _file("bold.nii.gz", "cbbd4d07803caaa9f77381af24e790cf77058664a128bd514a4c1668eefb92d7"),
    _file("mask.nii.gz", "8d879d35aaeee3afddfb69a7e1b8dd2b3be446671452d7e841dc6588845f2877"),
    _file("attributes_literal.txt", "7769f235e93d3157ef7bd1102abfaf3bc058ad9ca28e89dc60b8e47f473207c3"),
)


def fetch_haxby(folder: Path, progress: Progress = silent) -> Trials:
    """The 96 blocks of the experiment as trials; its files are brought into `folder`. Raises as `fetch_heads`."""
    bold_path, mask_path, attributes_path = fetch_heads(folder, None, progress, FILES)
    from nibabel.nifti1 import load

    bold = np.asarray(load(bold_path).dataobj, np.float32)
    mask = np.asarray(load(mask_path).dataobj).reshape(bold.shape[:3]) != 0
    rows = [line.split() for line in attributes_path.read_text().splitlines() if line.strip()]
    series = bold[mask].T  # (volume, voxel)
    if len(rows) != len(series):
        raise InputError(f"{attributes_path} is of {len(rows)} volumes, {bold_path} of {len(series)}; fetch them anew")
    categories, runs = [row[0] for row in rows], np.array([int(row[1]) for row in rows])
    return trials_of_blocks(standardized(series, runs), categories, runs)


def standardized(series: np.ndarray, runs: np.ndarray) -> np.ndarray:
    """(volume, voxel): the linear trend of each run taken off, then mean 0 and deviation 1 within it; of a voxel that
    never changes 0."""
    result = np.empty(series.shape, np.float32)
    for run in np.unique(runs):
        part = detrend(series[runs == run].astype(np.float64), axis=0)
        spread = part.std(axis=0)
        result[runs == run] = part / np.where(spread > 1e-6 * max(1.0, float(spread.max())), spread, np.inf)
    return result


def trials_of_blocks(series: np.ndarray, categories: Sequence[str], runs: np.ndarray) -> Trials:
    """A trial for each block of one category within one run; `series` (volume, voxel). Rest is left out.

    Raises `InputError` for blocks of unequal length and for categories without a symbol.
    """
    symbols = category_symbols()
    edges = [0, *(i for i in range(1, len(categories)) if (categories[i], runs[i]) != (categories[i - 1], runs[i - 1]))]
    blocks = [
        (start, stop)
        for start, stop in zip(edges, [*edges[1:], len(categories)], strict=True)
        if categories[start] != _REST
    ]
    names = [categories[start] for start, _ in blocks]
    if unknown := sorted(set(names) - set(symbols)):
        raise InputError(f"no symbol is drawn for {', '.join(unknown)}; there are {', '.join(symbols)}")
    if len({stop - start for start, stop in blocks}) != 1:
        raise InputError(
            f"blocks of {sorted({stop - start for start, stop in blocks})} volumes; all must be equally long"
        )
    return Trials(
        np.stack([symbols[name] for name in names])[:, None],
        np.stack([series[start:stop] for start, stop in blocks]),
        np.array([runs[start] for start, _ in blocks], np.int64),
    )
