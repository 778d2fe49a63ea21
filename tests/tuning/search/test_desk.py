"""Trials and slots meet at the desk: every trial ends once, whatever dies, and nobody waits for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from larmor.tuning.search import desk as desk_module
from larmor.tuning.search.desk import Desk, Failure, Heard, Job, Outcome
from larmor.tuning.search.records import State


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk_module, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(desk_module, "DECISION_SECONDS", 0.2)


def run(scene: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scene, 20))


def make_desk(unfinished: Any = None, max_attempts: int = 2) -> Desk:
    return Desk(unfinished or {}, 1, max_attempts)


async def work(desk: Desk, slot: str, num_steps: int = 3) -> list[str]:
    """A slot that trains until it is sent home; the ids of the trials it trained, with how they ended."""
    done = []
    while (job := await desk.take(slot)) is not None:
        if job == "wait":
            continue
        state: State = "finished"
        for step in range(1, num_steps):
            if await desk.report(slot, {"step": step, "val/psnr": job.parameters["a"] + step}):
                state = "stopped"
                break
        await desk.end(slot, Outcome(state, step=step, metrics={"val/psnr": job.parameters["a"]}))
        done.append(f"{job.trial} {state}")
    return done


async def follow(desk: Desk, tune_id: str, a: float) -> list[Heard]:
    """A trial on Tune's side: everything it hears."""
    await desk.begin(tune_id, {"a": a})
    results = [await desk.next_result(tune_id)]
    while not results[-1].get("done"):
        results.append(await desk.next_result(tune_id))
    return results


def test_every_trial_is_trained_once_by_few_slots() -> None:
    async def scene() -> None:
        desk = make_desk()
        slots = [asyncio.create_task(work(desk, name)) for name in ("slot-0", "slot-1")]
        heard = await asyncio.gather(*(follow(desk, f"t{number}", float(number)) for number in range(5)))
        assert await desk.close() == {}
        trained = [end for slot in slots for end in await slot]
        assert sorted(trained) == [f"{number:04d} finished" for number in range(1, 6)]
        for number, results in enumerate(heard):
            assert [result["step"] for result in results] == [1, 2, 2]
            assert results[-1]["val/psnr"] == number

    run(scene())


def test_a_stopped_trial_stops_at_its_next_report_and_frees_the_slot() -> None:
    async def scene() -> None:
        desk = make_desk()
        await desk.begin("t0", {"a": 1.0})
        assert await desk.take("slot-0") == Job("0001", {"a": 1.0})
        report = asyncio.create_task(desk.report("slot-0", {"step": 1}))
        assert await desk.next_result("t0") == {"step": 1, "trial": "0001"}
        await desk.stop("t0", "too bad")
        assert await report == "too bad"
        await desk.begin("t1", {"a": 2.0})
        await desk.end("slot-0", Outcome("stopped"))
        job = await desk.take("slot-0")
        assert isinstance(job, Job)
        assert job.trial == "0002"

    run(scene())


def test_a_trial_that_goes_on_is_taken_once_its_last_slot_has_saved_it() -> None:
    async def scene() -> None:
        desk = make_desk()
        await desk.begin("t0", {"a": 1.0})
        await desk.take("slot-0")
        await desk.stop("t0", "it waits")
        await desk.go_on("0001", {"a": 1.0})
        await desk.begin("t1", {"a": 1.0})
        assert await desk.take("slot-1") == "wait", "slot-0 has it still"
        taken = asyncio.create_task(desk.take("slot-1"))
        await asyncio.sleep(0)
        await desk.end("slot-0", Outcome("stopped"))
        assert await taken == Job("0001", {"a": 1.0})
        await desk.begin("t2", {"a": 1.0})
        assert await desk.take("slot-0") == Job("0002", {"a": 1.0}), "another one of these values"

    run(scene())


def test_a_stopped_trial_whose_slot_died_is_recorded_by_the_next() -> None:
    async def scene() -> None:
        desk = make_desk()
        await desk.begin("t0", {"a": 1.0})
        await desk.take("slot-0")
        await desk.stop("t0", "it waits")
        await desk.lost("slot-0", "a kill")
        closing = asyncio.create_task(desk.close())
        assert await work(desk, "slot-1") == ["0001 stopped"]
        assert await closing == {}

    run(scene())


def test_a_report_waits_for_the_judgement_and_no_longer() -> None:
    async def scene() -> None:
        desk = make_desk()
        await desk.begin("t0", {"a": 1.0})
        await desk.take("slot-0")
        report = asyncio.create_task(desk.report("slot-0", {"step": 1}))
        await asyncio.sleep(0.05)
        assert not report.done(), "Tune has not judged yet"
        await desk.next_result("t0")
        assert not report.done(), "it has seen the report, not judged it"
        following = asyncio.create_task(desk.next_result("t0"))
        assert await report is None
        following.cancel()
        # nobody listens: the slot does not wait for ever
        assert await desk.report("slot-0", {"step": 2}) is None

    run(scene())


@pytest.mark.parametrize("how", ["told", "it comes back"])
def test_a_lost_trial_goes_to_the_next_free_slot_first(how: str) -> None:
    async def scene() -> None:
        desk = make_desk()
        for number in range(3):
            await desk.begin(f"t{number}", {"a": float(number)})
        await desk.take("slot-0")
        if how == "told":
            await desk.lost("slot-0", "node lost")
            job = await desk.take("slot-1")
        else:
            job = await desk.take("slot-0")
        assert isinstance(job, Job)
        assert job.trial == "0001"

    run(scene())


def test_a_trial_whose_workers_die_every_time_fails_alone() -> None:
    async def scene() -> None:
        desk = make_desk(max_attempts=2)
        await desk.begin("t0", {"a": 0.0})
        await desk.begin("t1", {"a": 1.0})
        for _ in range(2):
            job = await desk.take("slot-0")
            assert isinstance(job, Job)
            assert job.trial == "0001"
            await desk.lost("slot-0", "out of memory")
        result = await desk.next_result("t0")
        assert (result["state"], result["done"]) == ("failed", True)
        assert "died 2 times: out of memory" in str(result["reason"])
        job = await desk.take("slot-0")
        assert isinstance(job, Job)
        assert job.trial == "0002"
        await desk.end("slot-0", Outcome("finished"))
        assert list(await desk.close()) == ["0001"]

    run(scene())


def test_a_trial_that_cannot_be_trained_is_not_tried_again() -> None:
    async def scene() -> None:
        desk = make_desk()
        await desk.begin("t0", {"a": 0.0})
        await desk.take("slot-0")
        await desk.fail("slot-0", "broken slice")
        assert (await desk.next_result("t0"))["reason"] == "broken slice"
        assert await desk.take("slot-0") == "wait"
        assert await desk.close() == {"0001": Failure({"a": 0.0}, "broken slice")}

    run(scene())


def test_without_slots_all_trials_fail_and_so_do_later_ones() -> None:
    async def scene() -> None:
        desk = make_desk()
        await desk.begin("t0", {"a": 0.0})
        await desk.give_up("no workers")
        assert (await desk.next_result("t0"))["state"] == "failed"
        await desk.begin("t1", {"a": 1.0})
        assert (await desk.next_result("t1"))["reason"] == "no workers"

    run(scene())


def test_unfinished_trials_keep_their_ids_and_new_ones_get_others() -> None:
    async def scene() -> None:
        desk = Desk({"0003": {"a": 0.1, "kind": "bce"}, "0007": {"a": 0.2, "kind": None}}, 8, 1)
        points: list[dict[str, Any]] = [
            {"kind": None, "a": 0.2},
            {"a": 0.3, "kind": "bce"},
            {"a": 0.1, "kind": "bce"},
            {"a": 0.1, "kind": "bce"},
        ]
        for number, point in enumerate(points):
            await desk.begin(f"t{number}", point)
            await desk.begin(f"t{number}", point)  # by a process that takes the place of another
        taken = [await desk.take(f"slot-{number}") for number in range(5)]
        assert [job.trial if isinstance(job, Job) else job for job in taken] == ["0007", "0008", "0003", "0009", "wait"]

    run(scene())


def test_a_trial_that_is_given_back_has_not_failed() -> None:
    async def scene() -> None:
        desk = make_desk(max_attempts=1)
        await desk.begin("t0", {"a": 0.0})
        for _ in range(3):
            job = await desk.take("slot-0")
            assert isinstance(job, Job)
            assert job.trial == "0001"
            await desk.give_back("slot-0")
            await desk.lost("slot-0", "its machine was taken away")
        assert (await desk.take("slot-1")) == Job("0001", {"a": 0.0})

    run(scene())
