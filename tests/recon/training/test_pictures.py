"""What a validation looks like: the same slices whatever the number of ranks, at no price for the training."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from larmor.recon.inference.inference import Physics, network_method, reconstruct_split
from larmor.recon.recipe.recipe import Recipe
from larmor.recon.training.pictures import ERROR_GAIN
from larmor.recon.training.validate import validate
from larmor.recon.training.worker import Worker
from larmor.storage.loading.config import DataConfig, open_reader
from larmor.storage.loading.reader import SliceReader
from larmor.storage.objects.object_store import ObjectStore
from tests.helpers import ellipsoid, make_generator, small_recipe, write_images

SIZE, SLICES = 24, 10


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> SliceReader:
    folder = tmp_path_factory.mktemp("pictures")
    images = ellipsoid((SIZE, SLICES + 4, SIZE)).transpose(1, 0, 2)[2:-2]
    write_images(ObjectStore(folder), {"validation": images})
    return open_reader(DataConfig(url=str(folder), crop=(SIZE, SIZE), disk_cache_bytes=0), "validation")


class Rank:
    """As much of a `Worker` as a validation needs; the ranks are threads that meet at a barrier."""

    def __init__(self, rank: int, shared: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.world_size, self.device = rank, len(shared), torch.device("cpu")
        self.picture: np.ndarray | None = None
        self._shared, self._barrier = shared, barrier

    def progress(self, *_: object) -> None: ...

    def show(self, picture: np.ndarray) -> None:
        self.picture = picture

    def gather(self, value: Any) -> list[Any]:
        self._shared[self.rank] = value
        self._barrier.wait(60)
        return list(self._shared)


def recipe(**training: Any) -> Recipe:
    sections = {"url": "unused", "crop": [SIZE, SIZE]}
    return small_recipe(data=sections, training={"global_batch_size": 6, **training})


def random_streams() -> tuple[list[int], str, str]:
    return torch.get_rng_state().tolist(), repr(np.random.get_state()), repr(random.getstate())


def seen(found: Recipe, reader: SliceReader, world_size: int = 1) -> tuple[dict[str, float], np.ndarray | None]:
    """The figures, and what rank 0 is shown."""
    barrier, shared = threading.Barrier(world_size), [None] * world_size
    ranks = [Rank(rank, shared, barrier) for rank in range(world_size)]
    generator = make_generator(found)
    before = random_streams()
    with ThreadPoolExecutor(world_size) as pool:
        figures = list(pool.map(lambda rank: validate(generator, reader, found, cast(Worker, rank), 0), ranks))
    assert random_streams() == before, "a validation draws nothing"
    return figures[0], ranks[0].picture


def test_neither_figures_nor_random_streams_change(reader: SliceReader) -> None:
    with_images, picture = seen(recipe(), reader)
    without, nothing = seen(recipe(validation_images=0), reader)
    assert with_images == without, "bit for bit"
    assert picture is not None
    assert nothing is None


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_number_of_ranks_does_not_matter(reader: SliceReader, world_size: int) -> None:
    _, alone = seen(recipe(), reader)
    _, together = seen(recipe(), reader, world_size)
    assert alone is not None
    assert together is not None
    assert np.abs(alone.astype(int) - together).max() <= 1, "batches of other sizes round otherwise"


def test_a_row_is_a_slice_zero_filled_reconstructed_target_and_error(reader: SliceReader) -> None:
    """Three slices of ten: 1, 5 and 8, with white lines between the images."""
    found = recipe()
    _, picture = seen(found, reader)
    assert picture is not None
    assert picture.shape == (3 * SIZE + 2 * 2, 4 * SIZE + 3 * 2)
    assert (picture[SIZE : SIZE + 2] == 255).all()
    assert (picture[:, SIZE : SIZE + 2] == 255).all()
    physics = Physics((SIZE, SIZE), found.mask)
    method = {"generator": network_method(make_generator(found))}
    (batch,) = reconstruct_split(method, reader, [1, 5, 8], physics, 3, torch.device("cpu"))
    for row in range(3):
        images = (batch.images["zero_filled"][row], batch.images["generator"][row], batch.target[row])
        error = ERROR_GAIN * np.abs(images[1] - images[2])
        for column, image in enumerate((*images, error)):
            top, left = row * (SIZE + 2), column * (SIZE + 2)
            part = picture[top : top + SIZE, left : left + SIZE]
            assert np.abs(part - 255 * image.clip(0, 1)).max() < 1.01


def test_fewer_slices_than_wanted_are_shown_once_each(reader: SliceReader) -> None:
    _, picture = seen(recipe(validation_slices=2, validation_images=5), reader)
    assert picture is not None
    assert len(picture) == 2 * SIZE + 2


def test_tensorboard_shows_the_image(tmp_path: Path) -> None:
    from io import BytesIO

    from PIL import Image
    from tensorboardX.proto.event_pb2 import Event

    from larmor.cluster.runs.event_file import EventFile

    picture = np.arange(8 * 30, dtype=np.uint8).reshape(8, 30)
    EventFile(ObjectStore(tmp_path), 1, 0, tmp_path).add({"step": 4, "time": 1.0, "val/psnr": 30.0}, picture)
    (file,) = (tmp_path / "tensorboard").iterdir()
    content, place = file.read_bytes(), 0
    images: dict[str, Any] = {}
    while place < len(content):
        length = int.from_bytes(content[place : place + 8], "little")
        event = Event.FromString(content[place + 12 : place + 12 + length])
        images |= {value.tag: (event.step, value.image) for value in event.summary.value if value.HasField("image")}
        place += 16 + length
    step, image = images["validation/images"]
    assert (step, image.height, image.width) == (4, 8, 30)
    assert np.array_equal(np.array(Image.open(BytesIO(image.encoded_image_string)).convert("L")), picture)
