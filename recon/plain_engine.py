"""The engine interface on plain torch, for a machine without DeepSpeed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from recon.engine import EngineSettings, check_manifests, write_manifest
from recon.optimizers import OptimizerConfig, build_optimizer
from storage.errors import InputError

_FILE = "plain.pt"


class PlainEngine:
    """An `Engine` on torch alone: whole weights and optimiser on every rank, gradients averaged.

    bfloat16 means autocast over float32 weights. A checkpoint is rank 0's file and loads on any
    number of ranks, with `weights_only=True`. Raises InputError for a ZeRO stage above 0.
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
        self._optimizer = build_optimizer(self.module.parameters(), optimizer_config, clip)
        self._settings = settings
        self._device = device
        self._micro_steps = 0

    def __call__(self, *inputs: Tensor) -> Tensor:
        return self.bare_forward(*inputs)

    def bare_forward(self, *inputs: Tensor) -> Tensor:
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
        self._optimizer.step()
        self._optimizer.zero_grad()

    def set_learning_rate(self, value: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = value

    def save(self, folder: Path) -> None:
        assert self._micro_steps % self._settings.gradient_accumulation == 0, "save between updates"
        folder.mkdir(parents=True, exist_ok=True)
        if not dist.is_initialized() or dist.get_rank() == 0:
            state = {"module": self.module.state_dict(), "optimizer": self._optimizer.state_dict()}
            torch.save(state, folder / _FILE)
        write_manifest(folder, {"backend": "plain", "micro_steps": self._micro_steps})

    def load(self, folder: Path) -> None:
        manifest = check_manifests(folder, {"backend": "plain"}, ranks=[0])
        state = torch.load(folder / _FILE, map_location=self._device, weights_only=True)
        self.module.load_state_dict(state["module"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._micro_steps = manifest["micro_steps"]

    def state_dict(self) -> dict[str, Tensor]:
        return {name: value.detach().to("cpu", copy=True) for name, value in self.module.state_dict().items()}

    @contextmanager
    def _precision(self) -> Iterator[None]:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._settings.dtype == "bfloat16"):
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
