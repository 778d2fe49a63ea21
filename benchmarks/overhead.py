"""What training through Ray and DeepSpeed costs beside a bare PyTorch loop: `python benchmarks/overhead.py`.

One worker of Ray Train runs Larmor's training of the laptop preset as it is; a process of its own runs a loop written
by hand here: same networks and losses, torch's own optimisers, batches of the same loader, prepared alike. Both have
one thread for computation. They take turns, a block of steps each, so that both see the same machine: Larmor's
worker waits at its report until the other has done its block. The reports themselves, with what they write to the run's
folder, count for Larmor; validations and checkpoints lie outside the blocks.

Printed are the seconds of a step of both and the ratio, over the pairs of blocks, and by how much the losses of the
first steps differ: both do train the same.

The data: a data set of `larmor convert` (`--data URL`) with splits `train` and `validation`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import TYPE_CHECKING, Any

from larmor.tuning.search.experiment import SweepExperiment, load_sweep_experiment

if TYPE_CHECKING:
    from larmor.cluster.on_ray.attempt import AttemptEnd, WorkConfig


class BareLoop:
    """The same training, by hand."""

    def __init__(self, experiment: SweepExperiment) -> None:
        import torch

        from larmor.recon.networks.networks import build_critic, build_generator
        from larmor.storage.loading.config import open_loader, open_reader
        from larmor.storage.loading.loader import Share

        torch.manual_seed(experiment.seed)
        self.experiment, self.step_number = experiment, 0
        self.generator = build_generator(experiment.generator)
        self.critic = build_critic(experiment.critic)
        assert experiment.critic.clip is not None
        self.clip = experiment.critic.clip
        self._clamp()
        own = experiment.generator_optimizer
        betas = (own.beta1, own.beta2)
        self.for_generator = torch.optim.Adam(self.generator.parameters(), own.learning_rate, betas, own.epsilon)
        own = experiment.critic_optimizer
        self.for_critic = torch.optim.RMSprop(self.critic.parameters(), own.learning_rate, own.alpha, own.epsilon)
        reader = open_reader(experiment.data, "train")
        share = Share(0, 1, experiment.training.global_batch_size, 1)
        self.batches = open_loader(experiment.data, reader, share, experiment.seed).batches(0)

    def step(self) -> float:
        """One critic and one generator update; the generator's loss."""
        import torch

        from larmor.recon.physics.feed import to_device
        from larmor.recon.physics.samples import prepare
        from larmor.recon.recipe.recipe import learning_rate_factor
        from larmor.recon.training.losses import generator_loss

        experiment, cpu = self.experiment, torch.device("cpu")
        factor = learning_rate_factor(experiment.training, self.step_number)
        self.for_generator.param_groups[0]["lr"] = experiment.generator_optimizer.learning_rate * factor
        self.for_critic.param_groups[0]["lr"] = experiment.critic_optimizer.learning_rate * factor
        sample = prepare(to_device(next(self.batches), cpu), experiment.data.crop, experiment.mask, cpu)

        with torch.no_grad():
            fake = self.generator(sample.zero_filled)
        real_scores, fake_scores = self.critic(torch.cat([sample.target, fake])).chunk(2)
        (fake_scores.mean() - real_scores.mean()).backward()
        self.for_critic.step()
        self.for_critic.zero_grad()
        self._clamp()

        self.critic.requires_grad_(False)
        reconstruction = self.generator(sample.zero_filled)
        terms = generator_loss(sample.target, reconstruction, [self.critic(reconstruction)], experiment.loss)
        terms["loss"].backward()
        self.for_generator.step()
        self.for_generator.zero_grad()
        self.critic.requires_grad_(True)
        self.step_number += 1
        return terms["loss"].item()

    def _clamp(self) -> None:
        for parameter in self.critic.parameters():
            parameter.data.clamp_(-self.clip, self.clip)


def bare_process(address: str, overrides: list[str], blocks: int, num_steps: int) -> None:
    """Take turns with whoever connects: it sends the seconds of its block, and waits until ours is done."""
    import torch

    torch.set_num_threads(1)
    loop = BareLoop(load_sweep_experiment("laptop", overrides))
    ours: list[float] = []
    losses: list[float] = []
    theirs: list[tuple[float, list[float]]] = []
    with Listener(address, "AF_UNIX") as listener, listener.accept() as connection:
        for _ in range(blocks):
            theirs.append(connection.recv())
            began = time.perf_counter()
            losses += [loop.step() for _ in range(num_steps)]
            ours.append(time.perf_counter() - began)
            connection.send("your turn")
    loop.batches.close()
    # the first block of each warms up
    pairs = [(larmor / num_steps, bare / num_steps) for (larmor, _), bare in zip(theirs, ours, strict=True)][1:]
    ratios = [larmor / bare for larmor, bare in pairs]
    seconds = [statistics.median(column) for column in zip(*pairs, strict=True)]
    first = [abs(larmor / bare - 1) for larmor, bare in zip(theirs[0][1], losses, strict=False)]
    print(
        f"Ray + DeepSpeed {seconds[0]:.4f} s/step, bare loop {seconds[1]:.4f} s/step, ratio "
        f"{statistics.median(ratios):.3f} ({min(ratios):.3f}–{max(ratios):.3f}) over {len(pairs)} pairs of blocks; "
        f"losses of the first {num_steps} steps differ by {max(first):.1e} at most",
        flush=True,
    )


def larmor_worker(address: str) -> Any:
    """What Ray Train runs in the worker: Larmor's own, whose reports give the turn to the bare loop."""

    def loop(config: WorkConfig) -> AttemptEnd:
        import time
        from multiprocessing.connection import Client

        from larmor.cluster.on_ray import ray_worker

        connection: Connection = Client(address, "AF_UNIX")

        class InTurns(ray_worker.RunWorker):
            began = 0.0

            def progress(self, step: int, phase: str) -> None:
                super().progress(step, phase)
                if not self.began:
                    self.began = time.perf_counter()

            def report(self, step: int, metrics: Any, history: Any) -> bool:
                stopping = super().report(step, metrics, history)
                try:
                    connection.send((time.perf_counter() - self.began, [row["loss"] for row in history]))
                    connection.recv()
                    self.began = time.perf_counter()
                except (BrokenPipeError, EOFError):
                    pass  # the other has done all its blocks
                return stopping

        ray_worker.RunWorker = InTurns  # type: ignore[misc]
        return ray_worker.work(config)

    return loop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="s3://larmor/heads")
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--steps", type=int, default=8, help="steps of a block")
    parser.add_argument("--bare", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="changes to the laptop preset: key=value")
    options = parser.parse_args()
    num_steps = options.blocks * options.steps
    overrides = [f"data.url={options.data}", "cluster.num_workers=1", "critic.steps=1", *options.overrides]
    never = num_steps + 1  # the last step is always validated, after the last block
    overrides += [f"training.num_steps={num_steps + 1}", f"training.log_every={options.steps}"]
    overrides += [f"training.{name}_every={never}" for name in ("validate", "checkpoint")]
    if options.bare:
        bare_process(options.bare, overrides, options.blocks, options.steps)
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from larmor.cluster.launch.run import claimed
    from larmor.cluster.on_ray import ray_train
    from larmor.cluster.on_ray.ray_cluster import connected
    from larmor.cluster.runs.run_folder import RunFolder

    with tempfile.TemporaryDirectory(prefix="lrm-") as folder:
        address = f"{folder}/turns"
        experiment = load_sweep_experiment("laptop", [*overrides, f"output_url={folder}/output"]).training_part()
        command = [sys.executable, __file__, "--bare", address, "--blocks", str(options.blocks)]
        command += ["--steps", str(options.steps), "--data", options.data, *options.overrides]
        bare = subprocess.Popen(command)
        while not Path(address).exists():  # its loader and networks are ready
            assert bare.poll() is None
            time.sleep(0.1)
        ray_train.train_loop_per_worker = larmor_worker(address)
        run = RunFolder(experiment.run_url)
        try:
            with connected(None), claimed(experiment, run, False, print):
                ray_train.train_on_ray(experiment, run)
            bare.wait()
        finally:
            bare.kill()


if __name__ == "__main__":
    main()
