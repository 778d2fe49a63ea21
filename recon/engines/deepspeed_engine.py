"""An engine on DeepSpeed: ZeRO 0–3, bfloat16 with float32 masters; the only file that imports deepspeed."""

import contextlib
import importlib.util
import logging
import os
import sys
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
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
from larmor.recon.engines.precision import lower_buffers, lowered
from larmor.recon.recipe.settings import OptimizerConfig
from larmor.storage.objects.errors import InputError

_BUCKET_LIMIT = 50_000_000  # elements; with DeepSpeed's own 5e8 a buffer takes 2 GB

_groups_in_use: weakref.WeakSet[Any] = weakref.WeakSet()  # process groups that DeepSpeed has built engines in


class DeepSpeedEngine:
    """An `Engine` on DeepSpeed."""

    def __init__(
        self,
        module: nn.Module,
        optimizer_config: OptimizerConfig,
        settings: EngineSettings,
        device: torch.device,
        clip: float | None = None,
    ) -> None:
        deepspeed = import_deepspeed(device)
        _forget_groups_that_are_gone(deepspeed)
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it; `device_rank` is what it uses
        index = device.index if device.index is not None else _current_device_index(device)
        groups = parameter_groups(module, clip)
        self._groups: list[list[nn.Parameter]] = [list(group["params"]) for group in groups]  # ZeRO replaces them
        self._base_optimizer = build_optimizer(groups, optimizer_config, clip)
        with _nothing_compiled():
            self._engine, *_ = deepspeed.initialize(
                args=SimpleNamespace(device_rank=index),
                model=module,
                optimizer=self._base_optimizer,
                config=deepspeed_config(
                    settings, sum(p.numel() for p in module.parameters()), optimizer_config.clip_gradient_norm
                ),
            )
        self.module: nn.Module = self._engine.module
        self._settings = settings
        self._masters: dict[int, Tensor] = {}  # by the parameter's id
        if settings.zero_stage == 0:  # the base optimiser holds them, whole and in order
            held = [parameter for group in self._base_optimizer.param_groups for parameter in group["params"]]
            ours = [parameter for group in self._groups for parameter in group]
            self._masters = {id(parameter): master for parameter, master in zip(ours, held, strict=True)}
        self._dtype: torch.dtype = getattr(torch, settings.dtype)
        if self._dtype is not torch.float32:
            lower_buffers(self.module, self._dtype)

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        return self._engine(*lowered(inputs, self._dtype)).float()

    def bare_forward(self, *inputs: Tensor | None) -> Tensor:
        return self.module(*lowered(inputs, self._dtype)).float()

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss)

    def step(self) -> None:
        self._engine.step()

    def set_learning_rate(self, value: float) -> None:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = value

    def save(self, folder: Path) -> None:
        assert self._engine.micro_steps % self._settings.gradient_accumulation == 0, "save between updates"
        states = self._optimizer_states()
        self._link_moments(states)
        state = states[0][1]
        rate = self._base_optimizer.param_groups[0]["lr"]
        facts = EngineFacts(self._engine.micro_steps, rate, counters_of(state))
        write_part(folder, self._tensors(moments_of(state)), facts, dist.get_rank(), dist.get_world_size())

    def load(self, folder: Path) -> None:
        whole = {state_kind(value) + name: value for name, value in self.module.state_dict(keep_vars=True).items()}
        with open_state(folder) as state:
            state.require({name: _shape(value) for name, value in whole.items()})
            for name, value in whole.items():
                self._set(value, state.tensor(name))
            if state.moments:
                self._create_moments(state.moments, state.facts.counters)
            for moment in state.moments:
                for name, parameter in _trained(self.module):
                    if (tensor := state.get(f"{moment}/{name}")) is not None:
                        self._set_moment(parameter, moment, tensor)
            self.set_learning_rate(state.facts.learning_rate)
            self._engine.micro_steps = state.facts.micro_steps
            self._engine.global_steps = state.facts.micro_steps // self._settings.gradient_accumulation

    def set_weights(self, weights: Mapping[str, Tensor]) -> None:
        for name, value in self.module.state_dict(keep_vars=True).items():
            if name in weights:
                self._set(value, weights[name])

    def state_dict(self) -> dict[str, Tensor]:
        tensors = self.module.state_dict(keep_vars=True)
        return {name: self._whole(value).detach().to("cpu", copy=True) for name, value in tensors.items()}

    def close(self) -> None:
        self._engine.destroy()  # its hooks hold it, which the garbage collector cannot see
        self._base_optimizer.state.clear()
        if self._settings.zero_stage == 3:  # its caches keep the module while the process lives: let it hold nothing
            for parameter in self.module.parameters():
                vars(parameter).clear()  # its part of the values among others
                parameter.data, parameter.grad = torch.empty(0, dtype=parameter.dtype, device=parameter.device), None
            for held in (self._engine.optimizer, self._engine, *self.module.modules()):
                vars(held).clear()

    # the state as whole tensors, through what DeepSpeed publishes for every stage

    def _tensors(self, moments: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """Everything that a checkpoint holds. A whole tensor exists only while it is looked at."""
        for name, value in self.module.state_dict(keep_vars=True).items():
            yield state_kind(value) + name, self._whole(value)
        for moment in moments:
            for name, parameter in _trained(self.module):
                if (tensor := self._whole_moment(parameter, moment)) is not None:
                    yield f"{moment}/{name}", tensor

    def _optimizer_states(self) -> list[tuple[Tensor, dict[str, Any]]]:
        """What the base optimiser updates on this rank (flat partitions under ZeRO), each with its state."""
        if self._settings.zero_stage == 3:  # its groups are empty between updates
            held = list(self._engine.optimizer.fp32_partitioned_groups_flat)
        else:
            held = [parameter for group in self._base_optimizer.param_groups for parameter in group["params"]]
        return [(parameter, self._base_optimizer.state[parameter]) for parameter in held]

    def _whole(self, value: Tensor) -> Tensor:
        """A buffer or parameter, floats as float32: gathered from all ranks, the master if there is one."""
        import deepspeed

        value = self._masters.get(id(value), value)
        # below stage 3 a float32 parameter is whole on every rank, and equal to its master
        is_whole = value.dtype == torch.float32 and self._settings.zero_stage < 3
        if isinstance(value, nn.Parameter) and value.requires_grad and not is_whole:  # frozen ones have no master
            master = deepspeed.utils.safe_get_full_fp32_param(value)
            value = value if master is None else master
        with deepspeed.zero.GatheredParameters([value], enabled=hasattr(value, "ds_id")):
            return value.detach().to(torch.float32 if value.is_floating_point() else value.dtype, copy=True)

    def _whole_moment(self, parameter: nn.Parameter, moment: str) -> Tensor | None:
        import deepspeed

        if self._settings.zero_stage:
            return deepspeed.utils.safe_get_full_optimizer_state(parameter, moment)
        return self._base_optimizer.state[self._masters[id(parameter)]].get(moment)

    def _set(self, value: Tensor, tensor: Tensor) -> None:
        """Give a buffer, or a parameter and its master, the content of a whole tensor."""
        import deepspeed

        tensor = tensor.to(value.device)
        with torch.no_grad():
            if isinstance(value, nn.Parameter) and value.requires_grad:
                if self._settings.zero_stage == 3:
                    deepspeed.utils.safe_set_local_fp32_param(value, _own_part(value, tensor))
                else:
                    deepspeed.utils.safe_set_full_fp32_param(value, tensor)  # does nothing without ZeRO
            if (master := self._masters.get(id(value))) is not None:
                master.copy_(tensor)
            with deepspeed.zero.GatheredParameters([value], modifier_rank=0, enabled=hasattr(value, "ds_id")):
                value.copy_(tensor)

    def _create_moments(self, moments: Sequence[str], counters: Mapping[str, float]) -> None:
        """Make the state that torch would make at the first update, so that it can be filled."""
        states = self._optimizer_states()
        for parameter, state in states:
            state.update(new_moments(parameter, moments, counters))
        self._link_moments(states)

    def _link_moments(self, states: Sequence[tuple[Tensor, dict[str, Any]]]) -> None:
        """Let each parameter find its moments in the flat partition of its group.

        DeepSpeed (0.19) does that once, after the update of the first group, when the others have none yet.
        """
        import deepspeed

        if self._settings.zero_stage not in (1, 2):
            return
        for parameters, (partition, state) in zip(self._groups, states, strict=True):
            if state:
                trained = [parameter for parameter in parameters if parameter.requires_grad]
                deepspeed.utils.lazy_init_hp_params_optimizer_state(trained, partition, {partition: state})

    def _set_moment(self, parameter: nn.Parameter, moment: str, tensor: Tensor) -> None:
        import deepspeed

        tensor = tensor.to(parameter.device)
        if self._settings.zero_stage == 0:
            self._base_optimizer.state[self._masters[id(parameter)]][moment].copy_(tensor)
        elif self._settings.zero_stage == 3:
            deepspeed.utils.safe_set_local_optimizer_state(parameter, _own_part(parameter, tensor), moment)
        else:
            deepspeed.utils.safe_set_full_optimizer_state(parameter, tensor, moment)


def deepspeed_config(
    settings: EngineSettings, num_parameters: int, largest_norm: float | None = None
) -> dict[str, Any]:
    """DeepSpeed's configuration, derived; the only place where it is written. `largest_norm` is that of the gradient.

    Its defaults would differ silently from plain torch: gradient clipping at 1.0, and in bfloat16 a
    check that skips updates.
    """
    bucket = min(num_parameters + num_parameters % 2, _BUCKET_LIMIT)  # ZeRO 1 and 2 insist on an even number
    return {
        "train_micro_batch_size_per_gpu": settings.micro_batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation,
        "gradient_clipping": largest_norm or 0.0,
        "bf16": {"enabled": settings.dtype == "bfloat16", "check_grad_overflow": False},
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": settings.zero_stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "stage3_param_persistence_threshold": settings.persistence_threshold,
        },
        "steps_per_print": None,
        "wall_clock_breakdown": False,
    }


def import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed, quiet and set up for `device`: it picks its accelerator once, when first imported."""
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # otherwise it warns, or takes a GPU that should stay idle
    try:
        with _left_out("mlflow"):
            import deepspeed
    except ImportError as error:
        raise InputError(f"DeepSpeed cannot be imported ({error}): install it or use the plain engine") from error
    deepspeed.utils.logger.setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", r".torch\.distributed\.\w+. is deprecated", FutureWarning)  # of DeepSpeed's calls
    chosen = deepspeed.get_accelerator().device_name()
    if chosen != device.type:
        raise InputError(
            f"DeepSpeed runs on {chosen!r} in this process but the device is {device.type!r}: "
            f"set DS_ACCELERATOR={device.type} before the process starts"
        )
    if device.type == "cpu":
        # Else the first engine on a machine compiles a shared-memory all-reduce, for a minute or two
        # and with a C++ compiler; training never calls it. A look at this table would try the compiler out as well.
        deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}
    return deepspeed


@contextlib.contextmanager
def _left_out(package: str) -> Iterator[None]:
    """A package counts as not installed, unless it is imported already.

    DeepSpeed imports MLflow for its autotuning, which nobody uses here: half of its own import's time, and more.
    """
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment] # what Python's documentation says of it
    try:
        yield
    finally:
        del sys.modules[package]


@contextlib.contextmanager
def _nothing_compiled() -> Iterator[None]:
    """`torch.compile` leaves functions as they are.

    The first engine of a process imports DeepSpeed's Muon, an optimiser nobody uses here; its decorator loads
    Inductor: a second.
    """
    compile_ = torch.compile
    torch.compile = lambda *_, **__: lambda function: function  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compile_


def _forget_groups_that_are_gone(deepspeed: Any) -> None:
    """DeepSpeed derives groups from the process group once, and keeps them when it is left and another one joined.

    A module that is loaded again starts with none; functions that others imported from it see that too. Its own
    `destroy_process_group` forgets them as well (from 0.19 on), but only whoever leaves the group could call it.
    """
    if dist.group.WORLD not in _groups_in_use:
        importlib.reload(deepspeed.utils.groups)
        _groups_in_use.add(dist.group.WORLD)


def _current_device_index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.type == "cuda" else 0


def _trained(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad)


def _own_part(parameter: Any, tensor: Tensor) -> Tensor:
    """What this rank holds of a ZeRO 3 parameter's whole `tensor`, the last rank's with zeros at its end.

    DeepSpeed's own setter of whole tensors refuses sizes that do not divide by the ranks.
    """
    size = parameter.ds_tensor.numel()
    piece = tensor.flatten()[dist.get_rank() * size :][:size]
    return nn.functional.pad(piece, (0, size - len(piece)))


def _shape(value: Tensor) -> tuple[int, ...]:
    return tuple(getattr(value, "ds_shape", value.shape))  # partitioned parameters are empty here
