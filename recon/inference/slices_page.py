"""Slices side by side as a page: target, what was reconstructed and the errors, to scroll, window and zoom.

A page that holds its slices loads nothing from anywhere, and forbids itself to (Content-Security-Policy).
"""

from __future__ import annotations

import base64
import html
import importlib.resources
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from larmor.recon.inference.figures import Example
from larmor.recon.inference.metrics import SSIM_WINDOW, slice_metrics
from larmor.recon.inference.residual import Residual, describe_share

TARGET = "target"
DEVIATION = "standard_deviation"
"""Of an ensemble: a map in the colours of errors, which has no metrics."""
RESIDUAL, RESIDUAL_KSPACE = "change_of_the_measurement", "change_in_k-space"
"""What putting the measured points back would change: in the colours of errors, and its k-space, logarithmic."""
_DECADES = 4  # of k-space, below the largest measured value
_MARK = '<script type="application/json" id="slices">'
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; form-action 'none'"
)


@dataclass(frozen=True)
class Stack:
    """Slices of one volume: what `slice_content` made of each. `letters` are those of the directions at the top, the
    bottom, the left and the right."""

    name: str
    slices: Sequence[Mapping[str, Any]]
    letters: Sequence[str] | None = None

    def content(self) -> dict[str, Any]:
        """For JSON."""
        return {"name": self.name, "count": len(self.slices), "letters": self.letters, "slices": list(self.slices)}


def slice_content(
    title: str, images: Mapping[str, np.ndarray], bits: int = 8, residual: Residual | None = None
) -> dict[str, Any]:
    """Images (height, width) of one slice for JSON, in `bits` (8 or 16) a pixel; the first one is the target if it is
    called so. Then the others have metrics (preset `paper`) beside them. `residual` is that of this slice alone."""
    target = images.get(TARGET)
    panes = []
    for name, image in images.items():
        pane = _packed(image, bits)
        if target is not None and name not in (TARGET, DEVIATION) and min(target.shape) >= SSIM_WINDOW:
            rated = slice_metrics(target, image)
            shown = (f"PSNR {rated['psnr']:.2f} dB", f"SSIM {rated['ssim']:.4f}", f"NMSE {rated['nmse']:.3g}")
            pane["metrics"] = " · ".join(shown)
        if name == DEVIATION:
            pane["map"] = True
        panes.append({"name": name, **pane})
    panes += _residual_panes(residual, bits) if residual else []
    return {"title": title, "target": target is not None, "panes": panes}


def _residual_panes(residual: Residual, bits: int) -> list[dict[str, Any]]:
    """The change in the image, and in k-space, where 1 is the largest measured value and 0 a 10⁻⁴ of it."""
    with np.errstate(divide="ignore"):
        decades = (1 + np.log10(residual.kspace[0]) / _DECADES).clip(0, 1)
    share, range_ = describe_share(float(residual.shares[0])), f"10⁻{'⁰¹²³⁴'[_DECADES]} to 1 of its largest value"
    return [
        {"name": RESIDUAL, **_packed(residual.image[0], bits), "map": True, "metrics": share},
        {
            "name": RESIDUAL_KSPACE,
            **_packed(decades, bits),
            "map": True,
            "fixed": True,  # logarithmic, and of frequencies: no gain, no letters
            "metrics": range_,
        },
    ]


def example_stack(name: str, examples: Sequence[Example]) -> Stack:
    """The examples of a figure, in the range of their target."""
    return Stack(name, [slice_content(one.title, {TARGET: one.target, **one.images}) for one in examples])


def _packed(image: np.ndarray, bits: int) -> dict[str, Any]:
    low, high = float(image.min()), float(image.max())
    top = 2**bits - 1
    stored = np.round((image - low) * (top / (high - low) if high > low else 0)).astype("<u2" if bits == 16 else "u1")
    data = base64.b64encode(zlib.compress(np.ascontiguousarray(stored).tobytes(), 6)).decode()
    height, width = image.shape
    return {"width": width, "height": height, "low": low, "high": high, "bits": bits, "data": data}


def page_html(title: str, content: Mapping[str, Any]) -> str:
    """A whole page; `content` has the `stacks`."""
    policy = "" if content.get("served") else f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><link rel="icon" href="data:,">{policy}'
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}\n<meta name="viewport" content="width=device-width">\n'
        f"<style>body {{ margin: 0; background: #111; }}{style()}</style></head><body>\n"
        f'{viewer_html("view", content)}<script>document.getElementById("view").focus();</script></body></html>\n'
    )


def viewer_html(identity: str, content: Mapping[str, Any], with_script: bool = True) -> str:
    """The viewer as a part of a page, in an element of that `identity`; the script is wanted once a page."""
    packed = json.dumps(content).replace("<", "\\u003c")
    mark = _MARK.replace('id="slices"', f'id="{identity}-slices"')
    code = f"<script>{script()}</script>" if with_script else ""
    root, slices = (f'document.getElementById("{name}")' for name in (identity, f"{identity}-slices"))
    start = f"larmorSlices({root}, JSON.parse({slices}.textContent));"
    return f'<div id="{identity}"></div>{mark}{packed}</script>{code}<script>{start}</script>'


def script() -> str:
    """The viewer's JavaScript."""
    return importlib.resources.files("larmor.recon.inference").joinpath("slices.js").read_text()


def style() -> str:
    """The viewer's style sheet."""
    return importlib.resources.files("larmor.recon.inference").joinpath("slices.css").read_text()


def write_page(path: Path, title: str, stacks: Sequence[Stack]) -> None:
    """A page that holds its slices."""
    path.write_text(page_html(title, {"stacks": [stack.content() for stack in stacks]}))


def read_page(path: Path) -> list[dict[str, Any]]:
    """The stacks of a page that `write_page` wrote; none of another page."""
    _, mark, rest = path.read_text(errors="replace").partition(_MARK.replace('id="slices"', 'id="view-slices"'))
    if not mark:
        return []
    return json.loads(rest.partition("</script>")[0])["stacks"]
