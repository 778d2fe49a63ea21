"""How a processor runs a model's networks: as trained, in another layout or in bfloat16; the fastest by itself.

Start and data consistency are float32 in each of them. Only `eager` gives the trained model's results bit for bit.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import platform
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from skimage.data import shepp_logan_phantom
from skimage.transform import resize
from torch import Tensor, nn

from larmor.recon.models.model import WEIGHTS, Model
from larmor.recon.networks.data_consistency import ConsistentGenerator
from larmor.recon.recipe.own_name import is_own
from larmor.storage.objects.atomic_file import write_atomically
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.file_digest import file_digest
from larmor.storage.objects.home import cache_home

Runtime = Literal["auto", "eager", "channels_last", "bfloat16"]
"""`eager` is bit for bit what was trained; `auto` is the fastest on this machine that agrees with it."""
EAGER, AUTO = "eager", "auto"
TOLERANCE = 5e-4
"""Largest root mean square difference from `eager`, of an image in [0, 1]: 66 dB, below the errors of the networks."""
_GAIN, _GAIN_SECONDS = 0.9, 0.002  # what is not faster by a tenth and by 2 ms is not worth another rounding
_ROUNDS = 5


@dataclass(frozen=True)
class Trial:
    """Seconds for one image, and the root mean square difference from `eager`."""

    seconds: float
    difference: float


def check_runtime(name: str) -> Runtime:
    """Raises `InputError` for a name that is none."""
    names = get_args(Runtime)
    if name not in names:
        raise InputError(f"--runtime {name}: choose one of {', '.join(names)}")
    return name  # type: ignore[return-value]


def with_runtime(model: Model, name: str) -> Model:
    """The model with networks that run as `name` says; `auto` measures once, and remembers what was fastest.

    On a GPU, and for a model that works on stacks or PET, `auto` is `eager`. Raises `InputError` for another name, and
    for a runtime that is not of this device or cannot run the model's networks.
    """
    check_runtime(name)
    on_cpu = next(model.generator.parameters()).device.type == "cpu"
    if name == EAGER:
        return model
    if name == AUTO:
        is_simple = model.physics.stack == 1 and model.physics.signal.mode != "pet"
        name = _remembered(model) if on_cpu and is_simple else EAGER
        return with_runtime(model, name)
    if not on_cpu:
        raise InputError(f"--runtime {name}: is for a CPU; leave it out, or choose --device cpu")
    return replace(model, generator=_converted(model.generator, name))


def fastest(trials: Mapping[str, Trial], tolerance: float = TOLERANCE) -> str:
    """The name of the quickest trial that agrees with `eager`; `eager` where no gain is worth it."""
    eager = trials[EAGER].seconds
    good = {
        name: trial.seconds
        for name, trial in trials.items()
        if trial.difference <= tolerance and trial.seconds <= _GAIN * eager and eager - trial.seconds >= _GAIN_SECONDS
    }
    return min(good, key=lambda name: good[name], default=EAGER)


def measure(generator: nn.Module, size: tuple[int, int], channels: int) -> dict[str, Trial]:
    """Every runtime on a phantom, by turns: of a generator with data consistency its networks alone, the median of 5
    rounds. A runtime that fails is left out."""
    image = _phantom(size, channels)
    networks = {EAGER: _networks(generator)}
    for name in get_args(Runtime):
        if name not in (EAGER, AUTO):
            networks[name] = _networks(_converted(generator, name))
    results: dict[str, Tensor] = {}
    times: dict[str, list[float]] = {name: [] for name in networks}
    for number in range(_ROUNDS + 1):  # the first warms up
        for name, run in list(networks.items()):
            began = time.perf_counter()
            try:
                with torch.inference_mode():
                    results[name] = _through(run, image)
            except RuntimeError:
                if name == EAGER:
                    raise
                del networks[name]
                continue
            if number:
                times[name].append(time.perf_counter() - began)
    eager = results[EAGER]
    return {
        name: Trial(statistics.median(times[name]), float((results[name] - eager).square().mean().sqrt()))
        for name in networks
    }


def _remembered(model: Model) -> str:
    """What was fastest here before, else what is now."""
    file = cache_home() / "runtimes" / f"{_key(model)}.json"
    try:
        name = json.loads(file.read_text())["runtime"]
        return name if name in get_args(Runtime) else EAGER
    except (OSError, ValueError, KeyError, TypeError):
        pass
    if _needs_more(model):
        return EAGER
    trials = measure(model.generator, model.physics.crop, model.physics.signal.channels)
    name = fastest(trials)
    content = {"runtime": name, "trials": {key: vars(trial) for key, trial in trials.items()}}
    with contextlib.suppress(OSError):  # it is measured again the next time
        write_atomically(file, json.dumps(content).encode(), overwrite=True)
    return name


def _key(model: Model) -> str:
    """Model, machine, library, threads and size."""
    weights = model.folder / WEIGHTS
    processor = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else platform.processor()
    models = next((line for line in processor.splitlines() if line.startswith("model name")), processor)
    parts = (
        file_digest(weights) if weights.is_file() else "",
        model.recipe.generator.model_dump_json(),
        *(platform.node(), models, torch.backends.cpu.get_cpu_capability(), torch.__version__),
        *(torch.get_num_threads(), model.physics.crop),
    )
    return hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()


def _needs_more(model: Model) -> bool:
    """Whether the network works on more than an image."""
    name = model.recipe.generator.name
    signal = model.physics.signal
    return name == "idpcnn" or is_own(name) or signal.keeps_coils or signal.guide


def _networks(generator: nn.Module) -> list[nn.Module]:
    return list(generator.networks) if isinstance(generator, ConsistentGenerator) else [generator]


def _through(networks: list[nn.Module], image: Tensor) -> Tensor:
    for network in networks:
        image = network(image).float()
    return image


def _converted(generator: nn.Module, name: str) -> nn.Module:
    """A copy whose networks run otherwise."""
    copied = copy.deepcopy(generator)
    if isinstance(copied, ConsistentGenerator):
        copied.networks = nn.ModuleList(_Run(network, name == "bfloat16") for network in copied.networks)
        return copied
    return _Run(copied, name == "bfloat16")


class _Run(nn.Module):
    """A network on channels-last images, with `lower` in bfloat16 but for its sums of images."""

    def __init__(self, network: nn.Module, lower: bool) -> None:
        super().__init__()
        self.network, self._lower = network.to(memory_format=torch.channels_last), lower  # type: ignore[call-overload]

    def forward(self, image: Tensor, *measurement: Tensor | None) -> Tensor:
        image = image.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=self._lower):
            result: Tensor = self.network(image, *measurement)
        return result.float().contiguous(memory_format=torch.contiguous_format)


def _phantom(size: tuple[int, int], channels: int) -> Tensor:
    """(1, channels, height, width), in [0, 1]."""
    image = torch.from_numpy(resize(shepp_logan_phantom(), size, anti_aliasing=True)).float()
    return image.expand(1, channels, *size).contiguous()
