"""What would limit a training on 8, 64 and 512 GPUs: `python benchmarks/scaling_model.py`. A model, not a measurement.

Counted on the networks themselves: operations of a step, parameters, bytes of a slice. Assumed, and named in what is
printed: the GPU's peak, the share of it that is reached (MFU), the link between GPUs, what a store gives, slices
per GPU and forward. All can be changed on the command line.

* Computation: operations of a GPU's slices / (peak × MFU). The batch per GPU is constant: the global batch grows.
* All-reduce: a ring moves 2 (n − 1) / n × the bytes of the gradients through the slowest link, and takes 2 (n − 1)
  times its latency. ZeRO 1 moves as much (reduce-scatter and all-gather). Nothing is taken to overlap with computation.
* Store: slices that are read per second × their bytes, if none is cached.
* Checkpoint: float32 weights, and the two moments of Adam or the one of RMSprop, uploaded beside the training.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch

from larmor.recon.networks.networks import build_critic, build_generator
from larmor.recon.recipe.recipe import Recipe
from larmor.recon.training.flops import flops_per_step
from larmor.recon.training.peak_flops import peak_flops
from larmor.tuning.search.experiment import load_sweep_experiment


@dataclass(frozen=True)
class Assumptions:
    gpu: str
    mfu: float
    link: float  # bytes per second between neighbours of the ring, the slowest one
    latency: float  # seconds of one message
    store: float  # bytes per second that the store gives all GPUs together
    node_link: float  # bytes per second from one machine to the store
    gpus_per_node: int
    per_gpu: int  # slices
    coils: int


@dataclass(frozen=True)
class Counted:
    """Per generator step with its critic steps; of one slice where that makes sense."""

    flops_per_slice: float
    slice_bytes: int  # of one slice of k-space, before any compression
    generator: int  # parameters
    critic: int
    critic_steps: int
    gradient_bytes: int  # of one number: 2 in bfloat16

    @property
    def checkpoint_bytes(self) -> int:
        return 4 * (3 * self.generator + 2 * self.critic)  # Adam: two moments, RMSprop: one


def count(recipe: Recipe, coils: int) -> Counted:
    with torch.device("meta"):
        generator, critic = (
            sum(parameter.numel() for parameter in network.parameters())
            for network in (build_generator(recipe.generator), build_critic(recipe.critic))
        )
    per_slice = flops_per_step(recipe) / recipe.training.global_batch_size
    slice_bytes = 8 * coils * recipe.data.crop[0] * recipe.data.crop[1]
    number = 2 if recipe.training.dtype == "bfloat16" else 4
    return Counted(per_slice, slice_bytes, generator, critic, recipe.critic.steps, number)


def all_reduce_seconds(num_bytes: float, num_gpus: int, assumed: Assumptions) -> float:
    """A ring over all GPUs."""
    if num_gpus == 1:
        return 0.0
    return 2 * (num_gpus - 1) * (num_bytes / num_gpus / assumed.link + assumed.latency)


def row(num_gpus: int, counted: Counted, assumed: Assumptions, peak: float) -> tuple[str, ...]:
    compute = counted.flops_per_slice * assumed.per_gpu / (peak * assumed.mfu)
    reduced = [counted.critic_steps * [counted.critic], [counted.generator]]
    communication = sum(
        all_reduce_seconds(counted.gradient_bytes * size, num_gpus, assumed) for part in reduced for size in part
    )
    step_bytes = counted.critic_steps * assumed.per_gpu * num_gpus * counted.slice_bytes
    read = step_bytes / assumed.store
    by_machine = step_bytes / max(1, num_gpus / assumed.gpus_per_node) / assumed.node_link
    parts = {"computation": compute + communication, "store": read, "machine's link": by_machine}
    step = max(parts.values())  # reading runs beside the training
    limit = max(parts, key=lambda name: parts[name])
    if limit == "computation":
        limit = "computation" if compute > communication else "all-reduce"
    slices = counted.critic_steps * assumed.per_gpu * num_gpus / step
    ideal = counted.critic_steps * assumed.per_gpu * num_gpus / compute
    return (
        str(num_gpus),
        str(assumed.per_gpu * num_gpus),
        f"{1000 * compute:.0f}",
        f"{1000 * communication:.0f}",
        f"{slices:,.0f}",
        f"{slices / ideal:.0%}",
        f"{step_bytes / (compute + communication) / 1e9:.2f}",
        limit,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="paper_256x256")
    parser.add_argument("--gpu", default="NVIDIA L40S", help="as PyTorch names it")
    parser.add_argument("--mfu", type=float, default=0.3)
    parser.add_argument("--link", type=float, default=2.5e9, help="bytes/s between GPUs; 20 Gbit/s")
    parser.add_argument("--latency", type=float, default=30e-6)
    parser.add_argument(
        "--store", type=float, default=44e9, help="bytes/s of the store in all; 5,500 requests/s of 8 MB"
    )
    parser.add_argument("--node-link", type=float, default=2.5e9, help="bytes/s of one machine to the store")
    parser.add_argument("--gpus-per-node", type=int, default=1)
    parser.add_argument("--per-gpu", type=int, default=16, help="slices per GPU and step")
    parser.add_argument("--coils", type=int, default=1)
    options = vars(parser.parse_args())
    recipe = load_sweep_experiment(options.pop("experiment"), [])
    assumed = Assumptions(**options)
    counted = count(recipe, assumed.coils)
    peak = peak_flops(assumed.gpu, recipe.training.dtype, tf32=True)
    if peak is None:
        parser.error(f"{assumed.gpu}: its peak is not known")
    print(f"counted: {counted.flops_per_slice / 1e12:.2f} TFLOP per slice of a step with {counted.critic_steps} critic")
    print(
        f"  updates, {counted.generator / 1e6:.1f} M and {counted.critic / 1e6:.1f} M parameters, "
        f"{counted.slice_bytes / 1e6:.2f} MB a slice, checkpoint {counted.checkpoint_bytes / 1e9:.2f} GB"
    )
    print(f"assumed: {assumed}; peak {peak / 1e12:.0f} TFLOP/s")
    heading = ("GPUs", "batch", "compute ms", "all-reduce ms", "slices/s", "of ideal", "store GB/s", "limit")
    print("| " + " | ".join(heading) + " |")
    print("|" + " --- |" * len(heading))
    for num_gpus in (1, 8, 64, 512):
        print("| " + " | ".join(row(num_gpus, counted, assumed, peak)) + " |")


if __name__ == "__main__":
    main()
