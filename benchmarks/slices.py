"""The slices that `loader.py` reads, the place they lie at, and that place's content in every contender's format."""

from __future__ import annotations

import importlib
import io
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import crc32c
import numpy as np

from larmor.storage.dataset import writing
from larmor.storage.dataset.layout import SplitLayout, StoredVolume
from larmor.storage.objects.object_store import ObjectStore

SHAPE = (1, 256, 256)
SLICE_BYTES = 8 * 256 * 256
BATCH = 16
FILE_SLICES = 128  # 64 MiB: the size of our shards, and of every other format's files
SPLIT = "train"


def make_slice(index: int) -> np.ndarray:
    """Noise (coil, height, width) complex64, as measured k-space mostly is: no compression makes it smaller."""
    noise = np.random.default_rng([7, index]).standard_normal((*SHAPE, 2), dtype=np.float32)
    return noise.view(np.complex64)[..., 0]


def marks_of(batch: np.ndarray) -> np.ndarray:
    """(slices,) uint64: the first value of each slice, by which slices are told apart at no cost."""
    return np.ascontiguousarray(batch[:, 0, 0, 0]).view(np.uint64)


def checksums_of(batch: np.ndarray) -> list[int]:
    """CRC-32C of every slice, whole."""
    return [crc32c.crc32c(np.ascontiguousarray(item).data) for item in batch]


@dataclass(frozen=True)
class Place:
    """Where a contender reads: below `url` (s3://bucket/prefix), `num_slices` of them; `scratch` is on local disk."""

    url: str
    num_slices: int
    scratch: Path

    @property
    def bucket(self) -> str:
        return self.url.removeprefix("s3://").split("/")[0]

    def key(self, path: str) -> str:
        """The object's name in its bucket."""
        return f"{self.url.removeprefix('s3://').split('/', 1)[1]}/{path}"

    @cached_property
    def s3(self) -> Any:
        """A botocore client: endpoint, region and credentials come from the standard AWS environment."""
        import botocore.config
        import botocore.session

        config = botocore.config.Config(signature_version="s3v4")
        return botocore.session.Session().create_client("s3", config=config)

    def credentials(self) -> Any:
        """Access key, secret key and token, for clients that do not look for them as AWS does."""
        import botocore.session

        return botocore.session.Session().get_credentials().get_frozen_credentials()

    def signed(self, path: str) -> str:
        """A URL that anyone may GET for an hour."""
        arguments = {"Bucket": self.bucket, "Key": self.key(path)}
        return str(self.s3.generate_presigned_url("get_object", Params=arguments, ExpiresIn=3600))

    def store(self, part: str) -> ObjectStore:
        """Everything below `url/part`."""
        return ObjectStore(f"{self.url}/{part}")

    def files(self) -> list[range]:
        """The slices of each file, in every format that has files of a fixed number of slices."""
        starts = range(0, self.num_slices, FILE_SLICES)
        return [range(start, min(start + FILE_SLICES, self.num_slices)) for start in starts]


def load(module: str) -> Any:
    """Import a module; MosaicML Streaming also beside a torchvision whose operators do not load."""
    if module == "streaming":
        try:
            importlib.import_module("torchvision")
        except RuntimeError:
            # PyPI's torchvision is built for CUDA. Beside a CPU build of torch it fails at the first of its operators,
            # which Streaming has no use for: it wants the names of data sets of pictures that nobody opens here.
            import torch

            library = torch.library.Library("torchvision", "DEF")
            _KEPT.append(library)
            for name in ("nms", "qnms"):
                library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module(module)


_KEPT: list[Any] = []  # a library's operators vanish with it


def write_larmor(place: Place) -> None:
    """Larmor's data set, which the limit, zarr-python and TensorStore read as well; a volume is 128 slices."""
    store = place.store("larmor")
    volumes = []
    for number, rows in enumerate(place.files()):
        zeros, scales = tuple(0.0 for _ in rows), tuple((0.0, 1.0) for _ in rows)
        volumes.append(StoredVolume(f"v{number}", f"v{number}", SHAPE, tuple(rows), zeros, scales))
    layout = SplitLayout(SPLIT, tuple(volumes))
    checksums = []
    for plan in layout.shards():
        kspace = np.stack([make_slice(index) for _, index in plan.rows])
        checksums.append(writing.write_shard(store, SPLIT, "kspace", plan, kspace))
    entry = writing.write_documents(store, layout, {("kspace", 0): tuple(checksums)})
    writing.publish(store, {SPLIT: entry}, [])


def write_tar(place: Place) -> None:
    """WebDataset: tar files of .npy members."""
    for number, rows in enumerate(place.files()):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as archive:
            for index in rows:
                member = io.BytesIO()
                np.save(member, make_slice(index))
                info = tarfile.TarInfo(f"{index:06d}.npy")
                info.size = member.tell()
                member.seek(0)
                archive.addfile(info, member)
        place.store("tar").write(f"{number:04d}.tar", file.getvalue())


def write_hdf5(place: Place) -> None:
    """fastMRI's layout: a file for each volume, `kspace` (slice, height, width) complex64, contiguous."""
    h5py = load("h5py")
    for number, rows in enumerate(place.files()):
        file = io.BytesIO()
        with h5py.File(file, "w") as volume:
            volume.create_dataset("kspace", data=np.stack([make_slice(index)[0] for index in rows]))
        place.store("hdf5").write(f"{number:04d}.h5", file.getvalue())


def write_litdata(place: Place) -> None:
    """LitData: chunks of 64 MB."""
    with tempfile.TemporaryDirectory(dir=place.scratch) as folder:
        load("litdata").optimize(
            make_slice, list(range(place.num_slices)), folder, chunk_bytes="64MB", num_workers=2, verbose=False
        )
        place.store("litdata").upload(Path(folder), "chunks")


def write_mds(place: Place) -> None:
    """MosaicML Streaming: MDS shards of 64 MiB. It has no complex numbers, so real and imaginary parts alternate."""
    with tempfile.TemporaryDirectory(dir=place.scratch) as folder:
        columns = {"kspace": f"ndarray:float32:{SHAPE[1]},{2 * SHAPE[2]}"}
        # a little over, so that 128 slices and the header fit, as in the other formats
        with load("streaming").MDSWriter(out=folder, columns=columns, size_limit=(64 << 20) + (1 << 16)) as writer:
            for index in range(place.num_slices):
                writer.write({"kspace": make_slice(index)[0].view(np.float32)})
        place.store("mds").upload(Path(folder), "shards")


WRITERS: dict[str, Callable[[Place], None]] = {
    "larmor": write_larmor,
    "tar": write_tar,
    "hdf5": write_hdf5,
    "litdata": write_litdata,
    "mds": write_mds,
}


def shuffled(indices: range, rng: np.random.Generator) -> list[int]:
    """The indices in random order."""
    return [int(index) for index in rng.permutation(np.asarray(indices))]


def batches_of(indices: list[int]) -> Iterator[list[int]]:
    """16 at a time."""
    for first in range(0, len(indices), BATCH):
        yield indices[first : first + BATCH]
