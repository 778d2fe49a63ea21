"""What lies beside a reconstruction to look at: a contact sheet and a page of slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from larmor.recon.inference.figures import contact_sheet
from larmor.recon.inference.inference import ZERO_FILLED, Reconstructed
from larmor.recon.inference.slices_page import DEVIATION, TARGET, Stack, slice_content, write_page

_PICTURED = 8  # slices on the contact sheet
_ON_PAGE = 24  # slices on the page


@dataclass
class Pictures:
    """A few evenly spaced slices for a contact sheet, zero-filled above, reconstructions below, then the deviations of
    an ensemble, and for a page. `name` is the method that is shown."""

    num_slices: int
    name: str
    shown: dict[int, list[np.ndarray]] = field(default_factory=dict)
    contents: dict[int, dict[str, Any]] = field(default_factory=dict)

    def add(self, first: int, *kinds: np.ndarray) -> None:
        places = np.linspace(0.15, 0.85, _PICTURED) * (self.num_slices - 1)
        for place in set(places.round().astype(int).tolist()) & set(range(first, first + len(kinds[0]))):
            self.shown[place] = [images[place - first].copy() for images in kinds]

    def add_to_page(self, first: int, result: Reconstructed, has_target: bool) -> None:
        """Slices in the range of their target."""
        places = np.linspace(0.05, 0.95, _ON_PAGE) * (self.num_slices - 1)
        for place in set(places.round().astype(int).tolist()) & set(range(first, first + len(result.indices))):
            row = place - first
            images = {TARGET: result.target[row]} if has_target else {}
            images |= {ZERO_FILLED: result.images[ZERO_FILLED][row], "reconstruction": result.images[self.name][row]}
            if DEVIATION in result.images:
                images[DEVIATION] = result.images[DEVIATION][row]
            residual = result.residual and result.residual.rows([row])
            self.contents[place] = slice_content(f"slice {place}", images, residual=residual)

    def write(self, beside: Path, name: str, letters: Sequence[str] | None) -> list[Path]:
        """PNG and page with the name of the file `beside`; `letters` are those of a `Stack`."""
        sheet, page = beside.with_suffix(".png"), beside.with_suffix(".html")
        self._write_sheet(sheet)
        stack = Stack(name, [self.contents[place] for place in sorted(self.contents)], letters)
        write_page(page, f"{name} – Larmor reconstruction", [stack])
        return [sheet, page]

    def _write_sheet(self, path: Path) -> None:
        names = ("zero-filled", "reconstruction", "deviation")
        kinds = enumerate(names[: len(next(iter(self.shown.values())))])
        shown = [
            (self.shown[place][side], f"{kind}, slice {place}") for side, kind in kinds for place in sorted(self.shown)
        ]
        contact_sheet([image for image, _ in shown], [title for _, title in shown], len(self.shown), path)
