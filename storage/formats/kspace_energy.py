"""Whether an array is laid out as k-space is: by where its energy lies, since an array says nothing of itself.

The energy of k-space lies about zero frequency. Along slices and coils it is spread.
"""

from __future__ import annotations

import numpy as np

FEWEST_SAMPLES = 16  # of an axis that is judged
FEWEST_SLICES = 32
MOST = 0.75
"""Of the energy: in a quarter of an axis, that is k-space; the signal of a body fills more of the slices."""
HALF = 0.5
"""Of the energy: at three places of an axis of slices, that is k-space."""


def notes_on_stack(stack: np.ndarray) -> list[str]:
    """What to note of k-space (slice, coil, height, width) or (slice, height, width): of its axes, else of the slice in
    the middle."""
    middle = np.asarray(stack[len(stack) // 2])
    return notes_on_axes(stack) or notes_on_slice(middle.reshape(-1, *middle.shape[-2:]))


def notes_on_slice(kspace: np.ndarray) -> list[str]:
    """What to note of one slice (coil, height, width): zero frequency that is not at [n // 2]."""
    energy = _energy(kspace)
    where = [_place_of_energy(_profile(energy, axis)) for axis in (1, 2)]
    if "corner" not in where:
        return []
    shifted = [name for name, place in zip(("height", "width"), where, strict=True) if place == "corner"]
    return [
        f"the energy of the k-space lies at the ends of its {' and '.join(shifted)}, but zero frequency is expected at "
        "[height // 2, width // 2]; if it is at [0, 0], masks and images are wrong: apply numpy.fft.fftshift to these "
        "axes, and save the array again"
    ]


def notes_on_axes(stack: np.ndarray) -> list[str]:
    """What to note of k-space (slice, coil, height, width) or (slice, height, width) whose axes have another order.

    Reads the first slice and the middle one (in another order, either may be where zero frequency is), and of the
    others one sample of each coil.
    """
    slices = (np.asarray(stack[place]) for place in (0, len(stack) // 2))
    energy = max((_energy(one.reshape(-1, *one.shape[-2:])) for one in slices), key=np.sum)
    if not energy.any() or not np.isfinite(energy).all():
        return []
    along_slices, along_coils = _along_slices(stack, energy), _profile(energy, 0)
    places = [_place_of_energy(_profile(energy, axis)) for axis in (1, 2)]
    if _is_sharp(along_coils) or (_is_sharp(along_slices) and "" in places):
        expected = "(slice, coil, height, width)" if stack.ndim == 4 else "(slice, height, width)"
        return [
            f"the energy of the array of shape {stack.shape} does not lie as that of {expected}, which is expected, "
            "but as if its axes had another order; reorder them with numpy.transpose, and save the array again"
        ]
    if _is_sharp(along_slices):
        return [
            f"the energy of the array of shape {stack.shape} lies about the middle of all axes, as in 3-D k-space: "
            "apply the inverse FFT along the first axis to get slices, and save the array again"
        ]
    return []


def _energy(kspace: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.square(np.abs(kspace), dtype=np.float32)


def _along_slices(stack: np.ndarray, energy: np.ndarray) -> np.ndarray:
    """The energy of each slice where that of one of them, `energy`, is largest."""
    row, column = np.unravel_index(int(energy.sum(axis=0).argmax()), energy.shape[1:])
    cut = np.asarray(stack[..., row, column])
    return _energy(cut.reshape(len(stack), -1)).sum(axis=1, dtype=np.float64)


def _profile(energy: np.ndarray, axis: int) -> np.ndarray:
    others = tuple(other for other in range(energy.ndim) if other != axis)
    return np.asarray(energy.sum(axis=others, dtype=np.float64))


def _place_of_energy(profile: np.ndarray) -> str:
    """`centre` or `corner`, where a quarter of the axis about it holds most; "" if neither does."""
    if len(profile) < FEWEST_SAMPLES:
        return "centre"  # too short to tell
    for place, shifted in (("centre", profile), ("corner", np.fft.fftshift(profile))):
        if _share(shifted, len(profile) // 8) > MOST:
            return place
    return ""


def _is_sharp(profile: np.ndarray) -> bool:
    """Whether three places about the centre, or the corner, hold half of the energy."""
    if len(profile) < FEWEST_SLICES:
        return False
    return any(_share(shifted, 1) > HALF for shifted in (profile, np.fft.fftshift(profile)))


def _share(profile: np.ndarray, reach: int) -> float:
    centre = len(profile) // 2
    total = float(profile.sum())
    return float(profile[centre - reach : centre + reach + 1].sum()) / total if total > 0 else 0.0
