"""The engine of a network: DeepSpeed's (ZeRO 0–3, bfloat16 with float32 masters) or the plain PyTorch one."""

from __future__ import annotations

import importlib.util
import os
from typing import Literal

import torch
import torch.distributed as dist
from torch import nn

from larmor.recon.engines.deepspeed_engine import DeepSpeedEngine
from larmor.recon.engines.engine import Engine, EngineSettings
from larmor.recon.engines.optimizers import clip_weights_
from larmor.recon.engines.plain_engine import PlainEngine
from larmor.recon.recipe.settings import OptimizerConfig
from larmor.storage.objects.errors import InputError

Backend = Literal["deepspeed", "plain", "auto"]


def build_engine(
    module: nn.Module,
    optimizer_config: OptimizerConfig,
    settings: EngineSettings,
    device: torch.device | str,
    clip: float | None = None,
    backend: Backend = "deepspeed",
) -> Engine:
    """Wrap `module` (float32, on any device) for training on `device`.

    Rank 0's initial weights are copied to all ranks. With `clip` the weights of convolutions and dense
    layers are clamped to ±clip now and after every update (the paper's eq. 4). `auto` takes DeepSpeed if it
    is installed. With more than one rank the caller has initialised `torch.distributed`. Raises InputError
    if the settings, the device and the backend do not fit together.
    """
    device = torch.device(device)
    if backend == "auto":
        backend = "plain" if importlib.util.find_spec("deepspeed") is None else "deepspeed"
    if clip is not None:
        clip_weights_(module, clip)
    if backend not in ("deepspeed", "plain"):
        raise InputError(f"engine backend {backend!r}: use deepspeed, plain or auto")
    _require_process_group(device, create=backend == "deepspeed")
    if backend == "plain":
        return PlainEngine(module, optimizer_config, settings, device, clip)
    return DeepSpeedEngine(module, optimizer_config, settings, device, clip)


def _require_process_group(device: torch.device, create: bool) -> None:
    """Several ranks need a process group from the caller; DeepSpeed (`create`) needs one even for a
    single rank, and a hash store makes it without any port."""
    if dist.is_initialized():
        return
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']} but there is no process group: "
            "call torch.distributed.init_process_group before building engines"
        )
    if create:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
