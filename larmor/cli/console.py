"""What a person sees while something runs: bars on a terminal, plain lines in a log."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from larmor.recon.recipe.critic_role import CRITICS
from larmor.recon.recipe.metric import brief_figures
from larmor.recon.training.silent_critic import SilentCritic
from larmor.storage.objects.progress import Progress

if TYPE_CHECKING:
    from larmor.recon.evaluation.simulated_heads import SimulatedHead

console = Console(highlight=False, soft_wrap=True)
TIME_SHARES = ("compute", "communication", "data", "validation", "checkpoint", "report")
GRADIENT_SHARES = {
    **{f"share/adversarial{suffix}": name for suffix, name in CRITICS.items()},
    "share/content": "content",
    "share/frequency": "frequency",
}
errors = Console(stderr=True, highlight=False, soft_wrap=True)


def show_heads(found: Sequence[SimulatedHead]) -> None:
    """A line for each file that was made, and for each head that was left out."""
    for one in found:
        line = f"{one.path}  {one.path.stat().st_size / 1e6:.1f} MB" if one.path else one.problem
        console.print(line, markup=False)


@contextlib.contextmanager
def progress_bar() -> Iterator[Progress]:
    """A callback (description, done, total) that draws one bar per description; silent where there is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks: dict[str, int] = {}

        def show(description: str, done: int, total: int | None) -> None:
            if description not in tasks:
                tasks[description] = bars.add_task(description, total=total)
            bars.update(tasks[description], completed=done, total=total)  # type: ignore[arg-type]

        yield show


@contextlib.contextmanager
def training_progress(num_steps: int) -> Iterator[Callable[[Mapping[str, float]], None]]:
    """A callback that takes reports: a bar with the newest losses, a line at each validation (a log: each report)."""
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task("training", total=num_steps, figures="starting the workers")
        silent = SilentCritic()

        def show(row: Mapping[str, float]) -> None:
            speed = f" · {row['slices_per_second']:.1f} slices/s" if "slices_per_second" in row else ""
            bars.update(task, completed=int(row["step"]), figures=f"{_losses(row, ' · ')}{speed}")
            if "val/psnr" in row or not console.is_terminal:
                console.print(describe_row(row, num_steps))
            if message := silent.add(row):
                console.print(message)

        yield show


def show_facts(facts: Mapping[str, str]) -> None:
    """A line for each fact, the titles in a column of their own."""
    width = max(map(len, facts))
    for title, text in facts.items():
        console.print(f"{title:<{width}}  {text}", markup=False)


def describe_row(row: Mapping[str, float], num_steps: int) -> str:
    """One line about a report: losses, speed, what held the training up, the validation."""
    parts = [f"step {int(row['step']):>6}/{num_steps}", _losses(row, "  ")]
    if validation := brief_figures(row):
        parts.append(f"validation: {validation} (preset paper)")
    if "slices_per_second" in row:
        parts.append(f"{row['slices_per_second']:.1f} slices/s")
    if "compute_share" in row:
        parts.append(f"time: {_shares(row)}")
    if "mfu" in row:
        parts.append(f"MFU {row['mfu']:.0%}")
    if "goodput" in row:
        parts.append(f"goodput {row['goodput']:.0%}")
    return "  ".join(parts)


def _shares(row: Mapping[str, float]) -> str:
    """Where the time since the last report went, largest first; what is below one per cent is left out."""
    shares = {name: row[f"{name}_share"] for name in TIME_SHARES if row[f"{name}_share"] >= 0.005}
    largest_first = sorted(shares.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {share:.0%}" for name, share in largest_first)


def _losses(row: Mapping[str, float], between: str) -> str:
    """The loss; the terms' shares of the gradient at the reconstruction; what the critic says of real and fake."""
    parts = [f"loss {row['loss']:.4f}"]
    shares = [f"{title} {row[key]:.1%}" for key, title in GRADIENT_SHARES.items() if key in row]
    if shares:
        parts.append("gradient " + ", ".join(shares))
    for suffix, name in CRITICS.items():
        if f"score/real{suffix}" in row:
            real, fake = row[f"score/real{suffix}"], row[f"score/fake{suffix}"]
            whose = f"{name}'s scores" if suffix else "scores"
            parts.append(f"{whose} real {real:+.3g}, fake {fake:+.3g}")
    return between.join(parts)
