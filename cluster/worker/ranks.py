"""The ranks that train together, and what they tell each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed

from larmor.cluster.worker.agreement import Agreement
from larmor.storage.objects.errors import InputError

T = TypeVar("T")


class Ranks:
    """This process among the others of an initialised `torch.distributed` group, or alone without one.

    Every method is called by all ranks, in the same order. A process that trains several runs keeps one `Ranks` for all
    of them, and closes it at the end.
    """

    def __init__(self) -> None:
        grouped = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.rank = torch.distributed.get_rank() if grouped else 0
        self.world_size = torch.distributed.get_world_size() if grouped else 1
        self._agreement = Agreement(self.world_size, num_questions=2)

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in rank order, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value)
        return values

    def vote(self, stop: bool, question: bool = False) -> list[bool]:
        """Whether any rank voted to `stop`, and whether rank 0 has a `question` for all of them.

        Several ranks see the votes of the call before (see `Agreement`).
        """
        return self._agreement.vote(stop, question and self.rank == 0)

    def forget_votes(self) -> None:
        """A run begins: the last votes of the run before do not concern it."""
        self._agreement.forget()

    def on_rank_0(self, act: Callable[[], T]) -> T:
        """What `act` returns on rank 0, on every rank; or its error, as `agree` raises it."""
        value, failure = None, None
        if self.rank == 0:
            try:
                value = act()
            except Exception as error:
                failure = error
        self.agree(failure)
        return self.gather(value)[0]

    def agree(self, failure: Exception | None) -> None:
        """If a rank has an error, the lowest such rank's is raised on all of them.

        An `InputError` as it is, any other as a `RuntimeError` that names the rank.
        """
        portable = failure
        if failure is not None and not isinstance(failure, InputError):
            portable = RuntimeError(f"rank {self.rank}: {type(failure).__name__}: {failure}")
        for error in self.gather(portable):
            if error is not None:
                raise error from failure

    def close(self) -> None:
        """Give threads and connections back. Returns within seconds if other ranks are gone."""
        self._agreement.close()
