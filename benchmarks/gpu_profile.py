"""What part of a GPU's peak a training step reaches, and what each switch gives: `python benchmarks/gpu_profile.py`.

Where a GPU is, every switch is measured by itself and together with the others, through the plain engine and DeepSpeed
(`--engines`), and a table printed: one command, ten minutes at most (`--minutes`). Without a GPU (`--device cpu`) the
operators of the same steps are counted on tensors without content: operations, bytes, launches, and by a roofline the
least time that they can take on an H200. Needs PyTorch, NumPy, SciPy, pydantic, safetensors and crc32c; no Ray, no
store; DeepSpeed where it is installed. Steps are of one critic step and one generator step, on noise, in bfloat16.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from operator_costs import FLOPS, LAUNCH, Cost, Costs, Counting, Layout

from larmor.recon.engines.optimizers import build_optimizer, parameter_groups
from larmor.recon.engines.precision import lowered
from larmor.recon.physics.samples import Sample, prepare
from larmor.recon.recipe.recipe import Recipe
from larmor.recon.recipe.settings import OptimizerConfig
from larmor.recon.recipe.systems import merged
from larmor.recon.training.flops import flops_per_step
from larmor.recon.training.gan import Gan
from larmor.storage.loading.loader import Batch

SYSTEMS: Mapping[str, Mapping[str, Any]] = {
    "gan_resnet50": {},
    "larmor": {"system": "larmor", "generator": {"start": {"method": "none"}}},  # a start is made once, and kept
}


class Switch(NamedTuple):
    """Settings, and what the script does by itself because no experiment may: whole steps as CUDA graphs of compiled
    networks, and `torch.compile` with CUDA graphs of its own (`reduce-overhead`), which DeepSpeed and several workers
    could use too."""

    norms: bool = True
    channels_last: bool = False
    compiled: bool = False
    recorded: bool = False
    graphs_of_passes: bool = False


SWITCHES: Mapping[str, Switch] = {
    "as it is": Switch(),
    "channels_last": Switch(channels_last=True),
    "compile": Switch(compiled=True),
    "cuda_graphs": Switch(recorded=True),
    "no norms": Switch(norms=False),
    "channels_last, compile": Switch(channels_last=True, compiled=True),
    "channels_last, reduce-overhead": Switch(channels_last=True, graphs_of_passes=True),
    "channels_last, compile, cuda_graphs": Switch(channels_last=True, compiled=True, recorded=True),
    "all, no norms": Switch(norms=False, channels_last=True, compiled=True, recorded=True),
}
_WARM_UP, _MEASURED = 6, 6  # steps; the fourth is recorded where CUDA graphs are wanted


def recipe_of(
    system: str, switch: str, micro_batch: int, size: Sequence[int], width: int | None = None, **training: Any
) -> Recipe:
    chosen = SWITCHES[switch]
    base: dict[str, Any] = {
        "data": {"crop": tuple(size)},
        "mask": {"kind": "gaussian2d", "sampling_ratio": 0.3},
        "critic": {"steps": 1},
        "training": {"global_batch_size": micro_batch, "zero_stage": 0, "backend": "plain", **training},
    }
    without: dict[str, Any] = {} if chosen.norms else {"generator": {"norm": "none"}, "critic": {"norm": "none"}}
    narrow: dict[str, Any] = {"generator": {"width": width}, "critic": {"width": width}} if width else {}
    recipe = Recipe.model_validate(merged(merged(merged(base, SYSTEMS[system]), without), narrow))
    switched = {
        "channels_last": chosen.channels_last,
        "compile": chosen.compiled,
        "cuda_graphs": chosen.recorded,  # an experiment may not have both
    }
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=switched)})


def batch_of(recipe: Recipe, micro_batch: int) -> Batch:
    shape = (micro_batch, 1, *recipe.data.crop)
    noise = np.random.default_rng(0).standard_normal(shape, dtype=np.float32).astype(np.complex64)
    return Batch.of(noise, np.array([(0, index) for index in range(micro_batch)]))


# without a GPU


def counted(recipe: Recipe, layout: Layout, fused: bool) -> Costs:
    """The operators of a step in bfloat16, as the plain engine has them: weights are cast in every pass."""
    device, size = torch.device("meta"), recipe.training.global_batch_size
    gan = Gan(recipe, device)
    for engine in gan.engines.values():
        vars(engine).update(bare_forward=partial(_in_bfloat16, engine.module), step=lambda: None)
    counting = Counting(layout, fused)
    with counting:
        with counting.phase("samples"):
            samples = [prepare(batch_of(recipe, size), recipe.data.crop, recipe.mask, device, signal=recipe.signal)]
        gan.train_critics(samples, 0)
        gan.train_generator(samples)
    costs = counting.costs
    for name, engine in gan.engines.items():
        of_generator = name == "generator"
        config = recipe.generator_optimizer if of_generator else recipe.critic_optimizer
        costs += updated(engine.module, config, None if of_generator else recipe.critic.applied_clip, fused)
    return costs


def _in_bfloat16(module: nn.Module, *inputs: Tensor | None) -> Tensor:
    weights = {name: value.bfloat16() for name, value in module.named_parameters()}
    output: Tensor = torch.func.functional_call(module, weights, tuple(lowered(inputs, torch.bfloat16)))
    return output.float()


def updated(module: nn.Module, config: OptimizerConfig, clip: float | None, fused: bool) -> Costs:
    """An update of the weights: by operators over lists of tensors, or all in one."""
    if fused and config.name != "rmsprop":
        weights = sum(parameter.numel() for parameter in module.parameters())
        return Costs({"optimizer": [4.0, 0.0, 28.0 * weights, Cost(4, 0, 28.0 * weights).seconds]})
    optimizer = build_optimizer(parameter_groups(module, clip), config, clip)
    for group in optimizer.param_groups:
        group["foreach"] = True
    for parameter in module.parameters():
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()  # makes its state
    counting = Counting()
    with counting, counting.phase("optimizer"):
        optimizer.step()
    return counting.costs


def tables(options: argparse.Namespace, columns: Sequence[str]) -> Iterator[tuple[str, int]]:
    """The head of a table for each system and micro-batch; its rows are the caller's."""
    for system in options.systems:
        for micro_batch in options.micro_batches:
            print(f"\n**{system}, {_size(options)}, micro-batches of {micro_batch}**\n")
            print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
            yield system, micro_batch


def expect(options: argparse.Namespace) -> None:
    print(f"torch {torch.__version__}, no GPU: counted, not measured; an operator's launch {LAUNCH * 1e6:g} µs")
    columns = ("", "GFLOP/image", "GB/image", "launches", "device ms", "host ms", "ms/image", "of peak")
    for system, micro_batch in tables(options, columns):
        found: dict[tuple[bool, Layout, bool], Costs] = {}
        for title in options.switches or SWITCHES:
            switch = SWITCHES[title]
            fused = switch.compiled or switch.graphs_of_passes
            layout: Layout = "planes"
            if switch.channels_last:  # norms of a compiler take any layout
                layout = "channels_last_norms" if fused else "channels_last"
            if (key := (switch.norms, layout, fused)) not in found:
                plain = "as it is" if switch.norms else "no norms"
                found[key] = counted(recipe_of(system, plain, micro_batch, options.size, options.width), layout, fused)
            recorded = switch.recorded or switch.graphs_of_passes
            print(_row(title, found[key], micro_batch, recorded), flush=True)
        if options.operators:
            _print_kinds(next(iter(found.values())), micro_batch)


def _row(title: str, costs: Costs, images: int, recorded: bool) -> str:
    seconds = costs.step(recorded)
    host = 0.0 if recorded else 1e3 * costs.launches * LAUNCH
    return (
        f"| {title} | {costs.flops / images / 1e9:.0f} | {costs.total(2) / images / 1e9:.2f} | {costs.launches:.0f} "
        f"| {1e3 * costs.seconds:.1f} | {host:.1f} | {1e3 * seconds / images:.2f} "
        f"| {100 * costs.flops / seconds / FLOPS:.0f} % |"
    )


def _print_kinds(costs: Costs, images: int) -> None:
    print("\n| operators | launches | GFLOP/image | GB/image | ms/image | share |\n|---|---|---|---|---|---|")
    for kind, (launches, flops, moved, seconds) in sorted(costs.rows.items(), key=lambda item: -item[1][3]):
        print(
            f"| {kind} | {launches:.0f} | {flops / images / 1e9:.1f} | {moved / images / 1e9:.3f} "
            f"| {1e3 * seconds / images:.3f} | {100 * seconds / costs.seconds:.0f} % |"
        )


# on a GPU


def measured(
    recipe: Recipe, device: torch.device, wait: Callable[[], None], graphs_of_passes: bool = False
) -> tuple[float, float, int]:
    """Seconds of a step, seconds until the host has launched it, and how often a step makes the host wait."""
    batch = batch_of(recipe, recipe.training.global_batch_size)
    gan = Gan(recipe, device)
    if graphs_of_passes:
        for engine in gan.engines.values():
            engine.module.compile(dynamic=False, mode="reduce-overhead")

    def step(number: int) -> None:
        if graphs_of_passes:
            torch.compiler.cudagraph_mark_step_begin()
        gan.set_learning_rates(number)
        samples: list[Sample] = [prepare(batch, recipe.data.crop, recipe.mask, device, signal=recipe.signal)]
        gan.train_critics(samples, number)
        gan.train_generator(samples)

    try:
        for number in range(_WARM_UP):
            step(number)
        waits = waits_of(partial(step, _WARM_UP), device)
        wait()
        began = time.perf_counter()
        for number in range(_MEASURED):
            step(_WARM_UP + 1 + number)
        launched = time.perf_counter() - began
        wait()
        return (time.perf_counter() - began) / _MEASURED, launched / _MEASURED, waits
    finally:
        gan.close()


def waits_of(step: Callable[[], None], device: torch.device) -> int:
    """How often PyTorch makes the host wait within `step`, as it says itself; 0 on a CPU."""
    if device.type != "cuda":
        step()
        return 0
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in said)


def measure(options: argparse.Namespace, device: torch.device) -> None:
    on_gpu = device.type == "cuda"
    ends = time.monotonic() + 60 * options.minutes
    print(f"{torch.cuda.get_device_name(device) if on_gpu else 'CPU'}, torch {torch.__version__}, {options.dtype}")
    columns = ("", "engine", "ms/image", "of it launching", "waits a step", "TFLOP/s", "of peak", "GB")
    for system, micro_batch in tables(options, columns):
        for switch in options.switches or SWITCHES:
            for engine in options.engines:
                if engine == "deepspeed" and SWITCHES[switch].recorded:
                    continue  # its step has conditions and counters on the host, which no graph repeats
                if time.monotonic() < ends:
                    print(_measured_row(options, device, system, switch, engine, micro_batch), flush=True)


def _measured_row(
    options: argparse.Namespace, device: torch.device, system: str, switch: str, engine: str, micro_batch: int
) -> str:
    on_gpu = device.type == "cuda"
    wait = partial(torch.cuda.synchronize, device) if on_gpu else lambda: None
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    torch.compiler.reset()
    try:
        stage = 1 if engine == "deepspeed" else 0  # in stage 0 DeepSpeed looks at every gradient on the host
        recipe = recipe_of(
            system,
            switch,
            micro_batch,
            options.size,
            options.width,
            backend=engine,
            dtype=options.dtype,
            zero_stage=stage,
        )
        seconds, launched, waits = measured(recipe, device, wait, SWITCHES[switch].graphs_of_passes)
    except Exception as error:  # a row that cannot be made must not cost the others
        return f"| {switch} | {engine} | {type(error).__name__}: {str(error).splitlines()[0][:90]} | | | | | |"
    rate = flops_per_step(recipe) / seconds
    memory = torch.cuda.max_memory_allocated(device) / 1e9 if on_gpu else 0.0
    return (
        f"| {switch} | {engine} | {1e3 * seconds / micro_batch:.2f} | {1e3 * launched / micro_batch:.2f} | {waits} "
        f"| {rate / 1e12:.3g} | {f'{100 * rate / FLOPS:.1f} %' if on_gpu else '–'} | {memory:.1f} |"
    )


def _size(options: argparse.Namespace) -> str:
    return "×".join(map(str, options.size))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--measure", action="store_true", help="on a CPU measure too, where only counting makes sense")
    parser.add_argument("--systems", nargs="*", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--switches", nargs="*", choices=SWITCHES, default=[], help="measure these alone")
    parser.add_argument("--engines", nargs="*", choices=("plain", "deepspeed"), default=["plain", "deepspeed"])
    parser.add_argument("--micro-batches", nargs="*", type=int, default=[16, 64])
    parser.add_argument("--size", nargs=2, type=int, default=[256, 256], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--width", type=int, help="channels of the first layer of generator and critic")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--operators", action="store_true", help="also what each kind of operator costs (counted)")
    parser.add_argument("--minutes", type=float, default=9.0, help="start no row later than that")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cpu" and not options.measure:
        expect(options)
    else:
        measure(options, device)


if __name__ == "__main__":
    main()
