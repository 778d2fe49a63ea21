"""What ranks tell each other: values, votes, and an error of one that is everybody's."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed
import torch.multiprocessing

from larmor.cluster.worker.ranks import Ranks
from larmor.storage.objects.errors import InputError


def raising(error: Exception) -> Callable[[], Any]:
    def act() -> Any:
        raise error

    return act


class TestAlone:
    def test_it_is_rank_0_of_1(self) -> None:
        ranks = Ranks()
        assert (ranks.rank, ranks.world_size) == (0, 1)
        assert ranks.gather("value") == ["value"]

    def test_its_votes_are_known_at_once(self) -> None:
        ranks = Ranks()
        assert ranks.vote(True) == [True, False]
        assert ranks.vote(False, True) == [False, True]
        ranks.forget_votes()
        assert ranks.vote(False) == [False, False]

    def test_rank_0_acts_and_its_error_is_raised(self) -> None:
        ranks = Ranks()
        assert ranks.on_rank_0(lambda: 7) == 7
        with pytest.raises(InputError, match=r"^a bad value$"):
            ranks.on_rank_0(raising(InputError("a bad value")))
        cause = TypeError("a mistake")
        with pytest.raises(RuntimeError, match=r"^rank 0: TypeError: a mistake$") as caught:
            ranks.on_rank_0(raising(cause))
        assert caught.value.__cause__ is cause


def two_ranks(rank: int, rendezvous: str, results: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)

    def said(act: Callable[[], Any]) -> Any:
        try:
            return act()
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    with contextlib.closing(Ranks()) as ranks:
        acted: list[int] = []
        found = {
            "gathered": ranks.gather(10 * ranks.rank),
            "of rank 0": ranks.on_rank_0(lambda: acted.append(ranks.rank) or ranks.rank),  # type: ignore[func-returns-value]
            "error of rank 0": said(lambda: ranks.on_rank_0(raising(InputError("only here")))),
            "both": said(lambda: ranks.agree(TypeError(f"of {rank}"))),
            "last": said(lambda: ranks.agree(KeyError("x") if rank == 1 else None)),
            "nobody": said(lambda: ranks.agree(None)),
            "votes": [ranks.vote(rank == 1, rank == 1), ranks.vote(False, True), ranks.vote(True, True)],
        }
        assert len(acted) == (rank == 0)
        ranks.forget_votes()
        found["after a run"] = [ranks.vote(False), ranks.vote(False)]
    ranks.close()  # a second time changes nothing
    found["gathered at the end"] = ranks.gather(rank)
    Path(f"{results}-{rank}").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def test_two_ranks_see_the_same(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(two_ranks, (str(tmp_path / "rendezvous"), str(tmp_path / "found")), nprocs=2)
    first, second = (json.loads((tmp_path / f"found-{rank}").read_text()) for rank in range(2))
    assert first == second
    assert first == {
        "gathered": [0, 10],
        "of rank 0": 0,
        "error of rank 0": "InputError: only here",
        "both": "RuntimeError: rank 0: TypeError: of 0",
        "last": "RuntimeError: rank 1: KeyError: 'x'",
        "nobody": None,
        # one call later; a question of another rank than 0 is none
        "votes": [[False, False], [True, False], [False, True]],
        "after a run": [[False, False], [False, False]],
        "gathered at the end": [0, 1],  # by the group of all ranks, which is not this object's to close
    }
