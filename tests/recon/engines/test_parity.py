"""Training through the engines equals single-process plain PyTorch, number for number.

`parity_program.py` runs once as one rank and once as two, over all combinations; the cases here read
what it wrote.
"""

import ast
import functools
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from larmor.recon.engines.build import build_engine
from larmor.recon.engines.engine import EngineSettings
from larmor.recon.recipe.settings import OptimizerConfig
from larmor.storage.objects.errors import InputError
from tests.recon.engines.parity_program import (
    BFLOAT16,
    BFLOAT16_NORM,
    CLIP,
    CRITICS,
    INITIAL,
    MICRO_BATCH,
    MISTAKES,
    PARITY,
    SAVE_AT,
    Case,
    networks,
    reference,
)

ROOT = Path(__file__).resolve().parents[3]
TOLERANCE = 1e-6
WORLD_SIZES = [1, 2]


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """{world size: folder with the results of all cases}. Both worlds run side by side."""
    folders = {world_size: tmp_path_factory.mktemp(f"parity{world_size}") for world_size in WORLD_SIZES}
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "DS_ACCELERATOR"):
        environment.pop(name, None)
    processes = []
    for world_size, folder in folders.items():
        for rank in range(world_size):
            command = [sys.executable, str(Path(__file__).with_name("parity_program.py"))]
            command += [str(rank), str(world_size), str(folder)]
            with (folder / f"log{rank}.txt").open("w") as log:
                processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    try:
        statuses = [process.wait(timeout=500) for process in processes]
    finally:
        for process in processes:
            process.kill()
    logs = [log.read_text()[-3000:] for folder in folders.values() for log in sorted(folder.glob("log*.txt"))]
    assert not any(statuses), "\n".join(logs)
    return folders


def read(results: dict[int, Path], case: Case, world_size: int) -> dict[str, Any]:
    """Rank 0's result, after checking that all ranks ended with the same weights."""
    ranks = [torch.load(results[world_size] / f"{case.name}.rank{rank}.pt") for rank in range(world_size)]
    for rank in ranks:
        assert "error" not in rank, rank.get("error")
        assert max(difference(rank, ranks[0]).values()) == 0
    return ranks[0]


def expected(case: Case, world_size: int) -> dict[str, Any]:
    global_batch = MICRO_BATCH * world_size * case.accumulation
    return cached_reference(global_batch, case.critic_steps, case.optimizer, case.critics, case.norm)


@functools.cache
def cached_reference(
    global_batch: int, critic_steps: int, optimizer: str, critics: int = 1, norm: float | None = None
) -> dict[str, Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run = reference(global_batch, critic_steps, optimizer, critics, norm)
    torch.set_num_threads(threads)
    return run


def difference(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """Largest absolute difference of the losses and of each network's weights."""
    found = {"losses": float((ours["losses"] - theirs["losses"]).abs().max())}
    for network in ("generator", *CRITICS):
        if network not in ours and network not in theirs:
            continue
        assert ours[network].keys() == theirs[network].keys()
        found[network] = max(float((ours[network][name] - theirs[network][name]).abs().max()) for name in ours[network])
    return found


def by_name(case: Case) -> str:
    return case.name


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("case", PARITY, ids=by_name)
def test_engines_equal_plain_pytorch(results: dict[int, Path], case: Case, world_size: int) -> None:
    found = difference(read(results, case, world_size), expected(case, world_size))
    assert max(found.values()) <= TOLERANCE * case.critics, found  # a loss adds up the scores of each


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("case", [case for case in PARITY + BFLOAT16 if case.resume], ids=by_name)
def test_resuming_continues_bit_for_bit(results: dict[int, Path], case: Case, world_size: int) -> None:
    whole = read(results, case, world_size)
    resumed = whole["resumed"]
    assert len(resumed["losses"]) == case.num_steps - SAVE_AT
    found = difference(whole | {"losses": whole["losses"][SAVE_AT:]}, resumed)
    assert found == dict.fromkeys(("losses", "generator", *CRITICS[: case.critics]), 0.0)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("case", INITIAL, ids=by_name)
def test_weights_of_others_are_taken_exactly(results: dict[int, Path], case: Case, world_size: int) -> None:
    for rank in range(world_size):
        result = torch.load(results[world_size] / f"initial-{case.name}.rank{rank}.pt")
        for network, given in result["given"].items():
            for name, weight in given.items():
                assert torch.equal(result["found"][network][name], weight), f"{network}: {name}"
        if case.dtype == "float32":  # in bfloat16 the masters of engines that are built with weights are rounded
            assert max(difference(result["set"], result["built"]).values()) == 0


@pytest.mark.parametrize("case", MISTAKES, ids=by_name)
def test_the_comparison_notices_mistakes(results: dict[int, Path], case: Case) -> None:
    """A negative control: training of a plausible but wrong kind is far outside the tolerance."""
    found = difference(read(results, case, 1), expected(case, 1))
    assert min(found.values()) > 10 * TOLERANCE, found


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("case", BFLOAT16, ids=by_name)
def test_bfloat16_clips_masters_exactly(results: dict[int, Path], case: Case, world_size: int) -> None:
    result = read(results, case, world_size)
    masters, working = result["extremes"].max(dim=0).values
    assert len(result["extremes"]) == case.num_steps
    # The clamp is to the float32 nearest to the constant, and some weight does reach it …
    assert masters == torch.tensor(CLIP)
    # … which bfloat16 cannot hold: 0.01 reads back as 0.010009765625.
    assert working <= torch.tensor(CLIP).bfloat16().float()


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("case", BFLOAT16, ids=by_name)
def test_bfloat16_stays_near_float32(results: dict[int, Path], case: Case, world_size: int) -> None:
    ours, theirs = read(results, case, world_size)["losses"], expected(case, world_size)["losses"][: case.num_steps]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.03)  # bfloat16 has 8 bits; the losses are about 1


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("case", BFLOAT16_NORM, ids=by_name)
def test_bfloat16_clips_the_whole_gradients_norm(results: dict[int, Path], case: Case, world_size: int) -> None:
    """The weights move as those of float32 with the same limit do, and not as without one."""
    start, ours = networks()[0].state_dict(), read(results, case, world_size)["generator"]
    # DeepSpeed makes its float32 masters of the weights that it has lowered
    lowered = {name: weight.bfloat16().float() for name, weight in start.items()}
    moved = _moves(lowered if case.backend == "deepspeed" else start, ours)
    limited = _moves(start, expected(case, world_size)["generator"])
    free = _moves(start, expected(replace(case, norm=None), world_size)["generator"])
    assert float((moved - limited).norm()) < 0.1 * float(limited.norm())
    assert float((free - limited).norm()) > float(limited.norm())


def _moves(start: dict[str, torch.Tensor], end: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([(end[name] - start[name]).reshape(-1) for name in start])


@pytest.mark.parametrize("run", ["plain0", "deepspeed0", "deepspeed1", "deepspeed2", "deepspeed3"])
def test_bfloat16_with_layers_that_keep_buffers(results: dict[int, Path], run: str) -> None:
    states = torch.load(results[1] / f"mixed-{run}.pt")
    before, after = states["before"], states["after"]
    for name, tensor in after.items():
        assert tensor.dtype == torch.float32, name
        assert not torch.equal(tensor, before[name]), f"{name} did not change"


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_checkpoints_that_do_not_fit_are_refused(results: dict[int, Path], world_size: int) -> None:
    for rank in range(world_size):
        messages = torch.load(results[world_size] / f"refusals.rank{rank}.pt")
        assert len(messages) == 2 + 2 * world_size, "each part is missing once and cut short once"
        for what, message in messages.items():
            assert message.startswith("refused: "), (what, message)
            file, _, damage = what.partition(" ")
            expected = {"without": f"lacks {file}", "cut short": f"{file}: is damaged", "network": "of another network"}
            assert (expected.get(damage, "holds no state") if world_size > 1 or damage != "without" else "") in message


def test_plain_engine_refuses_partitioning() -> None:
    with pytest.raises(InputError, match="zero_stage is 2 but the plain engine partitions nothing: use zero_stage 0"):
        build_engine(nn.Linear(1, 1), OptimizerConfig(), EngineSettings(1, zero_stage=2), "cpu", backend="plain")


@pytest.mark.parametrize(
    "wrong",
    [{"micro_batch_size": 0}, {"gradient_accumulation": 0}, {"zero_stage": 4}, {"dtype": "float16"}],
)
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    (name, value), *_ = wrong.items()
    with pytest.raises(InputError, match=f"{name} is {value!r}"):
        EngineSettings(**({"micro_batch_size": 1} | wrong))


def test_unknown_backend_is_refused() -> None:
    with pytest.raises(InputError, match="use deepspeed, plain or auto"):
        build_engine(nn.Linear(1, 1), OptimizerConfig(), EngineSettings(1), "cpu", backend="fsdp")  # type: ignore[arg-type]


def test_several_ranks_need_a_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.distributed.is_initialized():  # by the single-rank engines of other tests
        torch.distributed.destroy_process_group()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="WORLD_SIZE is 2 but there is no process group"):
        build_engine(nn.Linear(1, 1), OptimizerConfig(), EngineSettings(1), "cpu", backend="plain")


def test_deepspeed_is_imported_in_one_file_and_only_inside_functions() -> None:
    for path in sorted((ROOT / "recon").rglob("*.py")):
        tree = ast.parse(path.read_text())
        everywhere = {node for node in ast.walk(tree) if imports_deepspeed(node)}
        inside = {
            node
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef)
            for node in ast.walk(function)
            if imports_deepspeed(node)
        }
        assert everywhere == inside, path.name
        assert not everywhere or path.name == "deepspeed_engine.py"


def imports_deepspeed(node: ast.AST) -> bool:
    if isinstance(node, ast.Import):
        return any(alias.name.split(".")[0] == "deepspeed" for alias in node.names)
    return isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "deepspeed"
