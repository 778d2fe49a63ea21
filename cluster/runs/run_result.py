"""The result of a finished run: `result.json`, written and read here alone."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from larmor.storage.objects.errors import InputError


@dataclass(frozen=True)
class RunResult:
    """A run's best checkpoint, its step and metrics (`val/psnr` → value), and what went wrong on the way.

    `checkpoint` is the folder below the run's; None where an older Larmor did not record it.
    """

    state: Literal["finished"]
    step: int
    checkpoint: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def to_json(self) -> bytes:
        """The record as it lies in the store."""
        return json.dumps(dataclasses.asdict(self), indent=2).encode()

    @staticmethod
    def read(content: bytes, url: str) -> RunResult:
        """Keys that are not known are ignored. Raises `InputError` if the object at `url` is not a run's result."""
        try:
            document = json.loads(content)
            if (state := document.get("state", "finished")) != "finished":
                raise ValueError(f"its state is '{state}'")
            return RunResult(
                state="finished",
                step=int(document["step"]),
                checkpoint=document.get("checkpoint"),
                metrics=dict(document.get("metrics", {})),
                warnings=tuple(document.get("warnings", ())),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{url}: is not the result of a run ({error!r}); remove it, and the same command writes it anew"
            ) from error
