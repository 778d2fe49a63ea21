"""A data set in lines of text, as `larmor inspect` prints it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from larmor.storage.dataset.dataset import SPLITS, read_root, read_split
from larmor.storage.dataset.layout import array_name
from larmor.storage.objects.object_store import ObjectStore


def describe(store: ObjectStore) -> list[str]:
    """What `larmor inspect` prints: a line per split, array and source."""
    root = read_root(store)
    lines = [f"{store.url}: Larmor data set, format {root['format']}"]
    for split in (name for name in SPLITS if name in root["splits"]):
        info = read_split(store, split)
        for bucket in info.buckets:
            for kind in bucket.checksums:
                megabytes = 8e-6 * float(np.prod(bucket.shape)) * bucket.num_slices
                lines.append(
                    f"{split}: {array_name(kind, bucket.number)} {(bucket.num_slices, *bucket.shape)} (slice, coil, "
                    "height, width) complex64, chunk = 1 slice, "
                    f"shard = {bucket.shard_slices} slices, {megabytes:.1f} MB"
                )
        counts = [f"{volume} ({len(info.slices_of(volume))})" for volume in info.volumes]
        lines.append(f"  volumes: {', '.join(counts)}")
    for source in root["sources"]:
        lines.append("source " + describe_source(source))
    return lines


def describe_source(source: Mapping[str, Any]) -> str:
    """One line about where a volume comes from."""
    voxel = source.get("voxel_size_mm")
    parts = [
        ", ".join(file["file"] for file in source["files"][:1]) + (", …" if len(source["files"]) > 1 else ""),
        f"{source['format']}, {source['plane']} slices",
        *([f"{source['package']} {source['version']}"] if "package" in source else []),
        *([" × ".join(f"{size:.3g}" for size in voxel) + " mm"] if voxel else []),
        f"licence: {source['licence']}",
        f"sha256 {source['files'][0]['sha256'][:16]}…",
        *([f"guide: {source['guide']['files'][0]['file']}"] if "guide" in source else []),
    ]
    return f"{source['volume']}: {', '.join(parts)}"
