"""Simulations that make a file of each head: what all of them do beside the images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from larmor.recon.evaluation.head_tissues import BRAIN
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.progress import Progress


@dataclass(frozen=True)
class SimulatedHead:
    """What became of a head: the file that was written, or the reason why none was."""

    head: Path
    path: Path | None = None
    problem: str = ""


SimulateHead = Callable[[Path, str, Path, np.random.Generator], float]
"""(head, its name, the file to write, draws of its own) → litres of brain; nothing is written unless `is_whole`."""


def is_whole(brain: float) -> bool:
    """Whether so many litres are a brain that was found whole."""
    return BRAIN[0] <= brain <= BRAIN[1]


def simulate_heads(
    simulate: SimulateHead,
    heads: Sequence[Path],
    folder: Path,
    suffix: str,
    seed: int,
    overwrite: bool,
    progress: Progress,
) -> list[SimulatedHead]:
    """Write `<head><suffix>` into `folder` for each head, but for those whose brain is not found whole.

    Raises `InputError` for heads of one name, for a file that already exists (unless `overwrite`), and if no head is
    left.
    """
    places: dict[Path, Path] = {}
    for head in heads:
        path = folder / f"{head.name.partition('.')[0]}{suffix}"
        if path in places.values():
            raise InputError(f"{head}: another head has this name, too, and so would its file {path}; rename one")
        if path.exists() and not overwrite:
            raise InputError(f"{path}: already exists; pass --overwrite, or choose another --to")
        places[head] = path
    found = []
    for number, (head, path) in enumerate(places.items()):
        progress("heads", number, len(heads))
        name = path.name.removesuffix(suffix)
        brain = simulate(head, name, path, np.random.default_rng([seed, number]))
        limits = f"{BRAIN[0]:g} to {BRAIN[1]:g}"
        problem = "" if is_whole(brain) else f"{head}: {brain:.2f} L of brain are found, not {limits}; left out"
        found.append(SimulatedHead(head, None if problem else path, problem))
    progress("heads", len(heads), len(heads))
    if not any(one.path for one in found):
        raise InputError("\n".join(one.problem for one in found))
    return found
