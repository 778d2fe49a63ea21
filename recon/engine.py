"""One network with its optimiser behind a small interface; the only file that imports deepspeed.

A GAN trains two networks, so it holds two engines. `build_engine` gives either DeepSpeed's (ZeRO
0–3, bfloat16 with float32 masters) or the plain torch one of `recon.plain_engine`.
"""

import importlib.util
import json
import logging
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from recon.optimizers import OptimizerConfig, build_optimizer, clip_parameters_
from recon.precision import lower_buffers
from storage.errors import InputError

Backend = Literal["deepspeed", "plain", "auto"]
Precision = Literal["float32", "bfloat16"]

_TAG = "zero"  # DeepSpeed writes into <folder>/<tag>
_BUCKET_LIMIT = 50_000_000  # elements; with DeepSpeed's own 5e8 a buffer takes 2 GB


class Engine(Protocol):
    """One network in training. Real inputs and outputs are float32 whatever the engine computes in.

    Every rank makes the same calls in the same order: most of them communicate.
    """

    module: nn.Module

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Forward pass whose result will be handed (as a loss) to this engine's `backward`."""

    def bare_forward(self, *inputs: Tensor) -> Tensor:
        """Forward pass of the module alone, in the engine's precision, unknown to the engine.

        For whatever this engine does not train on: the generator's images while the critic trains,
        the critic's scores while the generator trains.
        """

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of the scalar `loss`, divided by the accumulation, to this engine's."""

    def step(self) -> None:
        """Called after every micro-batch; updates the weights at the accumulation boundary."""

    def set_learning_rate(self, value: float) -> None:
        """The learning rate of all parameter groups from the next update on."""

    def save(self, folder: Path) -> None:
        """Every rank calls; each writes its own files into `folder`, which may be local to the rank.

        Give each engine a folder of its own, and call between updates: gradients are not saved.
        """

    def load(self, folder: Path) -> None:
        """Every rank calls, on a freshly built engine; `folder` holds the files of all ranks.

        Restores weights, optimiser state, learning rate and counters exactly. Buffers come back as
        rank 0 had them. Raises InputError if a file is missing or if the checkpoint was written by
        another backend, ZeRO stage, precision or number of ranks.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """Full float32 weights (the masters, where there are any) and buffers: detached CPU copies.

        Every rank calls and every rank gets them, ZeRO 3 included.
        """


@dataclass(frozen=True)
class EngineSettings:
    """How an engine runs. `persistence_threshold`: in ZeRO 3, parameters with fewer elements than
    this stay whole on every rank (DeepSpeed's own default; 0 partitions everything)."""

    micro_batch_size: int
    gradient_accumulation: int = 1
    zero_stage: int = 0
    dtype: Precision = "float32"
    persistence_threshold: int = 100_000

    def __post_init__(self) -> None:
        for name in ("micro_batch_size", "gradient_accumulation"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.zero_stage not in (0, 1, 2, 3):
            raise InputError(f"zero_stage is {self.zero_stage}: use 0, 1, 2 or 3")
        if self.dtype not in ("float32", "bfloat16"):
            raise InputError(f"dtype is {self.dtype!r}: use float32 or bfloat16")


def build_engine(
    module: nn.Module,
    optimizer_config: OptimizerConfig,
    settings: EngineSettings,
    device: torch.device | str,
    clip: float | None = None,
    backend: Backend = "deepspeed",
) -> Engine:
    """Wrap `module` (float32, on any device) for training on `device`.

    Rank 0's initial weights are copied to all ranks. With `clip` the weights are clamped to ±clip
    now and after every update (the paper's eq. 4). `auto` takes DeepSpeed if it is installed. With
    more than one rank the caller has initialised `torch.distributed`. Raises InputError if the
    settings, the device and the backend do not fit together.
    """
    device = torch.device(device)
    if backend == "auto":
        backend = "plain" if importlib.util.find_spec("deepspeed") is None else "deepspeed"
    if clip is not None:
        clip_parameters_(module, clip)
    if backend not in ("deepspeed", "plain"):
        raise InputError(f"engine backend {backend!r}: use deepspeed, plain or auto")
    _require_process_group(device, create=backend == "deepspeed")
    if backend == "plain":
        from recon.plain_engine import PlainEngine

        return PlainEngine(module, optimizer_config, settings, device, clip)
    return DeepSpeedEngine(module, optimizer_config, settings, device, clip)


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
        deepspeed = _import_deepspeed(device)
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it; `device_rank` is what it uses
        index = device.index if device.index is not None else _current_device_index(device)
        self._base_optimizer = build_optimizer(module.parameters(), optimizer_config, clip)
        self._engine, *_ = deepspeed.initialize(
            args=SimpleNamespace(device_rank=index),
            model=module,
            optimizer=self._base_optimizer,
            config=deepspeed_config(settings, sum(p.numel() for p in module.parameters())),
        )
        self.module: nn.Module = self._engine.module
        self._settings = settings
        self._dtype: torch.dtype = getattr(torch, settings.dtype)
        if self._dtype is not torch.float32:
            lower_buffers(self.module, self._dtype)

    def __call__(self, *inputs: Tensor) -> Tensor:
        return self._engine(*lowered(inputs, self._dtype)).float()

    def bare_forward(self, *inputs: Tensor) -> Tensor:
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
        folder.mkdir(parents=True, exist_ok=True)
        self._engine.save_checkpoint(str(folder), tag=_TAG, save_latest=False)
        write_manifest(folder, self._manifest() | {"micro_steps": self._engine.micro_steps})

    def load(self, folder: Path) -> None:
        manifest = check_manifests(folder, self._manifest(), ranks=range(dist.get_world_size()))
        loaded, _ = self._engine.load_checkpoint(str(folder), tag=_TAG)
        assert loaded is not None, f"DeepSpeed found nothing in {folder}"
        self._engine.micro_steps = manifest["micro_steps"]  # the one counter DeepSpeed does not restore

    def state_dict(self) -> dict[str, Tensor]:
        masters: dict[int, Tensor] = {}
        if self._settings.zero_stage == 0:  # the base optimiser holds them, whole and in order
            held = [parameter for group in self._base_optimizer.param_groups for parameter in group["params"]]
            masters = {id(ours): master for ours, master in zip(self.module.parameters(), held, strict=True)}
        tensors = self.module.state_dict(keep_vars=True)
        return {name: _full_tensor(masters.get(id(value), value)) for name, value in tensors.items()}

    def _manifest(self) -> dict[str, Any]:
        return {
            "backend": "deepspeed",
            "zero_stage": self._settings.zero_stage,
            "dtype": self._settings.dtype,
            "world_size": dist.get_world_size(),
        }


def lowered(inputs: Iterable[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Real floating-point inputs in `dtype`; masks and complex k-space as they are."""
    return [x.to(dtype) if x.is_floating_point() else x for x in inputs]


def deepspeed_config(settings: EngineSettings, num_parameters: int) -> dict[str, Any]:
    """DeepSpeed's configuration, derived; the only place where it is written.

    Its defaults would differ silently from plain torch: gradient clipping at 1.0, and in bfloat16 a
    check that skips updates.
    """
    bucket = min(num_parameters + num_parameters % 2, _BUCKET_LIMIT)  # ZeRO 1 and 2 insist on an even number
    return {
        "train_micro_batch_size_per_gpu": settings.micro_batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation,
        "gradient_clipping": 0.0,
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


def _import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed, quiet and set up for `device`: it picks its accelerator once, when first imported."""
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # otherwise it warns, or takes a GPU that should stay idle
    try:
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
        # and with a C++ compiler; training never calls it.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


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


def _current_device_index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.type == "cuda" else 0


def _full_tensor(value: Tensor) -> Tensor:
    """A CPU copy of a buffer or parameter, floats as float32: gathered from all ranks, the master if there is one."""
    import deepspeed

    if isinstance(value, nn.Parameter) and value.requires_grad:  # frozen parameters have no master
        master = deepspeed.utils.safe_get_full_fp32_param(value)
        value = value if master is None else master
    with deepspeed.zero.GatheredParameters([value], enabled=hasattr(value, "ds_id")):
        dtype = torch.float32 if value.is_floating_point() else value.dtype
        return value.detach().to("cpu", dtype, copy=True)


def write_manifest(folder: Path, facts: dict[str, Any]) -> None:
    """Last file of a rank's part of a checkpoint: what wrote it, and which files are there."""
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.pt"))
    text = json.dumps(facts | {"files": files}, indent=2)
    (folder / _manifest_name(_rank())).write_text(text + "\n")


def check_manifests(folder: Path, expected: dict[str, Any], ranks: Iterable[int]) -> dict[str, Any]:
    """Check that `folder` holds the complete parts of `ranks`, written by an engine like this one.

    Returns the manifest of rank 0. Raises InputError before anything is read or communicated.
    """
    manifests = []
    for rank in ranks:
        path = folder / _manifest_name(rank)
        if not path.is_file():
            raise InputError(f"checkpoint {folder} lacks {path.name}: it is incomplete or from fewer ranks")
        manifest = json.loads(path.read_text())
        for name, value in expected.items():
            if manifest.get(name) != value:
                raise InputError(
                    f"checkpoint {folder} was written with {name}={manifest.get(name)} but this engine has "
                    f"{name}={value}: continue with the checkpoint's setting"
                )
        for file in manifest["files"]:
            if not (folder / file).is_file():
                raise InputError(f"checkpoint {folder} lacks {file}: fetch it again or take an earlier checkpoint")
        manifests.append(manifest)
    return manifests[0]


def _manifest_name(rank: int) -> str:
    return f"engine-rank-{rank:05d}.json"


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
