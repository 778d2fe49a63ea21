"""The starts of a training's slices on a local disk: the workers of a machine and the trials of a sweep share them."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import crc32c
import torch
from torch import Tensor

from larmor.recon.networks import classical_start, data_consistency, polyphase_wavelets, split_bregman, wavelets
from larmor.storage.loading.cache import DiskCache

_LOG = logging.getLogger("larmor")
_CRC_BYTES = 4


class StartsOnDisk:
    """Images by the number of their slice, each with its CRC-32C. A damaged one is discarded and made anew.

    Another version of the code, of PyTorch, another kind of processor or number of threads may round differently:
    each of them has images of its own.
    """

    def __init__(self, folder: Path, max_bytes: int, key: str) -> None:
        self._files = DiskCache(folder, max_bytes, _with_platform(key), "starts")

    @classmethod
    def open(cls, folder: Path, max_bytes: int, key: str) -> StartsOnDisk | None:
        """None, with a warning, where the folder cannot be used: starts can be made without it."""
        try:
            return cls(folder, max_bytes, key)
        except OSError as error:
            _LOG.warning(
                "%s: cannot keep starts (%s); they are computed anew. Set data.disk_cache to a folder that can be "
                "written, or generator.start.disk_cache_bytes=0",
                folder,
                error,
            )
            return None

    def get(self, index: int, like: Tensor) -> Tensor | None:
        """The start of slice `index`, in the shape and type of `like`, on the CPU; None if it is not there."""
        image, crc = bytearray(like.numel() * like.element_size()), bytearray(_CRC_BYTES)
        if not self._files.get(index, [memoryview(image), memoryview(crc)]):
            return None
        if crc32c.crc32c(image) != int.from_bytes(crc, "little"):
            self._files.discard(index)
            return None
        return torch.frombuffer(image, dtype=like.dtype).view(like.shape)

    def put(self, index: int, image: Tensor) -> None:
        encoded = image.detach().cpu().contiguous().numpy().tobytes()
        crc = crc32c.crc32c(encoded).to_bytes(_CRC_BYTES, "little")
        self._files.put(index, [memoryview(encoded), memoryview(crc)])


def _with_platform(key: str) -> str:
    digest = hashlib.sha256()
    for module in (classical_start, data_consistency, polyphase_wavelets, split_bregman, wavelets):
        assert module.__file__ is not None
        digest.update(Path(module.__file__).read_bytes())
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else torch.backends.cpu.get_cpu_capability()
    digest.update(f"{key} {torch.__version__} {device} {torch.get_num_threads()}".encode())
    return digest.hexdigest()
