"""The engine interface on plain torch, for a machine without DeepSpeed."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from larmor.recon.engines.engine import EngineSettings
from larmor.recon.engines.engine_state import (
    EngineFacts,
    counters_of,
    moments_of,
    new_moments,
    open_state,
    state_kind,
    write_part,
)
from larmor.recon.engines.optimizers import build_optimizer, parameter_groups
from larmor.recon.engines.precision import keep_autocast_in_norms
from larmor.recon.recipe.settings import OptimizerConfig
from larmor.storage.objects.errors import InputError


class PlainEngine:
    """An `Engine` on torch alone: whole weights and optimiser on every rank, gradients averaged.

    bfloat16 means autocast over float32 weights. Raises InputError for a ZeRO stage above 0.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer_config: OptimizerConfig,
        settings: EngineSettings,
        device: torch.device,
        clip: float | None = None,
    ) -> None:
        if settings.zero_stage > 0:
            raise InputError(
                f"zero_stage is {settings.zero_stage} but the plain engine partitions nothing: "
                "use zero_stage 0 or the deepspeed backend"
            )
        self.module = module.to(device)
        self._world_size = dist.get_world_size() if dist.is_initialized() else 1
        if self._world_size > 1:
            for tensor in self.module.state_dict().values():
                dist.broadcast(tensor, src=0)
        self._recorded_on = device if settings.recorded else None
        groups = parameter_groups(self.module, clip)
        self._optimizer = build_optimizer(groups, optimizer_config, clip, self._recorded_on)
        if settings.dtype == "bfloat16":
            keep_autocast_in_norms(self.module)
        self._settings = settings
        self._largest_norm = optimizer_config.clip_gradient_norm
        self._device = device
        self._micro_steps = 0

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        return self.bare_forward(*inputs)

    def bare_forward(self, *inputs: Tensor | None) -> Tensor:
        with self._precision():
            output: Tensor = self.module(*inputs)
        return output.float()

    def backward(self, loss: Tensor) -> None:
        (loss / self._settings.gradient_accumulation).backward()

    def step(self) -> None:
        self._micro_steps += 1
        if self._micro_steps % self._settings.gradient_accumulation:
            return
        if self._world_size > 1:
            self._average_gradients()
        if self._largest_norm is not None:
            nn.utils.clip_grad_norm_(self.module.parameters(), self._largest_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def set_learning_rate(self, value: float) -> None:
        for group in self._optimizer.param_groups:
            if torch.is_tensor(group["lr"]):  # a graph reads it
                group["lr"].fill_(value)
            else:
                group["lr"] = value

    def count(self, micro_batches: int) -> None:
        """Tell the engine of micro-batches that a recorded step went through without it."""
        self._micro_steps += micro_batches

    def save(self, folder: Path) -> None:
        assert self._micro_steps % self._settings.gradient_accumulation == 0, "save between updates"
        state: dict[str, Any] = next(iter(self._optimizer.state.values()), {})
        facts = EngineFacts(self._micro_steps, float(self._optimizer.param_groups[0]["lr"]), counters_of(state))
        rank = dist.get_rank() if dist.is_initialized() else 0
        write_part(folder, self._tensors(moments_of(state)), facts, rank, self._world_size)

    def load(self, folder: Path) -> None:
        whole = {state_kind(value) + name: value for name, value in self.module.state_dict(keep_vars=True).items()}
        with open_state(folder) as state, torch.no_grad():
            state.require({name: tuple(value.shape) for name, value in whole.items()})
            for name, value in whole.items():
                value.copy_(state.tensor(name))
            for name, parameter in self.module.named_parameters():
                found = {moment: state.get(f"{moment}/{name}") for moment in state.moments}
                if found and None not in found.values():
                    own = self._optimizer.state[parameter]
                    own.update(new_moments(parameter, found, state.facts.counters, self._recorded_on))
                    for moment, tensor in found.items():
                        own[moment].copy_(tensor)
            self.set_learning_rate(state.facts.learning_rate)
            self._micro_steps = state.facts.micro_steps

    def set_weights(self, weights: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in self.module.state_dict(keep_vars=True).items():
                if name in weights:
                    value.copy_(weights[name])

    def _tensors(self, moments: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """Everything that a checkpoint holds."""
        for name, value in self.module.state_dict(keep_vars=True).items():
            yield state_kind(value) + name, value
        for moment in moments:
            for name, parameter in self.module.named_parameters():
                if parameter in self._optimizer.state:
                    yield f"{moment}/{name}", self._optimizer.state[parameter][moment]

    def close(self) -> None:
        """Nothing holds it but its owner."""

    def state_dict(self) -> dict[str, Tensor]:
        return {name: value.detach().to("cpu", copy=True) for name, value in self.module.state_dict().items()}

    @contextmanager
    def _precision(self) -> Iterator[None]:
        if self._settings.dtype == "float32":
            yield
        else:
            with torch.autocast(self._device.type, torch.bfloat16):
                yield

    def _average_gradients(self) -> None:
        """One all-reduce over all gradients, laid out in one vector."""
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        if not gradients:
            return
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self._world_size
        parts = flat.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
