"""An engine's checkpoint: the same whole tensors whatever the number of ranks, the ZeRO stage and the backend.

    state-00001-of-00004.safetensors    rank 1's part: every fourth tensor

A tensor is called KIND/NAME: `weight/…` (float32, the masters where there are any), `buffer/…`, and one kind for each
moment of the optimiser (`square_avg/…`, `exp_avg/…`). The header of each part holds what is not a tensor. Nothing
here is pickled. DeepSpeed's own checkpoints tie the state to the number of ranks, and its universal ones know neither
RMSprop nor buffers.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from larmor.storage.objects.errors import InputError

FORMAT = 1
_HEADER = "larmor"


@dataclass(frozen=True)
class EngineFacts:
    """What is not a tensor: micro-batches so far, learning rate, and the optimiser's own counters by name."""

    micro_steps: int
    learning_rate: float
    counters: Mapping[str, float]


def write_part(
    folder: Path, tensors: Iterable[tuple[str, Tensor]], facts: EngineFacts, rank: int, world_size: int
) -> None:
    """Write the tensors that fall to `rank`; the iterable gives the same names in the same order on every rank."""
    folder.mkdir(parents=True, exist_ok=True)
    mine = {
        name: tensor.detach().to("cpu", copy=True).contiguous()
        for number, (name, tensor) in enumerate(tensors)
        if number % world_size == rank
    }
    header = {_HEADER: json.dumps({"format": FORMAT, **asdict(facts)})}
    save_file(mine, folder / _part_name(rank, world_size), header)


class EngineState:
    """What `write_part` wrote on all ranks, read tensor by tensor."""

    def __init__(self, folder: Path, parts: Mapping[str, Any], facts: EngineFacts) -> None:
        self.facts = facts
        self._folder, self._parts = folder, parts

    @property
    def names(self) -> set[str]:
        """KIND/NAME of every tensor."""
        return set(self._parts)

    def tensor(self, name: str) -> Tensor:
        """One tensor, on the CPU."""
        value: Tensor = self._parts[name].get_tensor(name)
        return value

    def get(self, name: str) -> Tensor | None:
        """One tensor, or None if there is none of that name."""
        return self.tensor(name) if name in self._parts else None

    @property
    def moments(self) -> list[str]:
        """The kinds of tensors that belong to the optimiser."""
        return sorted({name.split("/")[0] for name in self._parts} - {"weight", "buffer"})

    def require(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Raises `InputError` unless weights and buffers are the `expected` names with these shapes."""
        found = {
            name: tuple(part.get_slice(name).get_shape())
            for name, part in self._parts.items()
            if name.startswith(("weight/", "buffer/"))
        }
        wrong = sorted(name for name in {**found, **expected} if found.get(name) != expected.get(name))
        if wrong:
            name = wrong[0]
            raise InputError(
                f"checkpoint {self._folder} is of another network: {name} has the shape {found.get(name)} there and "
                f"{expected.get(name)} here; resume with the experiment that wrote it"
            )


@contextlib.contextmanager
def open_state(folder: Path) -> Iterator[EngineState]:
    """The state below `folder`. Raises `InputError` if a part is missing or damaged, or a newer Larmor wrote it."""
    paths = sorted(folder.glob("state-*-of-*.safetensors"))
    if not paths:
        raise InputError(f"checkpoint {folder} holds no state of an engine: it is incomplete or of another Larmor")
    count = int(paths[0].stem.split("-of-")[1])
    with contextlib.ExitStack() as opened:
        parts: dict[str, Any] = {}
        for rank in range(count):
            path = folder / _part_name(rank, count)
            if not path.is_file():
                raise InputError(f"checkpoint {folder} lacks {path.name}: fetch it again or take an earlier checkpoint")
            try:
                part = opened.enter_context(safe_open(path, framework="pt"))
            except SafetensorError as error:
                raise InputError(f"{path}: is damaged ({error}); take an earlier checkpoint") from error
            parts |= dict.fromkeys(part.keys(), part)
        facts = json.loads(part.metadata()[_HEADER])
        if facts.pop("format") > FORMAT:
            raise InputError(f"checkpoint {folder} was written by a newer Larmor: update this one")
        yield EngineState(folder, parts, EngineFacts(**facts))


def state_kind(value: Tensor) -> str:
    """How the name of a module's own tensor begins."""
    return "weight/" if isinstance(value, nn.Parameter) else "buffer/"


def moments_of(state: Mapping[str, Any]) -> list[str]:
    """The names of the tensors that a torch optimiser keeps for a parameter, in a fixed order."""
    return sorted(name for name, value in state.items() if torch.is_tensor(value) and value.ndim)


def counters_of(state: Mapping[str, Any]) -> dict[str, float]:
    """The scalars that a torch optimiser keeps for a parameter."""
    return {name: float(value) for name, value in state.items() if not (torch.is_tensor(value) and value.ndim)}


def new_moments(
    like: Tensor, moments: Iterable[str], counters: Mapping[str, float], counters_on: torch.device | None = None
) -> dict[str, Tensor]:
    """A torch optimiser's state of one parameter: moments at zero, the counters as given, on the CPU by default."""
    scalars = {
        name: torch.tensor(value, dtype=torch.float32, device=counters_on or "cpu") for name, value in counters.items()
    }
    return {**scalars, **{name: torch.zeros_like(like) for name in moments}}


def _part_name(rank: int, world_size: int) -> str:
    return f"state-{rank:05d}-of-{world_size:05d}.safetensors"
