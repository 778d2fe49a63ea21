"""What a person sees while something runs: bars on a terminal, plain lines in a log."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int | None], None]]:
    """A callback (description, done, total) that draws one bar per description; silent where there is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks: dict[str, int] = {}

        def show(description: str, done: int, total: int | None) -> None:
            if description not in tasks:
                tasks[description] = bars.add_task(description, total=total)
            bars.update(tasks[description], completed=done, total=total)  # type: ignore[arg-type]

        yield show


@contextlib.contextmanager
def training_progress(num_steps: int) -> Iterator[Callable[[Mapping[str, float]], None]]:
    """A callback that takes history rows: a bar with the newest losses, and a line at each validation."""
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        task = bars.add_task("training", total=num_steps, figures="starting the workers")

        def show(row: Mapping[str, float]) -> None:
            step = int(row["step"])
            bars.update(task, completed=step, figures=_losses(row, " · "))
            if "val/psnr" in row or ("slices_per_second" in row and not console.is_terminal):
                console.print(describe_row(row, num_steps))

        yield show


def describe_row(row: Mapping[str, float], num_steps: int) -> str:
    """One line about one step."""
    text = f"step {int(row['step']):>6}/{num_steps}  {_losses(row, '  ')}"
    if "slices_per_second" in row:
        text += f"  {row['slices_per_second']:.1f} slices/s  {row['bytes_per_second'] / 1e6:.1f} MB/s"
        text += f"  waiting for data {row['waiting_share']:.0%}"
    if "val/psnr" in row:
        text += f"  validation: PSNR {row['val/psnr']:.2f} dB, SSIM {row['val/ssim']:.4f} (preset paper)"
    return text


def _losses(row: Mapping[str, float], between: str) -> str:
    critic = f"{between}critic {row['critic_loss']:+.5f}" if "critic_loss" in row else ""
    return f"loss {row['loss']:.4f}{critic}"
