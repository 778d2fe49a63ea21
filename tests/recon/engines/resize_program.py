"""Trains the parity test's GAN on one number of ranks, and goes on with another.

    python resize_program.py FOLDER few|all

Every world is a group of forked processes, so that DeepSpeed is imported once. `FOLDER` then holds
`<case>-<from>` (checkpoints), `<case>-<from>-<to>` (saved again right after loading them), and
`<case>-<from>-<to>.pt` (the losses of the steps that followed, and the weights at the end).
"""

import os
import shutil
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent))
from parity_program import SAVE_AT, Case, Trainer

GLOBAL_BATCH = 12
SIZES = [(2, 1), (1, 2), (2, 3)]  # from → to
FEW = [
    Case(0, 2, 2),
    Case(1, 2, 2, "adam"),
    Case(2, 2, 2),
    Case(3, 2, 2),
    Case(1, 2, 2, dtype="bfloat16"),
    Case(0, 2, 2, backend="plain"),
]
ALL = [
    *(Case(stage, 2, 2, optimizer) for stage in (0, 1, 2, 3) for optimizer in ("rmsprop", "adam")),
    *(Case(stage, 2, 2, dtype="bfloat16") for stage in (0, 1, 2, 3)),
    Case(0, 2, 2, backend="plain"),
]
# a checkpoint belongs to no stage and no backend either
CROSSED = [(Case(2, 2, 2), Case(3, 2, 2)), (Case(3, 2, 2), Case(0, 2, 2, backend="plain"))]


def trainer(case: Case, rank: int, world_size: int, seed: int = 0) -> Trainer:
    return Trainer(case, rank, world_size, seed, GLOBAL_BATCH // world_size // case.accumulation)


def train_and_save(case: Case, rank: int, world_size: int, folder: Path) -> None:
    run = trainer(case, rank, world_size)
    run.train(0, SAVE_AT)
    run.save(folder / f"{case.name}-{world_size}")
    if dist.is_initialized():
        dist.barrier()


def load_and_train(case: Case, source: Case, before: int, rank: int, world_size: int, folder: Path) -> None:
    name = (
        f"{case.name}-{before}-{world_size}" if case == source else f"{source.name}-{case.name}-{before}-{world_size}"
    )
    run = trainer(case, rank, world_size, seed=99)
    run.load(folder / f"{source.name}-{before}")
    run.save(folder / name)
    run.train(SAVE_AT, case.num_steps)
    result = run.result()
    if rank == 0:
        torch.save(result, folder / f"{name}.pt")


def world(number: int, world_size: int, saving: bool, cases: list[Case], folder: Path) -> None:
    """All cases on one number of ranks: start a process for each rank and wait for them."""
    children = []
    for rank in range(world_size):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                one_rank(f"file://{folder}/rendezvous{number}", rank, world_size, saving, cases, folder)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(status)
        children.append(child)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(statuses):
        raise SystemExit(f"{world_size} ranks ended with {statuses}")


def one_rank(rendezvous: str, rank: int, world_size: int, saving: bool, cases: list[Case], folder: Path) -> None:
    if world_size > 1:
        dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world_size)
    for case in sorted(cases, key=lambda case: case.backend, reverse=True):
        if saving:
            train_and_save(case, rank, world_size, folder)
            continue
        for before, after in SIZES:
            if world_size == after:
                load_and_train(case, case, before, rank, world_size, folder)
    for source, case in CROSSED if not saving and world_size == 3 else []:
        load_and_train(case, source, 2, rank, world_size, folder)


def main(folder: Path, cases: list[Case]) -> None:
    torch.set_num_threads(1)
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed  # noqa: F401  before the forks

    import larmor.recon.engines.plain_engine  # noqa: F401

    for number, (world_size, saving) in enumerate([(1, True), (2, True), (1, False), (2, False), (3, False)]):
        world(number, world_size, saving, cases, folder)


if __name__ == "__main__":
    shutil.rmtree(sys.argv[1], ignore_errors=True)
    Path(sys.argv[1]).mkdir(parents=True)
    main(Path(sys.argv[1]), ALL if sys.argv[2] == "all" else FEW)
