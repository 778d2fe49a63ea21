"""A run at Weights & Biases, through its client, which has a process of its own."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from larmor.cluster.runs.event_file import IMAGES
from larmor.cluster.worker.tracker import About, End, Entry

_INIT_SECONDS, _FINISH_SECONDS = 20.0, 20.0
_TAG_LENGTH = 64  # as the service limits it


class WandbTracker:
    """`project`: PROJECT or ENTITY/PROJECT. WANDB_MODE=offline writes to WANDB_DIR, or to the run's folder if that is
    local, or to the working directory."""

    name = "wandb"

    def __init__(self, project: str, about: About) -> None:
        self.place = project
        self._about = about
        self._run: Any = None

    def begin(self, id: str | None, keep: Callable[[str], None]) -> int | None:
        import wandb

        if id is None:
            id = uuid.uuid4().hex[:16]
            keep(id)
        self._require_key()
        entity, _, project = self.place.rpartition("/")
        sweep = self._about.sweep
        tags = [f"larmor {self._about.tags['larmor.version']}", *([f"sweep {sweep.name}"] if sweep else [])]
        self._run = wandb.init(
            entity=entity or None,
            project=project,
            id=id,
            name=self._about.name,
            group=sweep.name if sweep else None,
            job_type="trial" if sweep else "train",
            tags=[text[:_TAG_LENGTH] for text in tags],
            config={**self._about.params, **self._about.tags},
            allow_val_change=True,
            resume="allow",
            reinit="create_new",
            dir=os.environ.get("WANDB_DIR") or self._about.folder,
            settings=wandb.Settings(
                init_timeout=_INIT_SECONDS,
                finish_timeout=_FINISH_SECONDS,
                console="off",
                silent=True,
                disable_git=True,
                disable_code=True,
            ),
        )
        return None if self._run.offline else max(0, self._run.step - 1)

    def log(self, entries: Sequence[Entry]) -> None:
        import wandb

        for entry in entries:
            picture = {} if entry.picture is None else {IMAGES: wandb.Image(entry.picture)}
            self._run.log({**entry.figures, **picture, "_timestamp": entry.time}, step=entry.step, commit=True)

    def end(self, how: End) -> None:
        self._run.finish(exit_code=int(how == "failed"))

    def _require_key(self) -> None:
        """Raises `PermissionError`: the client itself would ask for a key on a terminal, and wait."""
        import wandb

        if wandb.setup().settings.mode in ("offline", "disabled", "dryrun"):
            return
        if not wandb.login(prompt=False):
            raise PermissionError("there is no key; set WANDB_API_KEY where the workers run")
