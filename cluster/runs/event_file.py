"""A run's reports as TensorBoard sees them: `tensorboard --logdir` on the run's folder, or on a folder of runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from larmor.storage.objects.object_store import ObjectStore

if TYPE_CHECKING:
    import numpy as np

IMAGES = "validation/images"
_FOLDER = "tensorboard"
_LARGEST = 2**20  # bytes: S3 cannot append, so with each report a file is written anew
_SPEED = ("slices_per_second", "step_seconds", "bytes_per_second", "gpu_memory_bytes", "flops_per_second", "mfu")
_RUN = ("goodput", "seconds", "attempt", "world_size", "training_seconds")


class EventFile:
    """The event files of one attempt, which resumes from `step`: TensorBoard then drops what was beyond it.

    They are written in `scratch`, unless the store is a folder.
    """

    def __init__(self, store: ObjectStore, attempt: int, step: int, scratch: Path) -> None:
        self._store, self._attempt, self._step, self._scratch = store, attempt, step, scratch
        self._number = 0
        self._writer: Any = None
        self._path = Path()

    def add(self, record: Mapping[str, float], picture: np.ndarray | None = None) -> None:
        """Append a report, with its `step` and `time`, and bring it to the store.

        `picture` is (height, width) uint8.
        """
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import image, scalar

        if self._writer is None or self._path.stat().st_size > _LARGEST:
            self._begin_file()
        summaries = [scalar(tag(name), value) for name, value in record.items() if name not in ("step", "time")]
        if picture is not None:
            summaries.append(image(IMAGES, picture, dataformats="HW"))
        for summary in summaries:
            event = Event(wall_time=record["time"], step=int(record["step"]), summary=summary)
            self._writer.write_event(event)
        self._writer.flush()
        if not self._store.is_local:
            self._store.write(f"{_FOLDER}/{self._path.name}", self._path.read_bytes())

    def _begin_file(self) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        if self._writer is not None:
            self._writer.close()
        if self._store.is_local:  # in place: TensorBoard keeps a file open that it follows
            folder = Path(self._store.full_path(_FOLDER))
            folder.mkdir(parents=True, exist_ok=True)
        else:
            folder = self._scratch
        self._number += 1
        before = set(folder.iterdir())
        self._writer = EventsWriter(str(folder / "events"), f".{self._attempt:04d}-{self._number:04d}")
        (self._path,) = set(folder.iterdir()) - before
        if self._number == 1:
            start = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(step=self._step + 1, session_log=start))


def tag(name: str) -> str:
    """Under which heading TensorBoard shows a figure: `val/psnr` → validation/psnr, `data_share` → time/data_share."""
    if name.startswith("val/"):
        return f"validation/{name.removeprefix('val/')}"
    if name.endswith("_share"):
        return f"time/{name}"
    return f"{'speed' if name in _SPEED else 'run' if name in _RUN else 'losses'}/{name}"
