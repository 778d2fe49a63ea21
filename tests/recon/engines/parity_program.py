"""One rank of the parity test: trains a tiny GAN through Larmor's engines in every combination.

    python parity_program.py RANK WORLD_SIZE FOLDER

`FOLDER` is shared by the ranks; results go to `FOLDER/<case>.rank<RANK>.pt`. `reference` is what
they must equal: one process, plain PyTorch, written without any of Larmor's training code.
"""

import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

Backend = Literal["deepspeed", "plain", "auto"]  # as the engines have them, which are imported where they are used
Precision = Literal["float32", "bfloat16"]

CLIP = 0.01
GAIN = 15.0
NORM = 0.5  # of the gradient, whose own norm is 3 or more in both networks
NUM_STEPS = 20
SEED_OF_OTHERS = 7
SAVE_AT = 7
NEW_RATES_AT = 5  # so that the learning rate, too, has to survive a resume
MICRO_BATCH = 2
IMAGE_WEIGHT, FREQUENCY_WEIGHT = 1.5, 0.1  # a and b of the paper's eq. (9), a small enough for D to matter


@dataclass(frozen=True)
class Case:
    """One combination. `variant` names a deliberate mistake; the test has to notice it."""

    zero_stage: int = 0
    accumulation: int = 1
    critic_steps: int = 1
    optimizer: str = "rmsprop"
    backend: Backend = "deepspeed"
    dtype: Precision = "float32"
    resume: bool = False
    critics: int = 1
    norm: float | None = None
    variant: str = "right"

    @property
    def num_steps(self) -> int:
        return NUM_STEPS if self.dtype == "float32" or self.norm else NUM_STEPS // 2

    @property
    def name(self) -> str:
        kind = "" if self.variant == "right" else f"-{self.variant}"
        return (
            f"{self.backend}-{self.dtype}-zero{self.zero_stage}-accumulation{self.accumulation}"
            f"-critic{self.critic_steps}{f'x{self.critics}' if self.critics > 1 else ''}-{self.optimizer}"
            f"{'' if self.norm is None else f'-norm{self.norm:g}'}{kind}"
        )


def matrix(backend: Backend) -> Iterator[Case]:
    for stage in (0, 1, 2, 3) if backend == "deepspeed" else (0,):
        for accumulation in (1, 2):
            for critic_steps in (1, 3):
                resume = accumulation == 2 and critic_steps == 3
                yield Case(stage, accumulation, critic_steps, backend=backend, resume=resume)
        yield Case(stage, accumulation=2, optimizer="adam", backend=backend)
        yield Case(stage, accumulation=2, critic_steps=2, backend=backend, resume=True, critics=2)
        yield Case(stage, accumulation=2, optimizer="adamw", backend=backend, resume=True, norm=NORM)


PARITY = [*matrix("deepspeed"), *matrix("plain")]
_STAGES: list[tuple[Backend, int]] = [
    ("deepspeed", 0),
    ("deepspeed", 1),
    ("deepspeed", 2),
    ("deepspeed", 3),
    ("plain", 0),
]
INITIAL = [
    Case(stage, 2, 1, backend=backend, dtype=dtype) for backend, stage in _STAGES for dtype in ("float32", "bfloat16")
]
BFLOAT16 = [Case(stage, 2, 3, backend=backend, dtype="bfloat16", resume=True) for backend, stage in _STAGES]
BFLOAT16_NORM = [
    Case(stage, accumulation=2, optimizer="adamw", backend=backend, dtype="bfloat16", norm=NORM)
    for backend, stage in _STAGES
]
MISTAKES = [
    Case(1, 2, 3, variant="unfrozen_critic"),
    Case(2, 1, 1, variant="double_clip"),
    Case(1, 1, 1, variant="everything_clipped"),
    Case(1, 2, 1, optimizer="adam", variant="double_gradient"),
    Case(2, 2, 1, optimizer="adam", variant="default_gradient_clipping"),
    Case(2, 2, 1, optimizer="adamw", norm=NORM, variant="any_gradient"),
    Case(1, 2, 2, critics=2, variant="unfrozen_critic"),
]


# ---- networks, data and losses: shared by the engines and by the reference ----


class Generator(nn.Module):
    """(batch, 1, height, width) → the same, as input + network(input). No bias before the norm: its
    gradient is zero but for rounding, which RMSprop would blow up to full steps."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(12, 12, 3, padding=1, bias=False),
            nn.GroupNorm(3, 12),
            nn.SiLU(),
            nn.Conv2d(12, 1, 3, padding=1),
        )

    def forward(self, image: Tensor) -> Tensor:
        return image + self.layers(image)


class Critic(nn.Module):
    """(batch, 1, height, width) → (batch, 1).

    With all weights below 0.01 bare convolutions are almost linear. Then the gradients of a bias for
    real and for fake images cancel to seven digits, and RMSprop blows the rounding that is left up to
    full steps. The gains keep the activations near 1, where the two differ. (A norm would as well, but
    it divides by a small deviation whenever weights pass through zero.) A bias of the last layer would
    cancel altogether. Biases and the learned gain, which stands for the scale of a norm, are not clipped.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.second = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.dense = nn.Linear(16, 1, bias=False)
        self.gain = nn.Parameter(torch.full((8, 1, 1), GAIN))
        for layer in (self.first, self.second):  # small beside the rest, so that rounding of the losses stays small
            nn.init.uniform_(torch.as_tensor(layer.bias), -CLIP, CLIP)

    @property
    def clipped(self) -> list[Tensor]:
        return [self.first.weight, self.second.weight, self.dense.weight]

    def forward(self, image: Tensor) -> Tensor:
        features = nn.functional.silu(self.gain * self.first(image))
        features = nn.functional.silu(GAIN * self.second(features))
        return GAIN * self.dense(features.mean(dim=(2, 3)))


def networks(seed: int = 0, critics: int = 1) -> tuple[Generator, list[Critic]]:
    torch.manual_seed(seed)
    return Generator(), [Critic() for _ in range(critics)]


CRITICS = ["critic", "critic_residual"]


def seen(critic: int, image: Tensor, zero_filled: Tensor) -> Tensor:
    """What a critic sees of an image: the first the image, the second the residual map."""
    return image - zero_filled if critic else image


def images(step: int, draw: int, size: int) -> tuple[Tensor, Tensor]:
    """A global batch (zero_filled, target): a pure function of its arguments."""
    random = torch.Generator().manual_seed(1000 * step + draw)
    target = nn.functional.interpolate(torch.rand(size, 1, 5, 5, generator=random), size=(16, 16), mode="bicubic")
    blurred = nn.functional.avg_pool2d(target, 3, stride=1, padding=1)
    return blurred + 0.05 * torch.randn(target.shape, generator=random), target


def critic_loss(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    return fake_scores.mean() - real_scores.mean()


def generator_loss(target: Tensor, reconstruction: Tensor, fake_scores: Sequence[Tensor]) -> dict[str, Tensor]:
    error = (target - reconstruction).flatten(1).norm(dim=1) / target.flatten(1).norm(dim=1)
    spectra = (torch.fft.fft2(image, norm="ortho").abs() for image in (target, reconstruction))
    frequency = torch.sub(*spectra).square().mean()
    adversarial = -torch.stack([scores.mean() for scores in fake_scores]).sum()
    loss = adversarial + IMAGE_WEIGHT * error.mean() + FREQUENCY_WEIGHT * frequency
    return {"loss": loss, "adversarial": adversarial}


def optimizer_settings(name: str) -> dict[str, Any]:
    """RMSprop with its usual ε; but it and Adam hardly notice gradients that are all too large by one
    factor, so Adam's ε is of the gradients' own size: there a wrong scale shows."""
    if name == "rmsprop":
        return {"name": "rmsprop", "learning_rate": 5e-5, "alpha": 0.99, "epsilon": 1e-8}
    adam = {"name": name, "learning_rate": 1e-4, "beta1": 0.5, "beta2": 0.999, "epsilon": 1.0}
    return adam if name == "adam" else {**adam, "weight_decay": 1.0}


def rates_after(name: str) -> tuple[float, float]:
    """Learning rates of generator and critic from step NEW_RATES_AT on."""
    rate = optimizer_settings(name)["learning_rate"]
    return rate / 2, rate * 2


# ---- the reference ----


def reference(
    global_batch: int, critic_steps: int, optimizer: str, num_critics: int = 1, norm: float | None = None
) -> dict[str, Any]:
    """The run in plain PyTorch: whole global batches, no engine, no accumulation, no ranks."""
    generator, critics = networks(critics=num_critics)
    clip_weights(critics)
    settings = optimizer_settings(optimizer)
    rate, epsilon = settings["learning_rate"], settings["epsilon"]

    def make(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
        if optimizer == "rmsprop":
            return torch.optim.RMSprop(parameters, lr=rate, alpha=settings["alpha"], eps=epsilon)
        kind = torch.optim.Adam if optimizer == "adam" else torch.optim.AdamW
        decay, betas = settings.get("weight_decay", 0.0), (settings["beta1"], settings["beta2"])
        return kind(parameters, lr=rate, betas=betas, eps=epsilon, weight_decay=decay)

    generator_optimizer = make(generator.parameters())
    critic_optimizers = [make(critic.parameters()) for critic in critics]
    losses = []
    for step in range(NUM_STEPS):
        if step == NEW_RATES_AT:
            generator_optimizer.param_groups[0]["lr"], rate = rates_after(optimizer)
            for own in critic_optimizers:
                own.param_groups[0]["lr"] = rate
        row = []
        for draw in range(critic_steps):
            zero_filled, target = images(step, draw, global_batch)
            fake = generator(zero_filled).detach()
            for number, (critic, own) in enumerate(zip(critics, critic_optimizers, strict=True)):
                views = (seen(number, image, zero_filled) for image in (fake, target))
                loss = torch.sub(*(critic(view).mean() for view in views))
                own.zero_grad()
                loss.backward()
                limit_gradient(critic, norm)
                own.step()
                clip_weights([critic])
                row.append(loss.detach())
        zero_filled, target = images(step, critic_steps, global_batch)
        reconstruction = generator(zero_filled)
        scores = [critic(seen(number, reconstruction, zero_filled)) for number, critic in enumerate(critics)]
        terms = generator_loss(target, reconstruction, scores)
        generator_optimizer.zero_grad()
        terms["loss"].backward()
        limit_gradient(generator, norm)
        generator_optimizer.step()
        losses.append(torch.stack([*row, terms["loss"].detach(), terms["adversarial"].detach()]))
    states = {name: critic.state_dict() for name, critic in zip(CRITICS, critics, strict=False)}
    return {"losses": torch.stack(losses).double(), "generator": generator.state_dict(), **states}


@torch.no_grad()
def limit_gradient(network: nn.Module, norm: float | None) -> None:
    """Scale the whole gradient down to L2 norm `norm`, which has to be less than it has."""
    if norm is None:
        return
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    length = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
    assert length > norm, f"a gradient of norm {length:.3g} is not clipped to {norm}"
    for gradient in gradients:
        gradient *= norm / length


@torch.no_grad()
def clip_weights(critics: Sequence[Critic]) -> None:
    for critic in critics:
        for parameter in critic.clipped:
            parameter.clamp_(-CLIP, CLIP)


# ---- the same through Larmor ----


class Trainer:
    """The loop of one case on this rank."""

    def __init__(self, case: Case, rank: int, world_size: int, seed: int = 0, micro_batch: int = MICRO_BATCH) -> None:
        from larmor.recon.engines import deepspeed_engine
        from larmor.recon.engines.build import build_engine
        from larmor.recon.engines.engine import EngineSettings
        from larmor.recon.recipe.settings import OptimizerConfig

        self.case, self.rank, self.world_size, self.micro_batch = case, rank, world_size, micro_batch
        self.losses: list[Tensor] = []
        self.extremes: list[tuple[float, float]] = []
        # All ranks but the first start elsewhere: the engines have to copy the first one's weights.
        generator, critics = networks(seed + 10 * rank, case.critics)
        # ZeRO 3 in float32 partitions every parameter; in bfloat16 all these small ones stay whole, as by default.
        threshold = 0 if case.dtype == "float32" else EngineSettings.persistence_threshold
        settings = EngineSettings(micro_batch, case.accumulation, case.zero_stage, case.dtype, threshold)
        norm = None if case.variant == "any_gradient" else case.norm
        config = OptimizerConfig(**optimizer_settings(case.optimizer), clip_gradient_norm=norm)
        if case.variant == "everything_clipped":
            deepspeed_engine.parameter_groups = lambda module, clip: [{"params": list(module.parameters())}]
        clip = 2 * CLIP if case.variant == "double_clip" else CLIP
        self.generator = build_engine(generator, config, settings, "cpu", backend=case.backend)
        self.critics = [
            build_engine(critic, config, settings, "cpu", clip=clip, backend=case.backend) for critic in critics
        ]

    def train(self, start: int, stop: int) -> None:
        from larmor.recon.training.gan_step import critic_step

        for step in range(start, stop):
            if step == NEW_RATES_AT:
                own, of_critics = rates_after(self.case.optimizer)
                self.generator.set_learning_rate(own)
                for engine in self.critics:
                    engine.set_learning_rate(of_critics)
            row = []
            for draw in range(self.case.critic_steps):
                for number, engine in enumerate(self.critics):
                    terms = [
                        critic_step(
                            self.generator,
                            engine,
                            [zero_filled],
                            seen(number, target, zero_filled),
                            critic_loss,
                            partial(seen, number, zero_filled=zero_filled),
                        )
                        for zero_filled, target in self.micro_batches(step, draw)
                    ]
                    row.append(torch.stack([term["critic_loss"] for term in terms]).mean())
            parts = [self.generator_terms(*pair) for pair in self.micro_batches(step, self.case.critic_steps)]
            self.losses.append(self.mean_over_ranks(torch.stack([*row, *torch.stack(parts).mean(0)]).double()))
            if self.case.dtype == "bfloat16":
                self.extremes.append(largest_weights(self.critics[0], self.case))

    def generator_terms(self, zero_filled: Tensor, target: Tensor) -> Tensor:
        from larmor.recon.training.gan_step import generator_step

        views = [partial(seen, number, zero_filled=zero_filled) for number in range(len(self.critics))]
        critics = list(zip(self.critics, views, strict=True))
        if self.case.variant == "unfrozen_critic":
            reconstruction = self.generator(zero_filled)
            scores = [critic.bare_forward(view(reconstruction)) for critic, view in critics]
            terms = generator_loss(target, reconstruction, scores)
            self.generator.backward(terms["loss"])
            self.generator.step()
        elif self.case.variant == "double_gradient":

            def doubled(reconstruction: Tensor, scores: Sequence[Tensor]) -> dict[str, Tensor]:
                return {name: 2 * term for name, term in generator_loss(target, reconstruction, scores).items()}

            _, terms = generator_step(self.generator, critics, [zero_filled], doubled)
            terms = {name: term / 2 for name, term in terms.items()}
        else:
            objective = partial(generator_loss, target)
            reconstruction, terms = generator_step(self.generator, critics, [zero_filled], objective)
            assert reconstruction.dtype == torch.float32
            assert reconstruction.shape == target.shape
            assert not reconstruction.requires_grad
            assert all(p.requires_grad for critic in self.critics for p in critic.module.parameters())
        return torch.stack([terms["loss"], terms["adversarial"]]).detach()

    def micro_batches(self, step: int, draw: int) -> Iterator[tuple[Tensor, Tensor]]:
        size = self.micro_batch
        zero_filled, target = images(step, draw, size * self.world_size * self.case.accumulation)
        for micro in range(self.case.accumulation):
            first = size * (micro * self.world_size + self.rank)
            yield zero_filled[first : first + size], target[first : first + size]

    def mean_over_ranks(self, values: Tensor) -> Tensor:
        if self.world_size > 1:
            dist.all_reduce(values)
        return values / self.world_size

    @property
    def engines(self) -> dict[str, Any]:
        return {"generator": self.generator, **dict(zip(CRITICS, self.critics, strict=False))}

    def save(self, folder: Path) -> None:
        for name, engine in self.engines.items():
            engine.save(folder / name)

    def load(self, folder: Path) -> None:
        for name, engine in self.engines.items():
            engine.load(folder / name)

    def result(self) -> dict[str, Any]:
        states = {name: engine.state_dict() for name, engine in self.engines.items()}
        return {"losses": torch.stack(self.losses), "extremes": torch.tensor(self.extremes), **states}


def largest_weights(engine: Any, case: Case) -> tuple[float, float]:
    """Of the clipped weights, the largest |float32 master| and |working weight| (DeepSpeed: from ZeRO 1)."""
    if case.zero_stage == 0:
        state = engine.state_dict()
        masters = [float(state[f"{name}.weight"].abs().max()) for name in ("first", "second", "dense")]
        return max(masters), max(float(parameter.detach().abs().max()) for parameter in engine.module.clipped)
    import deepspeed

    masters, working = [], []
    for parameter in engine.module.clipped:
        masters.append(float(deepspeed.utils.safe_get_full_fp32_param(parameter).abs().max()))
        with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            working.append(float(parameter.detach().abs().max()))
    return max(masters), max(working)


def run(case: Case, rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    trainer = Trainer(case, rank, world_size)
    if not case.resume:
        trainer.train(0, case.num_steps)
        return trainer.result()
    trainer.train(0, SAVE_AT)
    checkpoint = folder / f"{case.name}.checkpoint"
    part = folder / f"{case.name}.part{rank}"
    trainer.save(part)
    # Each rank has a directory of its own; they are merged as a cluster's checkpoint storage does.
    barrier(world_size)
    if rank == 0:
        for other in range(world_size):
            shutil.copytree(folder / f"{case.name}.part{other}", checkpoint, dirs_exist_ok=True)
    barrier(world_size)
    trainer.train(SAVE_AT, case.num_steps)
    resumed = Trainer(case, rank, world_size, seed=99)
    resumed.load(checkpoint)
    resumed.train(SAVE_AT, case.num_steps)
    return trainer.result() | {"resumed": resumed.result()}


def refusals(case: Case, rank: int, world_size: int, folder: Path) -> dict[str, str]:
    """What fresh engines say to checkpoints that do not fit: {what is wrong: message}."""
    from larmor.storage.objects.errors import InputError

    complete = folder / f"{case.name}.checkpoint" / "critic"
    damaged: dict[str, Path] = {"empty": folder / "nothing here"}
    for number, file in enumerate(sorted(complete.iterdir())):
        for what in ("without", "cut short"):
            damaged[f"{file.name} {what}"] = copy = folder / f"damaged{number}-{what}.rank{rank}"
            shutil.copytree(complete, copy)
            if what == "without":
                (copy / file.name).unlink()
            else:
                (copy / file.name).write_bytes(file.read_bytes()[:-1])
    damaged["other network"] = complete.parent / "generator"
    messages = {}
    engine = Trainer(case, rank, world_size).critics[0]
    for what, path in damaged.items():
        try:
            engine.load(path)
            messages[what] = "loaded without complaint"
        except InputError as error:
            messages[what] = f"refused: {error}"
    return messages


def mixed_layers(zero_stage: int, backend: Backend) -> dict[str, Any]:
    """bfloat16 training of layers that keep buffers: a network's state before and after two steps."""
    from larmor.recon.engines.build import build_engine
    from larmor.recon.engines.engine import EngineSettings
    from larmor.recon.recipe.settings import OptimizerConfig

    torch.manual_seed(0)
    spectral = torch.nn.utils.parametrizations.spectral_norm
    network = nn.Sequential(spectral(nn.Conv2d(1, 4, 3)))
    settings = EngineSettings(MICRO_BATCH, zero_stage=zero_stage, dtype="bfloat16", persistence_threshold=0)
    engine = build_engine(network, OptimizerConfig(), settings, "cpu", backend=backend)
    states = [engine.state_dict()]
    for step in range(2):
        engine.backward(engine(images(step, 0, MICRO_BATCH)[0]).square().mean())
        engine.step()
    return {"before": states[0], "after": engine.state_dict()}


def initial_weights(case: Case, rank: int, world_size: int) -> dict[str, Any]:
    """Engines that are given the weights of others: these, what the engines hold, and both ways two steps later."""
    from larmor.recon.engines.optimizers import inside

    generator, critics = networks(SEED_OF_OTHERS)
    others = {"generator": generator, CRITICS[0]: critics[0]}
    trainer = Trainer(case, rank, world_size, seed=99)
    for name, engine in trainer.engines.items():
        weights = others[name].state_dict()
        engine.set_weights(weights if name == "generator" else inside(engine.module, weights, CLIP))
    clip_weights(critics)
    found = {name: engine.state_dict() for name, engine in trainer.engines.items()}
    built = Trainer(case, rank, world_size, seed=SEED_OF_OTHERS)
    for each in (trainer, built):
        each.train(0, 2)
    given = {name: network.state_dict() for name, network in others.items()}
    return {"given": given, "found": found, "set": trainer.result(), "built": built.result()}


def barrier(world_size: int) -> None:
    if world_size > 1:
        dist.barrier()


def clipped(derived: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """DeepSpeed's configuration with gradients clipped, as it has them by itself."""
    return derived(*arguments) | {"gradient_clipping": 1.0}


def main(rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    if world_size > 1:  # one rank starts without a process group, as on a bare machine
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    from larmor.recon.engines import deepspeed_engine

    # The plain engine first, before DeepSpeed has made the process group that a single rank lacks.
    cases = sorted(PARITY + BFLOAT16 + BFLOAT16_NORM, key=lambda case: case.backend, reverse=True)
    for case in cases + (MISTAKES if world_size == 1 else []):
        derived, groups = (
            deepspeed_engine.deepspeed_config,
            deepspeed_engine.parameter_groups,
        )
        if case.variant == "default_gradient_clipping":
            deepspeed_engine.deepspeed_config = partial(clipped, derived)
        try:
            result = run(case, rank, world_size, folder)
        except Exception:  # the test of this case shows it; the other cases go on
            result = {"error": traceback.format_exc()}
        (
            deepspeed_engine.deepspeed_config,
            deepspeed_engine.parameter_groups,
        ) = derived, groups
        torch.save(result, folder / f"{case.name}.rank{rank}.pt")
    for case in INITIAL:
        torch.save(initial_weights(case, rank, world_size), folder / f"initial-{case.name}.rank{rank}.pt")
    torch.save(refusals(Case(2, 2, 3), rank, world_size, folder), folder / f"refusals.rank{rank}.pt")
    if world_size == 1:
        for backend, stage in _STAGES:
            torch.save(mixed_layers(stage, backend), folder / f"mixed-{backend}{stage}.pt")
    if dist.is_initialized():
        barrier(world_size)
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
