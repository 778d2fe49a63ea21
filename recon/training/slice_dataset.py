"""Slices of a data set as PyTorch's `DataLoader` takes them: what a training is fed with, for loops of one's own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from larmor.recon.engines.device import choose_device
from larmor.recon.physics.augment import changes
from larmor.recon.physics.coils import Change, coils_of_split
from larmor.recon.physics.feed import DeviceBatch, feed, page_locked, to_device
from larmor.recon.physics.masks import make_mask
from larmor.recon.physics.samples import prepare
from larmor.recon.recipe.mask_config import MaskConfig
from larmor.recon.recipe.settings import AugmentConfig
from larmor.recon.recipe.signal import SignalConfig, check_modality
from larmor.storage.dataset.dataset import SplitInfo
from larmor.storage.loading.config import DataConfig, open_reader, sample_order
from larmor.storage.loading.loader import Batch, Loader, Share
from larmor.storage.loading.order import SampleOrder, StoredOrder
from larmor.storage.loading.reader import SliceReader
from larmor.storage.objects.errors import InputError

FULLY_SAMPLED = MaskConfig(sampling_ratio=1)
_ORDER_OF = 16  # global batch size of a training whose order this is: the same for any number of ranks and workers
_TOGETHER = 8  # slices that are transformed at once


class ImageSample(TypedDict):
    """One slice. Images are (channels, height, width) float32 in units of the zero-filled image's largest magnitude.

    `target` is the fully sampled image, `zero_filled` what the measured points alone show; one channel of magnitudes,
    or real and imaginary part. `kspace` (coil, height, width) complex64 is what was measured and 0 elsewhere, `mask`
    (1, height, width) bool says where. `maps`, as `kspace`, are there if coils are combined with sensitivity maps.
    `guide` (1, height, width) is the magnitude of a second contrast in units of its own, with signal.guide.
    `scale` (): image · scale is in the source's intensities. `slice` is the number of the slice in its volume's scan,
    `index` that of the slice in the split.
    """

    zero_filled: Tensor
    target: Tensor
    kspace: Tensor
    mask: Tensor
    scale: Tensor
    maps: NotRequired[Tensor]
    guide: NotRequired[Tensor]
    volume: str
    subject: str
    slice: int
    index: int


class SampleConfig(BaseModel):
    """What samples are made of, in the words of an experiment's sections."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: DataConfig = DataConfig()
    mask: MaskConfig = FULLY_SAMPLED
    signal: SignalConfig = SignalConfig()
    augment: AugmentConfig = AugmentConfig()
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _intensities_are_those_of_mri(self) -> SampleConfig:
        self.augment.check_modality(self.signal.modality)
        return self


@dataclass(frozen=True)
class Dealing:
    """In which order samples come, and who gets which. `rank` and `world_size`: None for those of torch.distributed."""

    shuffle: bool = True
    drop_last: bool = False
    rank: int | None = None
    world_size: int | None = None


@dataclass(frozen=True)
class _Opened:
    """What a process reads with. Threads and connections do not survive a fork."""

    process: int
    reader: SliceReader
    order: SampleOrder
    coils: Change


class SliceDataset(IterableDataset[ImageSample]):
    """The slices of one split, in an order that depends on the seed and the epoch alone.

    Each rank of torch.distributed, and each worker of a `DataLoader`, gets its own part: all together have every slice
    once. Call `set_epoch` before each epoch, also where workers are persistent. `dataset[index]` reads one slice, by
    its number in the split; `len` counts the slices of this rank. Constant slices are left out, as everywhere.
    """

    def __init__(self, config: SampleConfig, split: str, dealing: Dealing, device: str, whole: bool = False) -> None:
        """With `whole` the images are as large as the largest slices. Raises `InputError` as `larmor.open_dataset`."""
        if config.data.stack != 1:
            raise InputError(f"data.stack={config.data.stack}: samples are single slices here; leave stack out")
        reader = open_reader(config.data, split, **config.signal.beside)
        self.info: SplitInfo = reader.info
        crop = self.info.largest_matrix if whole else config.data.crop
        # whoever opens it later, in another process, shall find the same one
        data = config.data.model_copy(update={"sha256": self.info.identity, "crop": crop})
        self.config = config.model_copy(update={"data": data})
        self.split, self.device = split, choose_device(device)
        self._dealing, self._place = dealing, (0, 1)
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # persistent workers see it change
        self._opened: _Opened | None = None
        with contextlib.ExitStack() as unless_it_serves:
            unless_it_serves.callback(reader.close)
            self._check()
            self._use(reader)
            unless_it_serves.pop_all()

    def _check(self) -> None:
        check_modality(self.info.modality, self.config.signal)
        make_mask(self.config.mask, self.config.data.crop)
        rank, world_size = self._dealing.rank, self._dealing.world_size
        if (rank is None) != (world_size is None) or (rank is not None and not 0 <= rank < (world_size or 0)):
            raise InputError(f"rank={rank} of world_size={world_size}: give both, with 0 <= rank < world_size")

    def set_epoch(self, epoch: int) -> None:
        """Choose the order, and the masks, noise and motion where they are drawn for each sample. Raises `InputError`
        for a negative number."""
        if epoch < 0:
            raise InputError(f"epoch={epoch}: epochs are counted from 0")
        self._epoch.fill_(epoch)

    def close(self) -> None:
        """End the threads of this process; they start again if more is read."""
        if self._opened:
            self._opened.reader.close()
        self._opened = None

    def __len__(self) -> int:
        rank, world_size = self._rank()
        return len(range(rank, self._num_dealt(world_size), world_size))

    def __getitem__(self, index: int) -> ImageSample:
        number = range(self.info.num_slices)[index]
        opened = self._use()
        samples = np.array([[int(self._epoch), number]], np.int64)
        (sample,) = self._samples(to_device(Batch.read(opened.reader, samples), self.device), opened.coils)
        return sample

    def __iter__(self) -> Iterator[ImageSample]:
        rank, world_size = self._rank()
        num_samples = self._num_dealt(world_size)
        worker = get_worker_info()
        if worker is not None:
            if self.device.type == "cuda":
                raise InputError(f"device={self.device}: a DataLoader's workers have no GPU; set num_workers=0")
            # of every world_size-th sample every num_workers-th
            rank, world_size = rank + world_size * worker.id, world_size * worker.num_workers
        opened = self._use()
        share = Share(rank, world_size, _TOGETHER * world_size, 1)
        ahead = self.config.data.read_ahead_bytes
        loader = Loader(opened.reader, opened.order, share, ahead, page_locked(self.device))
        with contextlib.closing(loader.epoch(int(self._epoch), num_samples)) as batches:
            for batch in feed(batches, self.device):
                yield from self._samples(batch, opened.coils)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None, "_place": self._rank()}

    def _num_dealt(self, world_size: int) -> int:
        """So many slices of an epoch come, over all ranks."""
        num_slices = self.info.num_slices
        return num_slices - num_slices % world_size if self._dealing.drop_last else num_slices

    def _rank(self) -> tuple[int, int]:
        """Rank and world size; in a worker process those of the process that started it."""
        rank, world_size = self._dealing.rank, self._dealing.world_size
        if rank is not None and world_size is not None:
            return rank, world_size
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return self._place

    def _use(self, reader: SliceReader | None = None) -> _Opened:
        """The reader of this process, which is opened if it has none."""
        if self._opened and self._opened.process == os.getpid():
            return self._opened
        data, signal = self.config.data, self.config.signal
        reader = reader or open_reader(data, self.split, **signal.beside)
        order: SampleOrder = StoredOrder(reader.block_of)
        if self._dealing.shuffle:
            order = sample_order(data, reader, reader.block_of, _ORDER_OF, self.config.seed)
        self._opened = _Opened(os.getpid(), reader, order, coils_of_split(reader, signal))
        return self._opened

    def _samples(self, batch: DeviceBatch, coils: Change) -> Iterator[ImageSample]:
        config, info = self.config, self.info
        move, recolour = changes(config.augment, config.seed)
        crop = config.data.crop
        whole = prepare(coils(batch), crop, config.mask, self.device, move, config.signal, intensity=recolour)
        for row, index in enumerate(whole.samples[:, 1].tolist()):
            # a batch has as many coils as its largest slice
            num_coils = info.bucket_of(index).shape[0] if config.signal.needs_maps else whole.kspace.shape[1]
            sample = ImageSample(
                zero_filled=whole.zero_filled[row],
                target=whole.target[row],
                kspace=whole.kspace[row, :num_coils],
                mask=whole.mask[row].clone(),  # one mask may be that of all samples
                scale=whole.scale[row, 1],
                volume=info.volumes[int(info.volume[index])],
                subject=info.subjects[int(info.subject[index])],
                slice=int(info.index[index]),
                index=index,
            )
            if whole.maps is not None:
                sample["maps"] = whole.maps[row, :num_coils]
            if whole.guide is not None:
                sample["guide"] = whole.guide[row]
            yield sample
