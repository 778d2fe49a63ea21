"""Who waits at a rung of ASHA, and who goes on."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from larmor.tuning.search.ladder import Ladder

VALUES = st.lists(st.floats(0, 50), min_size=1, max_size=40, unique=True)


def climb(values: list[float], ladder: Ladder) -> dict[str, int]:
    """Trials with flat curves, one at a time, each as far as it may: the step that each has reached."""
    new, reached = [f"t{number}" for number in range(len(values))], dict[str, int]()
    by_name = dict(zip(new, values, strict=True))
    while (trial := ladder.ready() or (new.pop(0) if new else None)) is not None:
        if ladder.waits(trial):
            ladder.go_on(trial)
        for rung in (each for each in ladder.rungs if each > reached.get(trial, 0)):
            reached[trial] = rung
            if ladder.arrive(trial, rung, by_name[trial]):
                break
        else:
            reached[trial] = 162
    return reached


def test_rungs_end_before_the_last_step() -> None:
    assert Ladder(18, 3, 162, True).rungs == [18, 54]
    assert Ladder(18, 3, 163, True).rungs == [18, 54, 162]
    assert Ladder(10, 2.5, 100, True).rungs == [10, 25, 63]
    assert Ladder(162, 3, 162, True).rungs == []


@given(VALUES, st.sampled_from([2.0, 3.0, 4.0]), st.booleans())
def test_in_the_end_no_trial_waits_that_is_among_the_best(values: list[float], factor: float, higher: bool) -> None:
    ladder = Ladder(18, factor, 162, higher)
    reached = climb(values, ladder)
    ranked = sorted(reached, key=lambda trial: values[int(trial[1:])], reverse=higher)
    for rung in ladder.rungs:
        there = [trial for trial in ranked if reached[trial] >= rung]
        for trial in there[: int(len(there) / factor)]:
            assert reached[trial] > rung


@given(VALUES)
def test_falling_values_send_only_the_share_on(values: list[float]) -> None:
    """The best first: nobody passes by chance, of whom the best are not known yet."""
    ladder = Ladder(18, 3, 162, True)
    reached = climb(sorted(values, reverse=True), ladder)
    passed = sum(step > 18 for step in reached.values())
    assert passed == len(values) // 3
    assert sum(step == 162 for step in reached.values()) == passed // 3


def test_the_first_waits_until_it_is_among_the_best_of_three() -> None:
    ladder = Ladder(18, 3, 162, True)
    assert [ladder.arrive(trial, 18, value) for trial, value in (("a", 3.0), ("b", 2.0))] == [18, 18]
    assert ladder.ready() is None
    assert ladder.best_waiting() == "a"
    assert ladder.arrive("c", 18, 1.0) == 18
    assert ladder.ready() == "a"
    ladder.go_on("a")
    assert ladder.waiting() == ["b", "c"]
    assert ladder.arrive("a", 36, 3.5) is None, "between two rungs"
    assert ladder.arrive("a", 54, 3.6) == 54


def test_a_late_validation_counts_at_every_rung_below_it() -> None:
    ladder = Ladder(10, 2, 100, True)
    assert ladder.rungs == [10, 20, 40, 80]
    assert ladder.arrive("a", 50, 1.0) == 40
    assert ladder.arrive("b", 50, 2.0) is None
    assert ladder.ready() is None


@given(VALUES)
def test_what_is_remembered_is_what_was_seen(values: list[float]) -> None:
    seen = Ladder(18, 3, 162, False)
    reached = climb(values, seen)
    again = Ladder(18, 3, 162, False)
    for trial, step in reached.items():
        curve = {rung: values[int(trial[1:])] for rung in seen.rungs if rung <= step}
        again.remember(trial, curve, waits=seen.waits(trial))
    assert sorted(again.waiting()) == sorted(seen.waiting())
    assert [again.arrive("new", rung, 25.0) for rung in again.rungs] == [
        seen.arrive("new", rung, 25.0) for rung in seen.rungs
    ]
    assert again.ready() == seen.ready()


@given(st.lists(st.floats(0, 50), min_size=4, max_size=9, unique=True), st.booleans(), st.data())
def test_a_value_that_is_no_number_is_the_worst_wherever_it_comes(
    values: list[float], higher: bool, places: st.DataObject
) -> None:
    """Sorting by NaN would leave the others in any order."""
    order = places.draw(st.permutations([*range(len(values)), -1, -2]))
    ladder = Ladder(18, 3, 162, higher)
    for number in order:
        value = values[number] if number >= 0 else (math.nan, math.inf if higher else -math.inf)[-1 - number]
        ladder.remember(str(number), {18: value}, waits=True)
    best = ladder.ready()
    assert best is not None
    assert values[int(best)] == (max(values) if higher else min(values))
