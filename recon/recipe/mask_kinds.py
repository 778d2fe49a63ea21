"""The kinds of masks by name. Importing this file is cheap: the help of the command line lists them."""

from __future__ import annotations

KINDS = (
    "gaussian1d",
    "gaussian2d",
    "poisson2d",
    "uniform1d",
    "random1d",
    "center_periphery1d",
    "radial",
    "spiral",
    "file",
)
ALIASES = {"equispaced": "uniform1d", "random": "random1d"}
"""What others call the kinds."""
COLUMN_KINDS = ("gaussian1d", "uniform1d", "random1d", "center_periphery1d")
