"""Drawn symbols of the eight categories of the Haxby experiment: ours, since its photographs are in no package."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

SIZE = 32  # height and width of a symbol
_FINE = 8  # drawn so many times as large, then averaged: smooth edges


class _Pen:
    """Draws in white (1) or black (0) on a canvas whose rows and columns run from 0 to `SIZE`."""

    def __init__(self) -> None:
        self.canvas = np.zeros((SIZE * _FINE, SIZE * _FINE), np.float32)

    def polygon(self, *corners: tuple[float, float], value: float = 1.0) -> None:
        """A filled polygon with corners (row, column)."""
        from skimage.draw import polygon

        rows, columns = np.array(corners).T * _FINE
        self.canvas[polygon(rows, columns, self.canvas.shape)] = value

    def box(self, top: float, left: float, bottom: float, right: float, value: float = 1.0) -> None:
        self.polygon((top, left), (top, right), (bottom, right), (bottom, left), value=value)

    def ellipse(self, row: float, column: float, height: float, width: float, value: float = 1.0) -> None:
        """A filled ellipse about (row, column) with these half axes."""
        from skimage.draw import ellipse

        place = (row * _FINE, column * _FINE, height * _FINE, width * _FINE)
        self.canvas[ellipse(*place, shape=self.canvas.shape)] = value

    def line(self, start: tuple[float, float], end: tuple[float, float], width: float) -> None:
        """A bar of that width between two points (row, column)."""
        along = np.subtract(end, start) / np.hypot(*np.subtract(end, start))
        across = np.array([-along[1], along[0]]) * width / 2
        corners = (start + across, end + across, end - across, start - across)
        self.polygon(*((float(row), float(column)) for row, column in corners))


def _face(pen: _Pen) -> None:
    pen.ellipse(16, 16, 14, 11)
    for column in (11.5, 20.5):
        pen.ellipse(13, column, 2, 2.5, 0)
    pen.polygon((15, 16), (20, 14), (20, 18), value=0)
    pen.ellipse(24, 16, 1.5, 5, 0)


def _house(pen: _Pen) -> None:
    pen.polygon((2, 16), (14, 2), (14, 30))
    pen.box(14, 5, 30, 27)
    pen.box(20, 13, 30, 19, 0)
    for left in (7, 21):
        pen.box(17, left, 21, left + 4, 0)


def _cat(pen: _Pen) -> None:
    for side in (-1, 1):
        pen.polygon((1, 16 + 11 * side), (13, 16 + 11 * side), (8, 16 + 2 * side))
    pen.ellipse(18, 16, 11, 13)
    for column in (10, 22):
        pen.ellipse(15, column, 3, 1.2, 0)
    for row in (20, 23):
        for left in (1, 20):
            pen.box(row, left, row + 0.9, left + 11, 0)


def _shoe(pen: _Pen) -> None:
    pen.polygon((8, 3), (8, 13), (16, 18), (19, 29), (23, 31), (23, 3))
    pen.box(25, 3, 28, 31)


def _bottle(pen: _Pen) -> None:
    pen.box(1, 13, 4, 19)
    pen.polygon((5, 13.5), (5, 18.5), (11, 18.5), (14, 22), (31, 22), (31, 10), (14, 10), (11, 13.5))
    pen.box(18, 11.5, 25, 20.5, 0)


def _scissors(pen: _Pen) -> None:
    pen.line((1, 8), (23, 22), 3)
    pen.line((1, 24), (23, 10), 3)
    for column in (8.5, 23.5):
        pen.ellipse(25, column, 6, 5)
        pen.ellipse(25, column, 3.5, 2.5, 0)


def _chair(pen: _Pen) -> None:
    pen.box(1, 6, 31, 9)
    pen.box(16, 6, 19, 26)
    pen.box(16, 23, 31, 26)
    pen.box(4, 9, 7, 15)


def _scrambled(pen: _Pen) -> None:
    tiles = np.random.default_rng(0).integers(0, 2, (8, 8)).astype(np.float32)
    pen.canvas[:] = np.kron(tiles, np.ones((4 * _FINE, 4 * _FINE), np.float32))


_DRAWINGS: Mapping[str, Callable[[_Pen], None]] = {
    "face": _face,
    "house": _house,
    "cat": _cat,
    "shoe": _shoe,
    "bottle": _bottle,
    "scissors": _scissors,
    "chair": _chair,
    "scrambledpix": _scrambled,  # as the experiment's attributes call it
}


def category_symbols() -> dict[str, np.ndarray]:
    """Category → (`SIZE`, `SIZE`) float32 in [0, 1]; always the same."""
    found = {}
    for name, draw in _DRAWINGS.items():
        pen = _Pen()
        draw(pen)
        found[name] = pen.canvas.reshape(SIZE, _FINE, SIZE, _FINE).mean(axis=(1, 3))
    return found
