"""What all ranks decide together at every step, at next to no cost."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

_PATIENCE = timedelta(seconds=10)  # for the last exchange, which is over as soon as all ranks have come by it


class Agreement:
    """Ranks vote at every step; all see at the next one whether any of them was in favour.

    The exchange, a few bytes in a CPU group of its own, runs beside the step between two calls: nobody waits for it.
    Every rank makes and calls it alike, and closes it at the end.
    """

    def __init__(self, world_size: int, num_questions: int) -> None:
        self._group: Any = None
        if world_size > 1:  # whoever is late is the watchdog's affair, not this group's
            self._group = dist.new_group(backend="gloo", timeout=timedelta(days=1))
        self._votes = torch.zeros(num_questions, dtype=torch.int32)
        self._exchange: Any = None

    def vote(self, *questions: bool) -> list[bool]:
        """This rank's votes; returns, for each question, whether any rank voted for it one call before.

        A single rank knows at once.
        """
        if self._group is None:
            return list(questions)
        answers = self._answers()
        self._votes = torch.tensor(questions, dtype=torch.int32)
        self._exchange = dist.all_reduce(self._votes, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        return answers

    def _answers(self) -> list[bool]:
        if self._exchange is not None:
            self._exchange.wait()
        return [bool(vote) for vote in self._votes.tolist()]

    def forget(self) -> None:
        """The votes so far are nobody's concern any more: the next call finds none. Waits for the last of them."""
        self._answers()
        self._votes, self._exchange = torch.zeros_like(self._votes), None

    def close(self) -> None:
        """Give the group's threads and connections back. A process that makes many groups would run out of them.

        If a rank is gone the group is left as it is: to end it would mean to wait for that rank.
        """
        group, exchange = self._group, self._exchange
        self._group = self._exchange = None
        if group is None:
            return
        if exchange is not None:
            try:
                exchange.wait(_PATIENCE)
            except RuntimeError:
                return
        dist.destroy_process_group(group)
