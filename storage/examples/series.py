"""Two real series in time that anyone with a package index can have, fetched as heads are."""

from __future__ import annotations

from pathlib import Path

from larmor.storage.examples.heads import Head, fetch_heads
from larmor.storage.objects.progress import Progress, silent


def _rapidtide(subject: str, sha256: str, source: str) -> Head:
    member = f"rapidtide/data/examples/src/sub-{subject.upper()}.nii.gz"
    # later versions of the package do not have them any more
    return Head(subject, "rapidtide", "2.4.0", "wheel", member, sha256, "Apache-2.0", source)


SERIES: tuple[Head, ...] = (
    _rapidtide(
        "happytest",
        "e670ebe43980436c3490297f0a24677f6d2edf2ce38e3245a923f1ec2ccc101e",
        "the package's example sub-HAPPYTEST: multiband EPI of a head at rest, 110 frames of 1.16 s, 3 T, unmasked",
    ),
    _rapidtide(
        "rapidtidetest",
        "6d36e81652bab1275075562879433883cff8bd4a42cc9de54ee2c36a2a696ad6",
        "the package's example sub-RAPIDTIDETEST: EPI of a head at rest, 260 frames of 1.5 s, smoothed and masked: for "
        "training only",
    ),
)


def fetch_series(folder: Path, progress: Progress = silent) -> list[Path]:
    """Bring both series into `folder`, with what is known of them beside each. Raises as `fetch_heads` does."""
    return fetch_heads(folder, None, progress, SERIES)
