"""The contact sheet of a data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from larmor.recon.inference.figures import contact_sheet
from larmor.recon.physics.samples import magnitude
from larmor.storage.dataset.dataset import SPLITS, read_root, read_split
from larmor.storage.loading.reader import SliceReader
from larmor.storage.objects.object_store import ObjectStore

COLUMNS = 8
MOST_VOLUMES = 16  # of each split: more would be a picture that nobody can open


def write_contact_sheet(store: ObjectStore, path: Path) -> None:
    """Eight evenly spaced slices of the first volumes of each split, reconstructed from the stored k-space."""
    images, titles = [], []
    splits = read_root(store)["splits"]
    for split in (name for name in SPLITS if name in splits):
        reader = SliceReader(store, read_split(store, split))
        for volume in reader.info.volumes[:MOST_VOLUMES]:
            indices = reader.info.slices_of(volume)
            chosen = indices[np.linspace(0, len(indices) - 1, COLUMNS).round().astype(int)]
            kspace = torch.from_numpy(np.stack(reader.read([int(index) for index in chosen])))
            images += list(magnitude(kspace)[:, 0].numpy())
            titles += [f"{volume} ({split}) y={reader.info.position[index]:.0f} mm" for index in chosen]
        reader.close()
    contact_sheet(images, titles, COLUMNS, path)
