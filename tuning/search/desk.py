"""Where trials and slots meet: trials wait here for a free slot, slots for work. An actor of Ray; no Ray in here.

A *trial* is Ray Tune's side of one point of the search: it needs no resources and imports little. A *slot* is a group
of warm worker processes that trains one trial after another (`slot.py`). All methods run in one event loop.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from larmor.tuning.search.records import Figures, Parameters, State

POLL_SECONDS = 5.0  # how long a free slot waits before its ranks meet again: far less than any collective's time-out
DECISION_SECONDS = 60.0  # how long a slot waits for Tune to judge a report before it trains on


Heard = Mapping[str, float | str | bool]
"""What Tune hears of a trial: `trial` (id), `step` and figures by name; with `done` also `state` and `reason`."""


@dataclass(frozen=True)
class Job:
    """A trial for a slot to train."""

    trial: str
    parameters: Parameters


@dataclass(frozen=True)
class Outcome:
    """How a trial ended, for Tune. Without `metrics` the sampler counts it as the worst."""

    state: State
    reason: str = ""
    step: int | None = None
    metrics: Figures = field(default_factory=dict)

    def heard(self) -> Heard:
        step = {} if self.step is None else {"step": self.step}
        reason = {"reason": self.reason} if self.reason else {}
        return {"state": self.state, **reason, **step, **self.metrics, "done": True}


@dataclass(frozen=True)
class Failure:
    """A trial that failed without a record of its own."""

    parameters: Parameters
    reason: str


@dataclass
class _Ticket:
    """A trial that waits at the desk, is held by a slot, or has ended."""

    id: str
    parameters: Parameters
    results: asyncio.Queue[Heard] = field(default_factory=asyncio.Queue)
    judged: asyncio.Event = field(default_factory=asyncio.Event)
    stop_reason: str | None = None
    attempts: int = 0
    outcome: Outcome | None = None


class Desk:
    """`unfinished`: id → parameters of trials that an earlier call began; they keep their ids and their checkpoints.

    A trial whose slot dies goes back to the head of the queue, `max_attempts` times in all.
    """

    def __init__(self, unfinished: Mapping[str, Parameters], next_number: int, max_attempts: int) -> None:
        self._unfinished = {id: _canonical(parameters) for id, parameters in unfinished.items()}
        self._next_number, self._max_attempts = next_number, max_attempts
        self._trials: dict[str, _Ticket] = {}  # by Tune's id
        self._waiting: deque[_Ticket] = deque()
        self._work = asyncio.Event()
        self._held: dict[str, _Ticket] = {}  # by slot
        self._closed = False
        self._no_slots: str | None = None  # why

    # what trials call

    async def begin(self, tune_id: str, parameters: Parameters) -> None:
        """Queue a trial. Called again by a trial whose process was replaced, it changes nothing."""
        if tune_id not in self._trials:
            trial = _Ticket(self._id_for(parameters), parameters)
            self._trials[tune_id] = trial
            self._waiting.append(trial)
            self._work.set()
            if self._no_slots:
                await self.give_up(self._no_slots)

    async def next_result(self, tune_id: str) -> Heard:
        """The next report of a trial, with its id, or with `done` its end; asking for it lets the trial train on."""
        trial = self._trials[tune_id]
        trial.judged.set()
        return {**await trial.results.get(), "trial": trial.id}

    async def stop(self, tune_id: str, reason: str) -> None:
        """Tune's scheduler ends the trial."""
        trial = self._trials[tune_id]
        trial.stop_reason = reason
        trial.judged.set()

    async def go_on(self, id: str, parameters: Parameters) -> None:
        """The next trial with these parameters is that with this id, which was stopped before."""
        self._unfinished[id] = _canonical(parameters)

    # what slots call

    async def take(self, slot: str) -> Job | Literal["wait"] | None:
        """The next trial for a free slot, "wait" if there is none yet, None if there will be none.

        A slot that still holds a trial has died and come back: the trial was lost.
        """
        await self.lost(slot, "its workers were restarted")
        if self._next() is None and not self._closed:
            self._work.clear()
            try:
                await asyncio.wait_for(self._work.wait(), POLL_SECONDS)
            except TimeoutError:
                return "wait"
        trial = self._next()
        if trial is None:
            return None if self._closed else "wait"
        self._waiting.remove(trial)
        trial.attempts += 1
        self._held[slot] = trial
        return Job(trial.id, dict(trial.parameters))

    async def report(self, slot: str, figures: Figures) -> str | None:
        """Pass a report to Tune; returns why the trial must stop, or None once it may train on."""
        trial = self._held[slot]
        if trial.stop_reason:  # its slot died before it was saved
            return trial.stop_reason
        trial.judged.clear()
        trial.results.put_nowait(dict(figures))
        try:
            await asyncio.wait_for(trial.judged.wait(), DECISION_SECONDS)
        except TimeoutError:
            return None  # a trial's process is being replaced; the next report will be judged
        return trial.stop_reason

    async def end(self, slot: str, outcome: Outcome) -> None:
        """The slot's trial has ended and its record is written; the slot is free."""
        _finish(self._held.pop(slot), outcome)
        self._work.set()

    async def give_back(self, slot: str) -> None:
        """The slot's machine is taken away and its trial is saved: that is no failed attempt."""
        trial = self._held.pop(slot)
        trial.attempts -= 1
        self._waiting.appendleft(trial)
        self._work.set()

    async def fail(self, slot: str, reason: str) -> None:
        """The slot's trial cannot be trained, and its workers must be started again."""
        _finish(self._held[slot], Outcome("failed", reason))

    async def evict(self, slot: str, reason: str) -> None:
        """The sweep is not this one's any more."""
        self._held.pop(slot, None)
        await self.give_up(reason)

    async def lost(self, slot: str, reason: str) -> None:
        """The slot's workers died: another slot, or this one when it is back, resumes its trial."""
        trial = self._held.pop(slot, None)
        if trial is None or trial.outcome is not None:
            return
        if trial.attempts >= self._max_attempts:
            _finish(trial, Outcome("failed", f"its workers died {trial.attempts} times: {reason}"))
        else:
            self._waiting.appendleft(trial)
            self._work.set()

    # what the sweep calls

    async def give_up(self, reason: str) -> None:
        """There is no slot any more: every trial that has not ended fails."""
        self._closed, self._no_slots = True, reason
        for trial in self._trials.values():
            _finish(trial, Outcome("failed", reason))

    async def close(self) -> dict[str, Failure]:
        """Wait until no slot holds or owes a trial, then send the slots home. The trials that failed here, by id."""
        while self._held or any(trial.stop_reason and trial.outcome is None for trial in self._waiting):
            await asyncio.sleep(0.05)
        self._closed = True
        self._work.set()
        return {
            trial.id: Failure(dict(trial.parameters), trial.outcome.reason)
            for trial in self._trials.values()
            if trial.outcome is not None and trial.outcome.state == "failed"
        }

    def _next(self) -> _Ticket | None:
        """The trial for the next free slot. The previous slot of one that is resumed may still be saving it."""
        held = {trial.id for trial in self._held.values()}
        return next((trial for trial in self._waiting if trial.outcome is None and trial.id not in held), None)

    def _id_for(self, parameters: Parameters) -> str:
        wanted = _canonical(parameters)
        for id, known in self._unfinished.items():
            if known == wanted:
                del self._unfinished[id]
                return id
        self._next_number += 1
        return f"{self._next_number - 1:04d}"


def _finish(trial: _Ticket, outcome: Outcome) -> None:
    if trial.outcome is not None:
        return  # the first word counts
    trial.outcome = outcome
    trial.results.put_nowait(outcome.heard())
    trial.judged.set()


def _canonical(parameters: Parameters) -> str:
    return json.dumps(dict(parameters), sort_keys=True)
